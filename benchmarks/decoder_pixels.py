"""How far does the decoder in bfloat16 move pixels? Levels of 255, against float32, on any machine.

    python -m benchmarks.decoder_pixels [--model fashion-mnist-fast] [--pictures 240]
    python -m benchmarks.decoder_pixels --config conf/imagenet_d16.yaml --grid 4 --pictures 4

--model: the decoder of a model, on canvases of pictures that it draws. --config: a decoder of these
sizes with random weights, on random canvases of --grid x --grid positions, its output scaled as pictures are.
Forms: all of it under autocast; and in bfloat16 but for its end, the last residual block or all of the last resolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import nvg
from benchmarks.autoencoder_forms import EndInFloat32
from nvg import config as configuration
from nvg.autoencoder.layers import Decoder
from nvg.generator.batches import to_pixels

BATCH = 20
SEED = 1000


def forms(decoder: Decoder, canvas: Tensor) -> dict[str, Tensor]:
    """Images by form, of canvases (N, e, h, w)."""
    last_resolution = max(index for index, layer in enumerate(decoder.body) if isinstance(layer, nn.Upsample))
    with torch.autocast(canvas.device.type, torch.bfloat16):
        half = decoder(canvas)
    return {
        "all of it in bfloat16": half,
        "the last block in float32": EndInFloat32(decoder)(canvas),
        "the last resolution in float32": EndInFloat32(decoder, last_resolution)(canvas),
    }


def drawn(model: str, pictures: int) -> Iterator[tuple[Decoder, Tensor]]:
    """The decoder of a model, and canvases of pictures that it draws, batch by batch."""
    sampler = nvg.load(model)
    grid = sampler.tokenizer.config.grid
    for first in range(0, pictures, BATCH):
        classes = [number % len(sampler.class_names) for number in range(first, min(first + BATCH, pictures))]
        *_, last = sampler.stages(classes, seed=SEED + first)
        yield sampler.tokenizer.decoder, last.canvas.transpose(1, 2).unflatten(2, (grid, grid))


def random(path: str, grid: int, pictures: int) -> Iterator[tuple[Decoder, Tensor]]:
    """A decoder with random weights, and random canvases, one by one."""
    sizes = configuration.load(path).tokenizer
    torch.manual_seed(0)
    decoder = Decoder(sizes).eval().requires_grad_(False)
    canvases = torch.randn(pictures, sizes.code_width, grid, grid)
    decoder.last_layer.weight /= 2 * decoder(canvases[:1]).std()
    yield from ((decoder, canvas) for canvas in canvases.split(1))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="fashion-mnist-fast")
    parser.add_argument("--config", help="a decoder of these sizes with random weights, in place of a model's")
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=240)
    arguments = parser.parse_args()
    few = arguments.pictures
    differences: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        batches = random(arguments.config, arguments.grid, few) if arguments.config else drawn(arguments.model, few)
        for decoder, canvas in batches:
            plain = torch.from_numpy(to_pixels(decoder(canvas))).int()
            for form, images in forms(decoder, canvas).items():
                moved = (torch.from_numpy(to_pixels(images)).int() - plain).abs()
                differences.setdefault(form, []).append(moved.flatten())
    print(f"{arguments.config or arguments.model}, {few} pictures\n| form | most levels | moved | by more than one |")
    print("| --- " * 4 + "|")
    for form, parts in differences.items():
        levels = torch.cat(parts)
        shares = [f"{(levels > least).float().mean():.4%}" for least in (0, 1)]
        print(f"| {form} | {int(levels.max())} | {shares[0]} | {shares[1]} |")


if __name__ == "__main__":
    main()
