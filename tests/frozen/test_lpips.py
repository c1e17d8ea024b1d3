"""LPIPS against its formula, written out independently, on random weights of the real architecture."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from nvg.frozen.convert import main
from nvg.frozen.lpips import LPIPS, load_lpips

# VGG16 configuration D (Simonyan & Zisserman, arXiv 1409.1556, table 1): widths, and M for a pooling.
VGG16_D = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


def random_weights() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dictionaries as published: VGG16 of torchvision (with a classifier layer) and the LPIPS heads."""
    generator = torch.Generator().manual_seed(0)
    vgg, heads, number, width_in = {}, {}, 0, 3
    for item in VGG16_D:
        if item == "M":
            number += 1
            continue
        spread = (2 / (9 * width_in)) ** 0.5
        vgg[f"features.{number}.weight"] = torch.randn(item, width_in, 3, 3, generator=generator) * spread
        vgg[f"features.{number}.bias"] = torch.randn(item, generator=generator) * 0.1
        number, width_in = number + 2, item
    vgg["classifier.6.bias"] = torch.zeros(1000)
    for tap, width in enumerate((64, 128, 256, 512, 512)):
        heads[f"lin{tap}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return vgg, heads


def written_out(vgg: dict, heads: dict, x: torch.Tensor, x0: torch.Tensor) -> float:
    """Eq. 1 of arXiv 1801.03924 for one pair (3, H, W), position by position."""

    def features(image: torch.Tensor) -> list[torch.Tensor]:
        mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        value = ((image - mean[:, None, None]) / deviation[:, None, None])[None]
        taps, number = [], 0
        for item in VGG16_D:
            if item == "M":
                taps.append(value[0])
                value, number = F.max_pool2d(value, 2, 2), number + 1
            else:
                value = F.conv2d(value, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1)
                value, number = value.clamp_min(0), number + 2
        return [*taps, value[0]]

    total = 0.0
    for tap, (y, y0) in enumerate(zip(features(x), features(x0), strict=True)):
        weight = heads[f"lin{tap}.model.1.weight"].flatten().double()
        _, rows, columns = y.shape
        positions = 0.0
        for row in range(rows):
            for column in range(columns):
                a, b = y[:, row, column].double(), y0[:, row, column].double()
                positions += float((weight * (a / a.norm() - b / b.norm()) ** 2).sum())
        total += positions / (rows * columns)
    return total


@pytest.fixture(scope="module")
def weights() -> tuple[dict, dict]:
    return random_weights()


@pytest.fixture(scope="module")
def file(weights: tuple[dict, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(weights[0], folder / "vgg16.pth")
    torch.save(weights[1], folder / "heads.pth")
    command = ["lpips", "--vgg", str(folder / "vgg16.pth"), "--heads", str(folder / "heads.pth")]
    assert main([*command, "--out", str(folder / "out" / "lpips.safetensors")]) == 0
    return folder / "out" / "lpips.safetensors"


@pytest.fixture(scope="module")
def lpips(file: Path) -> LPIPS:
    return load_lpips(str(file))


def test_distance_is_the_formula(lpips: LPIPS, weights: tuple[dict, dict]) -> None:
    x, x0 = (torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (1, 2))
    expected = torch.tensor([written_out(*weights, a, b) for a, b in zip(x, x0, strict=True)], dtype=torch.float32)
    torch.testing.assert_close(lpips(x, x0), expected, rtol=1e-4, atol=1e-6)


def test_distance_to_itself_is_zero_and_it_is_symmetric(lpips: LPIPS) -> None:
    x, x0 = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert lpips(x, x).abs().max() == 0
    torch.testing.assert_close(lpips(x, x0), lpips(x0, x))


def test_a_grey_image_counts_as_three_equal_channels(lpips: LPIPS) -> None:
    x, x0 = torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    torch.testing.assert_close(lpips(x, x0), lpips(x.repeat(1, 3, 1, 1), x0.repeat(1, 3, 1, 1)))


def test_gradients_reach_the_images_and_no_weight(lpips: LPIPS) -> None:
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    lpips.train()
    lpips(x, torch.ones(1, 3, 16, 16)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert not lpips.training and all(parameter.grad is None for parameter in lpips.parameters())


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    dead = LPIPS()
    for parameter in dead.parameters():
        parameter.zero_()
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    dead(x, torch.rand(1, 3, 16, 16)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_images_that_do_not_fit_are_refused(lpips: LPIPS) -> None:
    with pytest.raises(ValueError, match="12 x 16 pixels are too small.*16.*lpips_weights=null"):
        lpips(torch.zeros(1, 3, 12, 16), torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        lpips(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match="one shape"):
        lpips(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


def test_a_missing_file_names_the_key_the_content_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_lpips(str(tmp_path / "none.safetensors"))
    # What asked for it, the file, what belongs in it, how to make it.
    for part in ("tokenizer_train.lpips_weights=", "none.safetensors", "lin{0..4}.weight", "frozen.convert lpips"):
        assert part in str(error.value)


def test_the_file_may_be_a_url(file: Path, lpips: LPIPS) -> None:
    """`~` is expanded where configurations are read (tests/config/test_text.py)."""
    assert torch.equal(load_lpips(file.as_uri()).lin0.weight, lpips.lin0.weight)
    with pytest.raises(FileNotFoundError, match="lpips_weights="):
        load_lpips(file.as_uri() + "-none")


def test_a_file_that_is_not_the_weights_says_what_is_wrong(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"a pickle, perhaps")
    with pytest.raises(FileNotFoundError, match="not a safetensors file"):
        load_lpips(str(path))
    tensors = load_file(file)
    save_file({**tensors, "features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(FileNotFoundError, match="features.0.weight has shape"):
        load_lpips(str(path))
    del tensors["lin3.weight"]
    save_file(tensors, path)
    with pytest.raises(FileNotFoundError, match="lin3.weight is missing"):
        load_lpips(str(path))


def test_conversion_of_a_wrong_file_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    command = ["lpips", "--heads", str(tmp_path / "vgg.pth"), "--out", str(tmp_path / "out.safetensors")]
    assert main([*command, "--vgg", str(tmp_path / "vgg.pth")]) == 1
    assert "has no tensor features.0.bias" in capsys.readouterr().err
    assert main([*command, "--vgg", str(tmp_path / "none.pth")]) == 1
    assert "no file at" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["vgg.pth"]
