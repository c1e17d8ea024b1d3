"""Which form of encoder and decoder is the fastest on this machine? Images a second, random weights, no gradients.

    python -m benchmarks.autoencoder_forms [--config conf/imagenet_d16.yaml] [--images 32] [--device cuda] [--rounds 5]
    python -m benchmarks.autoencoder_forms --config conf/fashion_mnist.yaml --eager

Forms: float32, TF32 (on a GPU), bfloat16 (autocast) or, of the decoder, bfloat16 with its end in float32; weights and
images as they are or channels-last; eager or compiled. Forms take turns within each round; the figure is of the median.
"levels" is the greatest difference of a decoded pixel from float32, eager, as it is, in levels of 255: a form of the
decoder that moves one by more than 1 changes pictures.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import median_seconds
from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.autoencoder.layers import Decoder
from nvg.generator.batches import to_pixels
from nvg.precision import set_precision

MIXED = "bfloat16 but the end"


class EndInFloat32(nn.Module):
    """A decoder in bfloat16 but for its end: its body from the layer `first` on, the norm and the output layer."""

    def __init__(self, decoder: Decoder, first: int = -1) -> None:
        super().__init__()
        decoder = copy.deepcopy(decoder)
        body = list(decoder.body)
        self.start = nn.Sequential(decoder.stem, decoder.middle, *body[:first]).to(torch.bfloat16)
        self.end = nn.Sequential(*body[first:], decoder.norm, nn.SiLU(), decoder.last_layer, decoder.unpatch)

    def forward(self, canvas: Tensor) -> Tensor:
        images: Tensor = self.end(self.start(canvas.to(torch.bfloat16)).float())
        return images


def call(module: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """One pass in a precision, done when this returns."""
    device = inputs.device
    set_precision("bfloat16" if precision == MIXED else precision, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        result: Tensor = module(inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result


def forms(module: nn.Module, inputs: Tensor, *, eager: bool = False) -> dict[str, Callable[[], Tensor]]:
    """A pass of every form by name, the plain one first; eager: of those that are not compiled."""
    precisions = ["float32", *["tf32"] * inputs.is_cuda, "bfloat16", *[MIXED] * isinstance(module, Decoder)]
    variants: dict[str, Callable[[], Tensor]] = {}
    both = (False, True)
    for precision, last, compiled in itertools.product(precisions, both, both[:1] if eager else both):
        layout = torch.channels_last if last else torch.contiguous_format
        network = EndInFloat32(module) if precision == MIXED else copy.deepcopy(module)  # type: ignore[arg-type]
        network = network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs
        if compiled:
            network.compile(dynamic=False)
        name = ", ".join([precision, *["channels-last"] * last, *["compiled"] * compiled])
        variants[name] = partial(call, network, inputs.contiguous(memory_format=layout), precision)
    return variants


def levels(images: Tensor, plain: Tensor) -> int:
    """The greatest difference of a pixel of images (N, C, H, W), in levels of 255."""
    return int(abs(to_pixels(images).astype(int) - to_pixels(plain).astype(int)).max())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="leave the compiled forms out")
    arguments = parser.parse_args()
    sizes = configuration.load(arguments.config).tokenizer
    torch.manual_seed(0)
    model = Autoencoder(sizes).eval().requires_grad_(False).to(arguments.device)
    images = torch.rand(arguments.images, sizes.channels, *[sizes.image_size] * 2, device=arguments.device) * 2 - 1
    for name, module in (("encoder", model.encoder), ("decoder", model.decoder)):
        inputs = images if name == "encoder" else model.encoder(images)
        with torch.inference_mode():
            variants = forms(module, inputs, eager=arguments.eager)
            outputs = {form: run() for form, run in variants.items()}  # compiles
            seconds = median_seconds(variants, arguments.rounds)
        plain = outputs["float32"]
        for form, taken in seconds.items():
            moved = f"{levels(outputs[form], plain):4d} levels" if name == "decoder" else ""
            print(f"{name:<9}{form:<36}{arguments.images / taken:10.1f} images/s {moved}", flush=True)


if __name__ == "__main__":
    main()
