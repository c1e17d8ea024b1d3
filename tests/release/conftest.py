"""What the golden tests share: the released system's generators and images, made once."""

import pytest
import torch

from tests.release import ours


@pytest.fixture(scope="session")
def generators():
    """Content and structure generator."""
    return ours.both_generators()


@pytest.fixture(scope="session")
def sequences():
    """Three images as sequences."""
    return ours.sequences()


@pytest.fixture(scope="session")
def canvases(sequences):
    """Their canvases x_0 ... x_9, (10, 3, 256, 32)."""
    return torch.stack(ours.quantizer().canvases(sequences))
