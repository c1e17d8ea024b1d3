"""The published checkpoints, read without trust: pickles of PyTorch Lightning, of which nothing but tensors comes out.

`read_checkpoint` starts this file as a process that does nothing else. It compares the sizes that the file claims with
the file itself, loads it by torch.load(weights_only=True, mmap=True), which runs no code and reads only what is used,
and writes the tensors that are needed as safetensors, one by one.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nvg.artifacts.files import DTYPES, write_safetensors
from nvg.errors import CheckpointError

PICKLE_BYTES = 2**26  # the most that a checkpoint's pickle may have: names and shapes of tensors, a few MB
SPARE_BYTES = 2**32  # memory of the reading process beyond the mapped file: Python, torch, threads
AGAIN = "get the file again from the authors' model page"


@dataclass(frozen=True)
class Kind:
    """One of the two published files: which tensors are used, and which are deliberately not."""

    name: str
    option: str  # of `nvg import-release`
    used: tuple[str, ...]  # prefixes
    stripped: str  # the part of the prefix that is no part of the converted names
    ignored: tuple[str, ...]  # prefixes


# The generators were trained on the tokenizer's weights as trained, and are sampled with averages of their own weights.
TOKENIZER = Kind(
    name="tokenizer",
    option="--tokenizer",
    used=("encoder.", "decoder.", "quantize."),
    stripped="",
    ignored=(
        "ema_model.",  # averages, which the generators have never seen
        "loss.",  # LPIPS and discriminator, for training alone
        "total_visited_codes",  # a counter of training
    ),
)
GENERATORS = Kind(
    name="generators",
    option="--generators",
    used=("ema_model.nvgformer.",),
    stripped="ema_model.nvgformer.",
    ignored=(
        "nvgformer.",  # the weights as trained, without averaging
        "first_stage_model.",  # the tokenizer once more
        "repa_encoder.",  # DINOv2, for training alone
    ),
)
KINDS = {kind.name: kind for kind in (TOKENIZER, GENERATORS)}


@dataclass(frozen=True)
class Released:
    """The tensors of a published file that are used."""

    tensors: dict[str, Tensor]
    unknown: list[str]  # names of tensors that are neither used nor known as left out


def read_checkpoint(path: Path, kind: Kind, scratch: Path) -> Released:
    """The used tensors of a published file, mapped from a file in `scratch` that has no name any more.

    Raises CheckpointError, of one line, for a file that is cut off, foreign, of the other kind or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"{kind.option} {path}: no such file")
    taken = scratch / f"{kind.name}.taken"
    command = [sys.executable, "-m", "nvg.released.checkpoints", kind.name, str(path), str(taken)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{kind.option} {path}: reading it ended with exit code {done.returncode} ({last}): is there memory for "
            "the file, and room beside the output?"
        ) from None
    if "error" in answer:
        raise CheckpointError(f"{kind.option} {path} {answer['error']}")
    tensors = load_file(taken)
    taken.unlink()  # what is mapped stays until it is let go
    return Released(tensors, answer["unknown"])


# ---- the process that reads ----


def main(argv: list[str]) -> None:
    """Write the used tensors of a file; print {"unknown": names}, or {"error": the end of a sentence on the file}."""
    name, path, out = argv
    most = Path(path).stat().st_size + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # weights_only lets a pickle ask for a bytearray of any size
    try:
        answer: dict[str, Any] = {"unknown": extract(path, KINDS[name], Path(out))}
    except CheckpointError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def extract(path: str, kind: Kind, out: Path) -> list[str]:
    """Write the used tensors of a checkpoint to `out`; returns the names that are neither used nor known as left out.

    Raises CheckpointError, whose message goes on from the file's name.
    """
    check_sizes(path)
    state = load_state(path)
    used = {key: value for key, value in state.items() if key.startswith(kind.used)}
    if not used:
        raise CheckpointError(_foreign(state, kind))
    for key, value in used.items():
        check_tensor(key, value)
    with out.open("wb") as file:
        write_safetensors(file, {key.removeprefix(kind.stripped): value for key, value in used.items()})
    return [key for key in state if key not in used and not key.startswith(kind.ignored)]


def check_sizes(path: str) -> None:
    """Raises CheckpointError for a file that is no archive of torch.save, or claims to hold more than it has bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeDecodeError):
        raise CheckpointError(f"is cut off, or no checkpoint of torch.save: {AGAIN}") from None
    claimed = sum(member.file_size for member in members)
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or claimed > Path(path).stat().st_size:
        raise CheckpointError(f"claims {claimed} bytes of content, more than the file stores: {AGAIN}")
    if any(member.filename.endswith(".pkl") and member.file_size > PICKLE_BYTES for member in members):
        raise CheckpointError(f"has a pickle of more than {PICKLE_BYTES} bytes, which no checkpoint needs: {AGAIN}")


def load_state(path: str) -> dict[str, Tensor]:
    """The state_dict of a Lightning checkpoint, mapped from the file. Raises CheckpointError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise CheckpointError(f"asks for more memory than its content needs: {AGAIN}") from None
    except Exception as error:  # its reader raises many types on what is no file of tensors
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(f"asks to run code ({code[1]}) and was not loaded: {AGAIN}") from None
        raise CheckpointError(f"is damaged ({type(error).__name__}): {AGAIN}") from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError("holds no state_dict: it is no checkpoint of the released trainings")
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def check_tensor(key: str, value: Tensor) -> None:
    """Raises CheckpointError for a tensor that is no plain one, or claims more numbers than are stored."""
    if value.layout != torch.strided or value.is_quantized or value.dtype not in DTYPES or value.device.type != "cpu":
        raise CheckpointError(f"holds {key} in a form that weights do not have ({value.dtype}): {AGAIN}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"claims {value.numel()} numbers of {key}, more than the file stores: {AGAIN}")


def _foreign(state: Mapping[str, Tensor], kind: Kind) -> str:
    """What to say of a checkpoint without one tensor that is used."""
    for other in KINDS.values():
        if other is not kind and any(key.startswith(other.used) for key in state):
            return f"holds the {other.name}: give it as {other.option}"
    if any(key.startswith(kind.ignored) for key in state):
        return f"holds no tensor under {', '.join(kind.used)}, the weights that are used: {AGAIN}"
    names = ", ".join(sorted({key.split(".")[0] for key in state})[:4]) or "no tensors"
    return f"is of another model (it holds {names}): give the published {kind.name}"


if __name__ == "__main__":
    main(sys.argv[1:])
