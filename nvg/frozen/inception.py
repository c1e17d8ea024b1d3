"""The feature network of the published FID figures: Inception-v3 of 2015-12-05, written out in torch.

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception architecture for computer vision" (arXiv
1512.00567), as TensorFlow's graph inception-2015-12-05 has it. That graph differs from the paper and from torchvision:
average pooling does not count the padding, the last block pools by the maximum, there are 1008 outputs, and images are
resized inside the graph, without half-pixel centres. FID, Inception Score and precision/recall of other suites
(torch-fidelity, ADM's evaluator) are on these features; no other network's figures compare with them.

Weights are one .safetensors file of float32 tensors, made by `python -m nvg.frozen.convert inception`, under the
names of weights-inception-2015-12-05-6726825d.pth (torch-fidelity; pytorch-fid's pt_inception-2015-12-05-6726825d.pth):
    {layer}.conv.weight (out, in, rows, columns)                layer: Conv2d_1a_3x3 ... Mixed_7c.branch_pool, 94 in all
    {layer}.bn.{weight,bias,running_mean,running_var} (out,)
    fc.weight (1008, 2048), fc.bias (1008,)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import WeightsError
from nvg.frozen.weights import freeze, read_tensors

SIDE = 299  # pixels a side that the network sees
CLASSES = 1008  # the graph's outputs; 1000 of them are ImageNet's classes

_KEY = "evaluate.inception_weights"
_EXPECTED = "one .safetensors file with the tensors of weights-inception-2015-12-05-6726825d.pth"
_REMEDY = (
    "Convert the published .pth: python -m nvg.frozen.convert inception "
    "--weights weights-inception-2015-12-05-6726825d.pth --out inception.safetensors"
)


class _Normalization(nn.Module):
    """Batch normalisation by fixed statistics: (N, C, H, W) -> (N, C, H, W). nn.BatchNorm2d would hold one more tensor
    than the published file."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class _Convolution(nn.Module):
    """Convolution, normalisation, ReLU. kernel and padding: of rows and columns, one number for both."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, padding, bias=False)
        self.bn = _Normalization(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


# The blocks, each some branches side by side, joined over channels. Their attributes bear the published names.


class _Block5(nn.Module):
    """Mixed_5b, 5c, 5d: (N, width_in, 35, 35) -> (N, 224 + pool_width, 35, 35)."""

    def __init__(self, width_in: int, pool_width: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(width_in, 64, 1)
        self.branch5x5_1 = _Convolution(width_in, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(width_in, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(width_in, pool_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(_average_pool(x))
        return torch.cat((single, five, double, pooled), dim=1)


class _Block6a(nn.Module):
    """Mixed_6a halves the sides: (N, 288, 35, 35) -> (N, 768, 17, 17)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(288, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3(x)
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((single, double, F.max_pool2d(x, 3, stride=2)), dim=1)


class _Block6(nn.Module):
    """Mixed_6b ... 6e: (N, 768, 17, 17) -> the same shape. 7x7 convolutions are pairs of 1x7 and 7x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(768, 192, 1)
        self.branch7x7_1 = _Convolution(768, width, 1)
        self.branch7x7_2 = _Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Convolution(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Convolution(768, width, 1)
        self.branch7x7dbl_2 = _Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Convolution(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Convolution(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        point = self.branch1x1(x)
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        pooled = self.branch_pool(_average_pool(x))
        return torch.cat((point, single, double, pooled), dim=1)


class _Block7a(nn.Module):
    """Mixed_7a halves the sides: (N, 768, 17, 17) -> (N, 1280, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(768, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(768, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat((three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)), dim=1)


class _Block7(nn.Module):
    """Mixed_7b, 7c: (N, width_in, 8, 8) -> (N, 2048, 8, 8). 3x3 convolutions end in a 1x3 and a 3x1 side by side.

    pool: the pooling before branch_pool.
    """

    def __init__(self, width_in: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Convolution(width_in, 320, 1)
        self.branch3x3_1 = _Convolution(width_in, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Convolution(width_in, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Convolution(width_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        point = self.branch1x1(x)
        single = self.branch3x3_1(x)
        single = torch.cat((self.branch3x3_2a(single), self.branch3x3_2b(single)), dim=1)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat((self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)), dim=1)
        pooled = self.branch_pool(self.pool(x))
        return torch.cat((point, single, double, pooled), dim=1)


def _average_pool(x: Tensor) -> Tensor:
    """The mean of 3x3 positions, of those within the image at its edge: (N, C, H, W) -> (N, C, H, W)."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum_pool(x: Tensor) -> Tensor:
    """The maximum of 3x3 positions: (N, C, H, W) -> (N, C, H, W)."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Inception(nn.Module):
    """Features and logits of images. Its parameters are frozen, and it stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _Block5(192, pool_width=32)
        self.Mixed_5c = _Block5(256, pool_width=64)
        self.Mixed_5d = _Block5(288, pool_width=64)
        self.Mixed_6a = _Block6a()
        self.Mixed_6b = _Block6(width=128)
        self.Mixed_6c = _Block6(width=160)
        self.Mixed_6d = _Block6(width=160)
        self.Mixed_6e = _Block6(width=192)
        self.Mixed_7a = _Block7a()
        self.Mixed_7b = _Block7(1280, _average_pool)
        self.Mixed_7c = _Block7(2048, _maximum_pool)  # not so in the paper, but in the graph: probably an oversight
        self.fc = nn.Linear(2048, CLASSES)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPUs
        freeze(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) with C = 1 (grey, repeated) or 3 -> features (N, 2048), logits (N, 1008), both float32.

        The logits are without fc.bias, torch-fidelity's "logits_unbiased": its Inception Score and that of ADM's
        evaluator are of softmax(features @ fc.weight.T). Raises ValueError for other types and shapes.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"Inception takes uint8 (N, H, W, C) with C = 1 or 3, got {images.dtype} {tuple(images.shape)}"
            )
        x = resize_bilinear(images.permute(0, 3, 1, 2).float(), SIDE)
        x = ((x - 128) / 128).expand(-1, 3, -1, -1)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (N, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))  # (N, 768, 17, 17)
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))  # (N, 2048, 8, 8)
        features = x.mean(dim=(2, 3))
        return features, F.linear(features, self.fc.weight)

    def train(self, mode: bool = True) -> Inception:
        """The network stays in evaluation mode, whatever mode is asked for."""
        return super().train(False)


def resize_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resizing without align_corners: float (N, C, H, W) -> (N, C, side, side).

    Output i stands at input i * H / side, with no half-pixel centre and no smoothing when it shrinks; beyond the last
    input the last is repeated. Columns come first, as in TensorFlow's kernel, so that results round as they do there.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        position = torch.arange(side, dtype=images.dtype, device=images.device) * (length / side)
        low = position.long()
        share = (position - low).view(-1, 1) if dim == 2 else position - low
        below = images.index_select(dim, low)
        above = images.index_select(dim, (low + 1).clamp_max(length - 1))
        images = below + (above - below) * share
    return images


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the weights hold: 472 of them."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Inception().state_dict().items()}


def misfits(tensors: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being the weights, in words: those that are missing or misshapen. "" when none is.

    Tensors of other names do not count.
    """
    wrong = []
    for name, shape in tensor_shapes().items():
        if name not in tensors:
            wrong.append(f"tensor {name} is missing")
        elif tensors[name].shape != shape:
            wrong.append(f"tensor {name} has shape {tuple(tensors[name].shape)}, Inception's is {shape}")
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ", ".join(wrong[:3]) + more


def load_inception(url: str) -> Inception:
    """Inception with the weights of a .safetensors file, path or URL (tensor names: see the head of this file).

    Raises WeightsError (a FileNotFoundError) when the file is missing or does not hold those tensors.
    """
    tensors = read_tensors(url, key=_KEY, expected=_EXPECTED, remedy=_REMEDY)
    if wrong := misfits(tensors):
        raise WeightsError(f"{_KEY}={url}: {wrong}. Expected: {_EXPECTED}. {_REMEDY}")
    inception = Inception()
    inception.load_state_dict({name: tensors[name].float() for name in inception.state_dict()})
    return inception
