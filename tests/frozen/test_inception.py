"""Inception-v3 against its layers, written out one by one, on random weights under the published names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from nvg.errors import WeightsError
from nvg.frozen.convert import main
from nvg.frozen.inception import Inception, load_inception, misfits, resize_bilinear, tensor_shapes

State = dict[str, torch.Tensor]
KEY = "evaluate.inception_weights="


def layers() -> Iterator[tuple[str, int, int, int, int]]:
    """Name and weight shape (out, in, rows, columns) of all 94 convolutions, in full."""
    yield "Conv2d_1a_3x3", 32, 3, 3, 3
    yield "Conv2d_2a_3x3", 32, 32, 3, 3
    yield "Conv2d_2b_3x3", 64, 32, 3, 3
    yield "Conv2d_3b_1x1", 80, 64, 1, 1
    yield "Conv2d_4a_3x3", 192, 80, 3, 3
    for block, width, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        yield f"{block}.branch1x1", 64, width, 1, 1
        yield f"{block}.branch5x5_1", 48, width, 1, 1
        yield f"{block}.branch5x5_2", 64, 48, 5, 5
        yield f"{block}.branch3x3dbl_1", 64, width, 1, 1
        yield f"{block}.branch3x3dbl_2", 96, 64, 3, 3
        yield f"{block}.branch3x3dbl_3", 96, 96, 3, 3
        yield f"{block}.branch_pool", pool, width, 1, 1
    yield "Mixed_6a.branch3x3", 384, 288, 3, 3
    yield "Mixed_6a.branch3x3dbl_1", 64, 288, 1, 1
    yield "Mixed_6a.branch3x3dbl_2", 96, 64, 3, 3
    yield "Mixed_6a.branch3x3dbl_3", 96, 96, 3, 3
    for block, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        yield f"{block}.branch1x1", 192, 768, 1, 1
        yield f"{block}.branch7x7_1", inner, 768, 1, 1
        yield f"{block}.branch7x7_2", inner, inner, 1, 7
        yield f"{block}.branch7x7_3", 192, inner, 7, 1
        yield f"{block}.branch7x7dbl_1", inner, 768, 1, 1
        yield f"{block}.branch7x7dbl_2", inner, inner, 7, 1
        yield f"{block}.branch7x7dbl_3", inner, inner, 1, 7
        yield f"{block}.branch7x7dbl_4", inner, inner, 7, 1
        yield f"{block}.branch7x7dbl_5", 192, inner, 1, 7
        yield f"{block}.branch_pool", 192, 768, 1, 1
    yield "Mixed_7a.branch3x3_1", 192, 768, 1, 1
    yield "Mixed_7a.branch3x3_2", 320, 192, 3, 3
    yield "Mixed_7a.branch7x7x3_1", 192, 768, 1, 1
    yield "Mixed_7a.branch7x7x3_2", 192, 192, 1, 7
    yield "Mixed_7a.branch7x7x3_3", 192, 192, 7, 1
    yield "Mixed_7a.branch7x7x3_4", 192, 192, 3, 3
    for block, width in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        yield f"{block}.branch1x1", 320, width, 1, 1
        yield f"{block}.branch3x3_1", 384, width, 1, 1
        yield f"{block}.branch3x3_2a", 384, 384, 1, 3
        yield f"{block}.branch3x3_2b", 384, 384, 3, 1
        yield f"{block}.branch3x3dbl_1", 448, width, 1, 1
        yield f"{block}.branch3x3dbl_2", 384, 448, 3, 3
        yield f"{block}.branch3x3dbl_3a", 384, 384, 1, 3
        yield f"{block}.branch3x3dbl_3b", 384, 384, 3, 1
        yield f"{block}.branch_pool", 192, width, 1, 1


def random_weights() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, *shape in layers():
        spread = (2 / np.prod(shape[1:])) ** 0.5
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * spread
        state[f"{name}.bn.weight"] = 0.8 + 0.4 * torch.rand(shape[0], generator=generator)
        state[f"{name}.bn.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        state[f"{name}.bn.running_mean"] = 0.1 * torch.randn(shape[0], generator=generator)
        state[f"{name}.bn.running_var"] = 0.8 + 0.4 * torch.rand(shape[0], generator=generator)
    state["fc.weight"] = torch.randn(1008, 2048, generator=generator) / 2048**0.5
    state["fc.bias"] = torch.randn(1008, generator=generator)
    return state


def written_out(state: State, images: torch.Tensor) -> torch.Tensor:
    """The features of float (N, 3, 299, 299) in [-1, 1], layer by layer -> (N, 2048)."""

    def layer(x: torch.Tensor, name: str, stride: int = 1, rows: int = 0, columns: int = 0) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=(rows, columns))
        mean, variance, weight, bias = (
            state[f"{name}.bn.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 0.001).sqrt() * weight + bias).clamp_min(0)

    def block_5(x: torch.Tensor, name: str) -> torch.Tensor:
        one = layer(x, f"{name}.branch1x1")
        five = layer(layer(x, f"{name}.branch5x5_1"), f"{name}.branch5x5_2", 1, 2, 2)
        three = layer(layer(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", 1, 1, 1)
        three = layer(three, f"{name}.branch3x3dbl_3", 1, 1, 1)
        return torch.cat([one, five, three, layer(average(x), f"{name}.branch_pool")], 1)

    def block_6(x: torch.Tensor, name: str) -> torch.Tensor:
        one = layer(x, f"{name}.branch1x1")
        single = layer(layer(x, f"{name}.branch7x7_1"), f"{name}.branch7x7_2", 1, 0, 3)
        single = layer(single, f"{name}.branch7x7_3", 1, 3, 0)
        double = layer(layer(x, f"{name}.branch7x7dbl_1"), f"{name}.branch7x7dbl_2", 1, 3, 0)
        double = layer(layer(double, f"{name}.branch7x7dbl_3", 1, 0, 3), f"{name}.branch7x7dbl_4", 1, 3, 0)
        double = layer(double, f"{name}.branch7x7dbl_5", 1, 0, 3)
        return torch.cat([one, single, double, layer(average(x), f"{name}.branch_pool")], 1)

    def block_7(x: torch.Tensor, name: str, pooled: torch.Tensor) -> torch.Tensor:
        single = layer(x, f"{name}.branch3x3_1")
        double = layer(layer(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", 1, 1, 1)
        return torch.cat(
            [
                layer(x, f"{name}.branch1x1"),
                layer(single, f"{name}.branch3x3_2a", 1, 0, 1),
                layer(single, f"{name}.branch3x3_2b", 1, 1, 0),
                layer(double, f"{name}.branch3x3dbl_3a", 1, 0, 1),
                layer(double, f"{name}.branch3x3dbl_3b", 1, 1, 0),
                layer(pooled, f"{name}.branch_pool"),
            ],
            1,
        )

    x = layer(layer(layer(images, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", 1, 1, 1)
    x = layer(layer(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = F.max_pool2d(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_5(x, name)
    double = layer(layer(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", 1, 1, 1)
    double = layer(double, "Mixed_6a.branch3x3dbl_3", 2)
    x = torch.cat([layer(x, "Mixed_6a.branch3x3", 2), double, F.max_pool2d(x, 3, 2)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_6(x, name)
    single = layer(layer(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", 2)
    double = layer(layer(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", 1, 0, 3)
    double = layer(layer(double, "Mixed_7a.branch7x7x3_3", 1, 3, 0), "Mixed_7a.branch7x7x3_4", 2)
    x = torch.cat([single, double, F.max_pool2d(x, 3, 2)], 1)
    x = block_7(x, "Mixed_7b", average(x))
    x = block_7(x, "Mixed_7c", maximum(x))
    assert x.shape[1:] == (2048, 8, 8)
    return x.flatten(2).sum(2) / 64


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, 9, H, W): each position's 3 x 3 surroundings, NaN beyond the edge."""
    padded = F.pad(x, (1, 1, 1, 1), value=float("nan"))
    rows, columns = x.shape[2:]
    return torch.stack([padded[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)], dim=2)


def average(x: torch.Tensor) -> torch.Tensor:
    return neighbours(x).nanmean(dim=2)


def maximum(x: torch.Tensor) -> torch.Tensor:
    return neighbours(x).nan_to_num(nan=float("-inf")).amax(dim=2)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's bilinear resizing of one float32 (H, W, C), pixel by pixel."""
    height, width, _ = image.shape
    out = np.empty((side, side, image.shape[2]), np.float32)
    for row in range(side):
        for column in range(side):
            y, x = np.float32(row) * np.float32(height / side), np.float32(column) * np.float32(width / side)
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - np.float32(top), x - np.float32(left)
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            out[row, column] = above + (below - above) * dy
    return out


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def state() -> State:
    return random_weights()


@pytest.fixture(scope="module")
def inception(state: State, tmp_path_factory: pytest.TempPathFactory) -> Inception:
    """Through the published format, the command and the .safetensors file."""
    folder = tmp_path_factory.mktemp("inception")
    pth, out = folder / "weights.pth", folder / "out" / "inception.safetensors"
    torch.save({**state, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}, pth)
    assert main(["inception", "--weights", str(pth), "--out", str(out)]) == 0
    loaded = load_inception(str(out))
    pth.unlink()  # pytest keeps the folders of three runs, and these are 95 MB each
    out.unlink()
    return loaded


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two colour images of blocks, not square, (2, 40, 56, 3): noise alone would look alike to random weights."""
    return noise(2, 5, 7, 3, seed=1).repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture(scope="module")
def outputs(inception: Inception, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return inception(images)


def test_conversion_keeps_every_tensor_under_its_published_name(inception: Inception, state: State) -> None:
    found = inception.state_dict()
    assert found.keys() == state.keys() == tensor_shapes().keys() and len(found) == 94 * 5 + 2
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert misfits(state) == ""


def test_parameter_count(inception: Inception) -> None:
    by_hand = sum(out * width * rows * columns + 2 * out for _, out, width, rows, columns in layers()) + 1008 * 2049
    # torchvision's inception_v3 has 27,161,264, of which 3,326,696 are its auxiliary head, and 1000 classes.
    assert by_hand == 27_161_264 - 3_326_696 + 8 * 2049 == 23_850_960
    assert sum(parameter.numel() for parameter in inception.parameters()) == by_hand


def test_outputs_are_the_formula(
    inception: Inception, state: State, images: torch.Tensor, outputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    features, logits = outputs
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == torch.float32
    input_images = resize_bilinear(images[:1].permute(0, 3, 1, 2).float(), 299)  # tested by itself below
    expected = written_out(state, (input_images - 128) * 0.0078125)
    scale = float(expected.abs().mean())
    torch.testing.assert_close(features[:1], expected, rtol=1e-3, atol=1e-3 * scale)
    assert (features[0] - features[1]).abs().mean() > 0.02 * scale  # else any image would pass
    torch.testing.assert_close(logits, features @ state["fc.weight"].T)  # without the bias


def test_batch_mates_do_not_matter(
    inception: Inception, images: torch.Tensor, outputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for alone, together in zip(inception(images[1:]), outputs, strict=True):
        torch.testing.assert_close(alone, together[1:], rtol=1e-4, atol=1e-4)


def test_a_grey_image_counts_as_three_equal_channels(inception: Inception) -> None:
    grey = noise(1, 28, 28, 1, seed=2)
    torch.testing.assert_close(inception(grey), inception(grey.expand(-1, -1, -1, 3)))


def test_resizing_is_tensorflows() -> None:
    for height, width in ((7, 5), (31, 40), (6, 40), (13, 13), (1, 1)):
        image = noise(height, width, 3, seed=3).float()
        ours = resize_bilinear(image.permute(2, 0, 1)[None], 13)[0].permute(1, 2, 0)
        torch.testing.assert_close(ours, torch.from_numpy(resized(image.numpy(), 13)), rtol=0, atol=0)
    # Corners are aligned at 0, the last pixel repeats; with half-pixel centres this would be 0, 0.25, 0.75, 1.
    row = resize_bilinear(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), 4)[0, 0]
    assert row.tolist() == [[0, 0.5, 1, 1]] * 4


def pool_branch(inception: Inception, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.nn.Module]:
    """The output of a block's pooling branch, which comes last, and the convolution that ends it."""
    convolution = inception.get_submodule(f"{name}.branch_pool")
    return inception.get_submodule(name)(x)[:, -convolution.conv.out_channels :], convolution


@pytest.mark.parametrize("name, width", [("Mixed_5b", 192), ("Mixed_5d", 288), ("Mixed_6b", 768), ("Mixed_7b", 1280)])
def test_average_pooling_does_not_count_the_padding(inception: Inception, name: str, width: int) -> None:
    x = torch.ones(1, width, 5, 5)
    pooled, convolution = pool_branch(inception, name, x)
    torch.testing.assert_close(pooled, convolution(x))  # a constant stays what it is, at the edge too
    x = torch.zeros(1, width, 5, 5)
    x[..., 0, 0] = 36.0
    pooled, convolution = pool_branch(inception, name, x)
    x[..., 0, 0], x[..., 0, 1], x[..., 1, 0], x[..., 1, 1] = 9.0, 6.0, 6.0, 4.0  # 4, 6 and 9 pixels within the image
    torch.testing.assert_close(pooled, convolution(x))


def test_the_last_block_pools_by_the_maximum(inception: Inception) -> None:
    x = torch.zeros(1, 2048, 5, 5)
    x[..., 0, 0] = 36.0
    pooled, convolution = pool_branch(inception, "Mixed_7c", x)
    x[..., :2, :2] = 36.0
    torch.testing.assert_close(pooled, convolution(x))


def test_it_is_frozen_in_evaluation_mode(inception: Inception) -> None:
    assert not any(parameter.requires_grad for parameter in inception.parameters())
    assert not inception.train().training and not inception.Mixed_7c.training


@pytest.mark.parametrize("shape, dtype", [((1, 8, 8, 3), "float32"), ((1, 8, 8, 2), "uint8"), ((8, 8, 3), "uint8")])
def test_images_that_do_not_fit_are_refused(inception: Inception, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"uint8 \(N, H, W, C\) with C = 1 or 3, got torch.{dtype}"):
        inception(torch.zeros(shape, dtype=getattr(torch, dtype)))


def test_a_missing_file_names_the_key_the_content_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        load_inception(str(tmp_path / "none.safetensors"))
    for part in (KEY, "none.safetensors", "6726825d.pth", "python -m nvg.frozen.convert inception --weights"):
        assert part in str(error.value)


def test_a_file_that_is_not_the_weights_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def message() -> str:
        with pytest.raises(WeightsError) as error:
            load_inception(str(path))
        assert str(error.value).startswith(KEY) and "nvg.frozen.convert inception" in str(error.value)
        return str(error.value)

    path.write_bytes(b"a pickle, perhaps")
    assert "not a safetensors file" in message()
    # Bytes, because names and shapes alone are looked at.
    tensors = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in tensor_shapes().items()}
    tensors["fc.weight"] = torch.zeros(1000, 2048, dtype=torch.uint8)  # torchvision's
    save_file(tensors, path)
    assert f"{path}: tensor fc.weight has shape (1000, 2048), Inception's is (1008, 2048). Expected" in message()
    del tensors["fc.weight"]
    save_file(tensors, path)
    assert f"{path}: tensor fc.weight is missing. Expected" in message()
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)
    assert "tensor Conv2d_1a_3x3.bn.weight is missing, " in message() and ", and 468 more. Expected" in message()


def test_conversion_of_a_wrong_file_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pth, out = tmp_path / "w.pth", tmp_path / "out" / "w.safetensors"

    def message() -> str:
        assert main(["inception", "--weights", str(pth), "--out", str(out)]) == 1
        return capsys.readouterr().err

    assert "no file at" in message()
    torch.save([1], pth)
    assert "holds a list" in message()
    tensors = {name: torch.zeros(1, dtype=torch.uint8).expand(shape) for name, shape in tensor_shapes().items()}
    torch.save({**tensors, "fc.bias": torch.zeros(1000)}, pth)
    assert "fc.bias has shape (1000,), Inception's is (1008,): is it the right file?" in message()
    torch.save({**tensors, "AuxLogits.fc.bias": torch.zeros(1000)}, pth)
    assert "tensors that are not Inception's (AuxLogits.fc.bias ...)" in message()
    del tensors["Mixed_5b.branch1x1.bn.bias"]
    torch.save(tensors, pth)
    assert "tensor Mixed_5b.branch1x1.bn.bias is missing: is it the right file?" in message()
    assert not out.parent.exists()
