"""References: what is kept of many features, and the file."""

import numpy as np
import pytest
import torch

from nvg.errors import DataError
from nvg.evaluation import reference as module
from nvg.evaluation.metrics import Moments
from nvg.evaluation.reference import ReferenceMeter, load_reference


def features(count, seed=0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_moments_are_of_all_images_and_features_of_an_even_choice(monkeypatch):
    monkeypatch.setattr(module, "MANIFOLD_IMAGES", 100)
    meter = ReferenceMeter(seed=0)
    rows = torch.cat((torch.arange(1000.0)[:, None], features(1000)), dim=1)
    for some in rows.split(70):
        meter.add(some, right=len(some) - 1)
    found = meter.reference("test", "mark", "net", labelled=True)
    assert (found.name, found.images, found.right) == ("1000 test images", 1000, 1000 - 15)
    assert np.allclose(found.moments.covariance.numpy(), np.cov(rows.double().numpy(), rowvar=False))
    numbers = found.features[:, 0]
    assert len(numbers) == 100 and len(set(numbers.tolist())) == 100
    assert 400 < float(numbers.mean()) < 600  # from everywhere: 5 standard errors are 144
    assert torch.equal(rows[numbers.long()], found.features)


def test_a_reference_is_read_as_it_was_written(tmp_path):
    meter = ReferenceMeter(seed=0)
    meter.add(features(20), right=0)
    given = Moments(torch.zeros(3).double(), torch.eye(3).double())
    wrote = meter.reference("train", "mark", "net", labelled=False, all_images=given)
    wrote.save(f"{tmp_path}/reference.safetensors")
    read = load_reference(f"{tmp_path}/reference.safetensors")
    assert (read.name, read.fingerprint, read.network, read.images, read.right) == (
        "20 train images",
        "mark",
        "net",
        20,
        None,
    )
    assert torch.equal(read.features, features(20)) and torch.equal(read.moments.covariance, given.covariance)


def test_another_file_is_refused_with_what_to_do(tmp_path):
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="no reference of format 1: remove it"):
        load_reference(f"{tmp_path}/other.safetensors")
    with pytest.raises(ValueError, match="damaged"):
        load_reference(f"{tmp_path}/torn.safetensors")


def test_images_none_of_which_can_be_read_are_no_reference():
    with pytest.raises(DataError, match="0 readable test images: at least two"):
        ReferenceMeter(seed=0).reference("test", "mark", "net", labelled=True)
