"""Files of the ADM evaluation suite: written as NumPy reads them, read in pieces."""

import numpy as np
import pytest

from nvg.evaluation.npz import ImageWriter, read_images, read_moments

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


def test_what_is_written_in_pieces_is_what_numpy_reads(tmp_path):
    with ImageWriter(tmp_path / "samples.npz", 7, 4) as writer:
        writer.add(IMAGES[:3])
        writer.add(IMAGES[3:])
    content = np.load(tmp_path / "samples.npz")
    assert content.files == ["arr_0"] and content["arr_0"].dtype == np.uint8
    assert np.array_equal(content["arr_0"], IMAGES)


def test_grey_images_get_three_equal_channels(tmp_path):
    with ImageWriter(tmp_path / "samples.npz", 7, 4) as writer:
        writer.add(IMAGES[..., :1])
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], np.repeat(IMAGES[..., :1], 3, axis=3))


def test_a_file_that_is_not_full_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="3 images of 7"), ImageWriter(tmp_path / "a.npz", 7, 4) as writer:
        writer.add(IMAGES[:3])
    with pytest.raises(RuntimeError, match="stop"), ImageWriter(tmp_path / "a.npz", 7, 4) as writer:
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="expected uint8 images"), ImageWriter(tmp_path / "a.npz", 7, 4) as writer:
        writer.add(IMAGES[:, :2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_files_are_read_in_pieces(tmp_path, save):
    save(tmp_path / "ref.npz", IMAGES, mu=np.arange(3.0), sigma=np.eye(3))
    with open(tmp_path / "ref.npz", "rb") as file:
        pieces = list(read_images(file, 3))
        assert [len(piece) for piece in pieces] == [3, 3, 1] and np.array_equal(np.concatenate(pieces), IMAGES)
        mu, sigma = read_moments(file)
        assert np.array_equal(mu, np.arange(3.0)) and np.array_equal(sigma, np.eye(3))


def test_other_files_are_refused_by_what_is_wrong(tmp_path):
    np.savez(tmp_path / "other.npz", labels=np.arange(3))
    np.savez(tmp_path / "float.npz", IMAGES / 255)
    (tmp_path / "text.npz").write_text("no zip")
    for name, message in (("other", "arr_0"), ("float", "float64"), ("text", "no .npz")):
        with open(tmp_path / f"{name}.npz", "rb") as file, pytest.raises(ValueError, match=message):
            list(read_images(file, 3))
    with open(tmp_path / "other.npz", "rb") as file:
        assert read_moments(file) is None
