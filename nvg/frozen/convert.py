"""Make the .safetensors weights of the frozen networks from the files in which they are published.

    python -m nvg.frozen.convert lpips --vgg vgg16-397923af.pth --heads vgg.pth --out lpips.safetensors
    python -m nvg.frozen.convert vit --folder dino-vits16
    python -m nvg.frozen.convert inception --weights weights-inception-2015-12-05-6726825d.pth \\
        --out inception.safetensors

lpips: torchvision's VGG16 and the heads of LPIPS v0.1 become one file. The heads are weights/v0.1/vgg.pth in the
authors' Python package `lpips` (`pip download --no-deps lpips`, a zip file of 50 kB).
vit: adds model.safetensors to a model-hub folder that has only pytorch_model.bin.
inception: the feature network of FID. The .pth is an asset of torch-fidelity's release v0.2.0 on GitHub;
pt_inception-2015-12-05-6726825d.pth of pytorch-fid's release fid_weights holds the same tensors. torchvision's
inception_v3 is another network.
Pickled files are read with torch.load(weights_only=True), which runs no code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nvg.frozen import inception
from nvg.frozen.lpips import CONVOLUTIONS, LPIPS, TAPS


def convert_lpips(vgg: Path, heads: Path, out: Path) -> None:
    """VGG16 of torchvision and LPIPS heads -> one .safetensors file with the names of nvg/frozen/lpips.py.

    Raises FileNotFoundError for a missing input and ValueError for one that lacks a tensor or has another shape.
    """
    vgg_state, head_state = read_state(vgg), read_state(heads)
    tensors = {}
    for number in CONVOLUTIONS:
        for kind in ("weight", "bias"):
            tensors[f"features.{number}.{kind}"] = _take(vgg_state, [f"features.{number}.{kind}"], vgg)
    for tap in range(len(TAPS)):  # published as lin0.model.1.weight: a dropout stands before the convolution
        tensors[f"lin{tap}.weight"] = _take(head_state, [f"lin{tap}.model.1.weight", f"lin{tap}.weight"], heads)
    for name, value in LPIPS().state_dict().items():
        if tensors[name].shape != value.shape:
            source = heads if name.startswith("lin") else vgg
            raise ValueError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}")
    write_tensors(tensors, out)


def convert_vit(folder: Path) -> Path:
    """pytorch_model.bin of a model-hub folder -> model.safetensors beside it; returns its path.

    Raises FileNotFoundError when there is no pytorch_model.bin.
    """
    out = folder / "model.safetensors"
    write_tensors(read_state(folder / "pytorch_model.bin"), out)
    return out


def convert_inception(weights: Path, out: Path) -> None:
    """The published .pth -> one .safetensors file with the names of nvg/frozen/inception.py.

    Raises FileNotFoundError for a missing input and ValueError for one whose tensors are not exactly those, by name
    and shape.
    """
    # Counters that training leaves behind; some copies of the file have them.
    state = {k: v for k, v in read_state(weights).items() if not k.endswith(".num_batches_tracked")}
    if wrong := inception.misfits(state):
        raise ValueError(f"{weights}: {wrong}: is it the right file?")
    if foreign := sorted(state.keys() - inception.tensor_shapes().keys()):
        raise ValueError(f"{weights} has tensors that are not Inception's ({foreign[0]} ...): is it the right file?")
    write_tensors({name: value.float() for name, value in state.items()}, out)


# ---- files ----


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state_dict. Raises FileNotFoundError, or ValueError for a file of something else."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its reader raises many types on what is no file of tensors
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(f"{path} holds something else than plain tensors, and was not loaded: {reason[0]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors (a state_dict)")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _take(state: dict[str, Tensor], names: list[str], path: Path) -> Tensor:
    """The first of some tensors that a state_dict has, as float32."""
    for name in names:
        if name in state:
            return state[name].float()
    raise ValueError(f"{path} has no tensor {' or '.join(names)}: is it the right file?")


def write_tensors(tensors: dict[str, Tensor], out: Path) -> None:
    """One local .safetensors file, its folders made; it appears under its name when it is complete."""
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        # Clones, because safetensors refuses tensors that share memory.
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, temporary, metadata={"format": "pt"})
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


# ---- the command ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    lpips = commands.add_parser("lpips", help="VGG16 and LPIPS heads for tokenizer_train.lpips_weights")
    lpips.add_argument("--vgg", type=Path, required=True, help="torchvision's vgg16 .pth")
    lpips.add_argument("--heads", type=Path, required=True, help="vgg.pth of LPIPS v0.1")
    lpips.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    vit = commands.add_parser("vit", help="DINO or DINOv2 folder for discriminator_weights or repa.weights")
    vit.add_argument("--folder", type=Path, required=True, help="folder with config.json and pytorch_model.bin")
    fid = commands.add_parser("inception", help="the feature network of FID for evaluate.inception_weights")
    fid.add_argument("--weights", type=Path, required=True, help="weights-inception-2015-12-05-6726825d.pth")
    fid.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "vit":
            out = convert_vit(options.folder)
        else:
            out = options.out
            if options.command == "lpips":
                convert_lpips(options.vgg, options.heads, out)
            else:
                convert_inception(options.weights, out)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
