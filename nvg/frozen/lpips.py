"""LPIPS, the perceptual distance on VGG16 features, written out in torch.

Source: Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric"
(arXiv 1801.03924), eq. 1, version 0.1 of its weights. With y_l and y0_l the features of the two images at tap l,
normalised to unit length over channels at every position:
    d(x, x0) = sum over l of mean over positions of w_l . (y_l - y0_l)^2

Weights are one .safetensors file of float32 tensors, made by `python -m nvg.frozen.convert lpips`:
    features.{i}.weight (out, in, 3, 3), features.{i}.bias (out,)  VGG16: i in CONVOLUTIONS, numbered as torchvision's
    lin{l}.weight (1, channels, 1, 1)                              the heads w_l: l = 0 ... 4, no value below 0
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import WeightsError
from nvg.frozen.weights import freeze, read_tensors

TAPS = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]  # widths of VGG16's convolutions
CONVOLUTIONS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # their places in torchvision's `vgg16().features`
MINIMUM_SIDE = 16  # pixels: four poolings leave one position

_KEY = "tokenizer_train.lpips_weights"
_EXPECTED = "one .safetensors file with VGG16's features.{i}.weight/bias and the LPIPS heads lin{0..4}.weight"
_REMEDY = (
    "Make it from torchvision's vgg16 .pth and the LPIPS v0.1 vgg.pth: python -m nvg.frozen.convert lpips "
    f"--vgg vgg16.pth --heads vgg.pth --out lpips.safetensors, or switch the loss off with {_KEY}=null"
)


class LPIPS(nn.Module):
    """Perceptual distance of image pairs. Its parameters are frozen; gradients flow to both images."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # ImageNet's mean and deviation, for pixels in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.features = nn.ModuleDict()
        numbers, width_in = iter(CONVOLUTIONS), 3
        for widths in TAPS:
            for width in widths:
                self.features[str(next(numbers))] = nn.Conv2d(width_in, width, 3, padding=1)
                width_in = width
        for tap, widths in enumerate(TAPS):
            self.add_module(f"lin{tap}", nn.Conv2d(widths[-1], 1, 1, bias=False))
        freeze(self)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances: two (N, C, H, W) in [-1, 1] with C = 1 (grey, repeated) or 3 -> (N,), at least 0.

        Raises ValueError when the shapes differ, C is neither 1 nor 3, or a side is below 16 pixels.
        """
        if images.shape != references.shape:
            raise ValueError(f"LPIPS takes pairs of one shape, got {tuple(images.shape)}, {tuple(references.shape)}")
        if images.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS takes images of 1 or 3 channels, got {images.shape[1]}")
        if min(images.shape[2:]) < MINIMUM_SIDE:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for LPIPS, which takes a side "
                f"of {MINIMUM_SIDE} at least: set {_KEY}=null or a larger data.image_size"
            )
        count = images.shape[0]
        distance = images.new_zeros(count)
        for tap, features in enumerate(self.tap_features(torch.cat((images, references)))):
            y, y0 = _unit_length(features).split(count)  # (N, c, h, w) each
            head = self.get_submodule(f"lin{tap}")
            distance = distance + head((y - y0).square()).mean(dim=(1, 2, 3))
        return distance

    def tap_features(self, images: Tensor) -> list[Tensor]:
        """The features after the last ReLU of each of VGG16's five groups: (N, C, H, W) -> 5 tensors (N, c, h, w)."""
        x = (images - self.shift) / self.scale  # a grey image is repeated here, by broadcasting
        taps: list[Tensor] = []
        numbers = iter(CONVOLUTIONS)
        for widths in TAPS:
            if taps:
                x = F.max_pool2d(x, 2)
            for _ in widths:
                x = F.relu(self.features[str(next(numbers))](x))
            taps.append(x)
        return taps

    def train(self, mode: bool = True) -> LPIPS:
        """The network stays in evaluation mode, whatever mode is asked for."""
        return super().train(False)


def _unit_length(features: Tensor) -> Tensor:
    """Unit l2 length over channels, zeros stay zeros: (N, c, h, w) -> (N, c, h, w).

    The clamp stands inside the root: a position whose features are all 0 would otherwise have an infinite gradient.
    """
    return features / features.square().sum(dim=1, keepdim=True).clamp_min(1e-20).sqrt()


def load_lpips(url: str) -> LPIPS:
    """LPIPS with the weights of a .safetensors file, path or URL (tensor names: see the head of this file).

    Raises WeightsError (a FileNotFoundError) when the file is missing or does not hold those tensors.
    """
    tensors = read_tensors(url, key=_KEY, expected=_EXPECTED, remedy=_REMEDY)
    lpips = LPIPS()
    expected = lpips.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise WeightsError(f"{_KEY}={url}: tensor {name} is missing. Expected: {_EXPECTED}. {_REMEDY}")
        if tensors[name].shape != value.shape:
            raise WeightsError(
                f"{_KEY}={url}: tensor {name} has shape {tuple(tensors[name].shape)}, VGG16's is {tuple(value.shape)}. "
                f"{_REMEDY}"
            )
    lpips.load_state_dict({name: tensors[name].float() for name in expected})
    return lpips
