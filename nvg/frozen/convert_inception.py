"""Make the .safetensors weights of the FID feature network from the file in which they are published.

    python -m nvg.frozen.convert_inception --weights weights-inception-2015-12-05-6726825d.pth \\
        --out inception.safetensors

The .pth is an asset of torch-fidelity's release v0.2.0 on GitHub; pt_inception-2015-12-05-6726825d.pth of pytorch-fid's
release fid_weights holds the same tensors. torchvision's inception_v3 is another network.
Pickled files are read with torch.load(weights_only=True), which runs no code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nvg.frozen.convert import read_state, write_tensors
from nvg.frozen.inception import misfits, tensor_shapes


def convert_inception(weights: Path, out: Path) -> None:
    """The published .pth -> one .safetensors file with the names of nvg/frozen/inception.py.

    Raises FileNotFoundError for a missing input and ValueError for one whose tensors are not exactly those, by name
    and shape.
    """
    # Counters that training leaves behind; some copies of the file have them.
    state = {k: v for k, v in read_state(weights).items() if not k.endswith(".num_batches_tracked")}
    if wrong := misfits(state):
        raise ValueError(f"{weights}: {wrong}: is it the right file?")
    if foreign := sorted(state.keys() - tensor_shapes().keys()):
        raise ValueError(f"{weights} has tensors that are not Inception's ({foreign[0]} ...): is it the right file?")
    write_tensors({name: value.float() for name, value in state.items()}, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights-inception-2015-12-05-6726825d.pth")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        convert_inception(options.weights, options.out)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
