"""What the golden tests share: the released system's generators and images, made once."""

import pytest
import torch

from nvg.generator.rope import rotate, rotate_in_real_numbers
from tests.release import ours


@pytest.fixture(params=["complex", "real"])
def rotation(request, monkeypatch):
    """The rotation as it is eager on a CPU, and as it is on a GPU and compiled: the golden numbers within the same
    tolerances."""
    form = rotate if request.param == "complex" else rotate_in_real_numbers
    monkeypatch.setattr("nvg.generator.block.rotate", form)


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
