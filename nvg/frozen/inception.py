"""The feature network of the published FID figures: Inception-v3 of 2015-12-05, written out in torch.

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception architecture for computer vision" (arXiv
1512.00567), as TensorFlow's graph inception-2015-12-05 has it. That graph differs from the paper and from torchvision:
average pooling does not count the padding, the last block pools by the maximum, there are 1008 outputs, and images are
resized inside the graph, without half-pixel centres. FID, Inception Score and precision/recall of other suites
(torch-fidelity, ADM's evaluator) are on these features; no other network's figures compare with them.

Weights are one .safetensors file of float32 tensors, made by `python -m nvg.frozen.convert_inception`, under the
names of weights-inception-2015-12-05-6726825d.pth (torch-fidelity; pytorch-fid's pt_inception-2015-12-05-6726825d.pth):
    {layer}.conv.weight (out, in, rows, columns)                layer: Conv2d_1a_3x3 ... Mixed_7c.branch_pool, 94 in all
    {layer}.bn.{weight,bias,running_mean,running_var} (out,)
    fc.weight (1008, 2048), fc.bias (1008,)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import WeightsError
from nvg.frozen.weights import freeze, read_tensors

SIDE = 299  # pixels a side that the network sees
FEATURES = 2048
CLASSES = 1008  # the graph's outputs; 1000 of them are ImageNet's classes

_KEY = "evaluate.inception_weights"
_EXPECTED = "one .safetensors file with the tensors of weights-inception-2015-12-05-6726825d.pth"
_REMEDY = (
    "Convert the published .pth: python -m nvg.frozen.convert_inception "
    "--weights weights-inception-2015-12-05-6726825d.pth --out inception.safetensors"
)

Branches = dict[str, str]  # name -> its convolutions in order, "width:kernel"; kernels with a comma stand side by side


def _block_5(pool: int) -> Branches:
    return {
        "branch1x1": "64:1x1",
        "branch5x5": "48:1x1 64:5x5",
        "branch3x3dbl": "64:1x1 96:3x3 96:3x3",
        "branch_pool": f"{pool}:1x1",
    }


def _block_6(width: int) -> Branches:
    return {
        "branch1x1": "192:1x1",
        "branch7x7": f"{width}:1x1 {width}:1x7 192:7x1",
        "branch7x7dbl": f"{width}:1x1 {width}:7x1 {width}:1x7 {width}:7x1 192:1x7",
        "branch_pool": "192:1x1",
    }


_BLOCK_7 = {
    "branch1x1": "320:1x1",
    "branch3x3": "384:1x1 384:1x3,3x1",
    "branch3x3dbl": "448:1x1 384:3x3 384:1x3,3x1",
    "branch_pool": "192:1x1",
}
_BLOCKS: dict[str, tuple[str, Branches]] = {  # name -> (what the pooling branch does first, branches)
    "Mixed_5b": ("average", _block_5(pool=32)),
    "Mixed_5c": ("average", _block_5(pool=64)),
    "Mixed_5d": ("average", _block_5(pool=64)),
    "Mixed_6a": ("halve", {"branch3x3": "384:3x3", "branch3x3dbl": "64:1x1 96:3x3 96:3x3", "branch_pool": ""}),
    "Mixed_6b": ("average", _block_6(width=128)),
    "Mixed_6c": ("average", _block_6(width=160)),
    "Mixed_6d": ("average", _block_6(width=160)),
    "Mixed_6e": ("average", _block_6(width=192)),
    "Mixed_7a": (
        "halve",
        {"branch3x3": "192:1x1 320:3x3", "branch7x7x3": "192:1x1 192:1x7 192:7x1 192:3x3", "branch_pool": ""},
    ),
    "Mixed_7b": ("average", _BLOCK_7),
    "Mixed_7c": ("maximum", _BLOCK_7),  # not so in the paper, but in the graph: probably an oversight
}


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
    """Convolution, normalisation, ReLU. kernel: "rows x columns"; padded: at stride 1 the size stays."""

    def __init__(self, width_in: int, width_out: int, kernel: str, *, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        rows, columns = (int(side) for side in kernel.split("x"))
        padding = (rows // 2, columns // 2) if padded else 0
        self.conv = nn.Conv2d(width_in, width_out, (rows, columns), stride, padding, bias=False)
        self.bn = _Normalization(width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches of convolutions, joined over channels: (N, width_in, H, W) -> (N, width, H, W).

    pool "halve" makes it (N, width, (H - 1) // 2, (W - 1) // 2): every branch's last step has stride 2, unpadded.
    """

    def __init__(self, width_in: int, pool: str, branches: Branches) -> None:
        super().__init__()
        halve = pool == "halve"
        self.pool: nn.Module = (
            nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
            if pool == "average"
            else nn.MaxPool2d(3, stride=2 if halve else 1, padding=0 if halve else 1)
        )
        self.branches: dict[str, list[list[str]]] = {}  # of each branch the steps, of each step the submodules' names
        self.width = 0
        for branch, description in branches.items():
            self.branches[branch] = []
            steps, width = description.split(), width_in
            for number, step in enumerate(steps, start=1):
                width_out, kernels = int(step.split(":")[0]), step.split(":")[1].split(",")
                last = number == len(steps)
                names = []
                for kernel, letter in zip(kernels, "ab" if len(kernels) > 1 else [""], strict=True):
                    names.append(f"{branch}_{number}{letter}" if len(steps) > 1 else branch)
                    stride = 2 if halve and last else 1
                    convolution = _Convolution(width, width_out, kernel, stride=stride, padded=stride == 1)
                    self.add_module(names[-1], convolution)
                self.branches[branch].append(names)
                width = width_out * len(kernels)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, steps in self.branches.items():
            y = [self.pool(x) if branch == "branch_pool" else x]
            for names in steps:  # only the last step of a branch has two: y[0] is all there is before
                y = [self.get_submodule(name)(y[0]) for name in names]
            outputs.extend(y)
        return torch.cat(outputs, dim=1)


class Inception(nn.Module):
    """Features and logits of images. Its parameters are frozen, and it stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, "3x3", stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, "3x3")
        self.Conv2d_2b_3x3 = _Convolution(32, 64, "3x3", padded=True)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, "1x1")
        self.Conv2d_4a_3x3 = _Convolution(80, 192, "3x3")
        width = 192
        for name, (pool, branches) in _BLOCKS.items():
            block = _Mixed(width, pool, branches)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, CLASSES)
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
        for name in _BLOCKS:  # 35 pixels a side, from Mixed_6a on 17, from Mixed_7a on 8
            x = self.get_submodule(name)(x)
        features = x.mean(dim=(2, 3))
        return features, F.linear(features, self.fc.weight)

    def train(self, mode: bool = True) -> Inception:
        """Stays in evaluation mode, whatever its owner does."""
        return super().train(False)


def resize_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resizing without align_corners: float (N, C, H, W) -> (N, C, side, side).

    Output i stands at input i * H / side, with no half-pixel centre and no smoothing when it shrinks; beyond the last
    input the last is repeated. Columns come first, as in TensorFlow's kernel, so that results round as they do there.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        place = torch.arange(side, dtype=images.dtype, device=images.device) * (length / side)
        low = place.long()
        share = (place - low).view(-1, 1) if dim == 2 else place - low
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
