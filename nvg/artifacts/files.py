"""Files of artifacts that hold tensors: metadata.json and safetensors, checked when they are read.

Whatever a folder holds may come from anywhere: nothing is believed, and every refusal names the file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nvg import storage
from nvg.errors import CheckpointError

AGAIN = "copy the folder again, or make it again"
# What metadata.json must hold to be used, by kind.
FIELDS: dict[str, dict[str, type]] = {
    "training": {"step": int, "files": dict, "identity": str, "ema_updates": dict},
    "tokenizer": {"fingerprint": str, "class_names": list},
    "sampler": {"tokenizer": str, "class_names": list, "parts": list},
}
DTYPES = {  # of tensors that artifacts hold, as the safetensors format names them
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
}
_CHUNK = 1 << 22  # bytes read at once for a checksum


class Writable(Protocol):
    """What can be written to, as a binary file."""

    def write(self, data: Any, /) -> Any:
        """Write some bytes."""


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a complete state into a module. Raises CheckpointError naming the tensors that do not fit."""
    compare_shapes(shapes(module.state_dict()), shapes(state), where)
    module.load_state_dict(dict(state))


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor by its name."""
    return {name: value.shape for name, value in tensors.items()}


class Unfilled(TorchFunctionMode):
    """Within it a module is built without the numbers that it begins with, since a file has others: drawing them takes
    seconds, and on the meta device the import of torch.compile."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """The shape of each tensor of a module that is built without memory, by its name."""
    with torch.device("meta"), Unfilled():
        return shapes(build().state_dict())


def compare_shapes(expected: Mapping[str, torch.Size], saved: Mapping[str, torch.Size], where: str) -> None:
    """Raises CheckpointError naming the tensors of file `where` that are missing, foreign or of another shape."""
    faults = [f"{name} is missing" for name in expected if name not in saved]
    faults += [f"{name} is not part of the model" for name in saved if name not in expected]
    faults += [
        f"{name} has shape {tuple(saved[name])}, the model {tuple(shape)}"
        for name, shape in expected.items()
        if name in saved and saved[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{where} does not fit the configuration: {'; '.join(faults[:3])}{more}")


def checked_record(folder: str, *kinds: str) -> dict[str, Any]:
    """metadata.json of a folder of one of the kinds (FIELDS). Raises CheckpointError naming what is wrong with it."""
    path = storage.join(folder, storage.LAST_FILE)
    if not storage.exists(path):
        raise CheckpointError(
            f"{folder} has no metadata.json: it is no folder of this project, or its job has not finished"
        )
    try:
        metadata = storage.read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}: {AGAIN}") from None
    if not isinstance(metadata, dict) or metadata.get("kind") not in kinds:
        kind = metadata.get("kind") if isinstance(metadata, dict) else None
        raise CheckpointError(
            f"{folder} holds a {kind or 'thing of unknown kind'}: give the folder of a {' or '.join(kinds)}"
        )
    storage.check_format(metadata, folder, CheckpointError)
    for name, kind in FIELDS[metadata["kind"]].items():
        if type(metadata.get(name)) is not kind:
            value = f"{metadata.get(name)!r:.80}"
            raise CheckpointError(f"{path} is damaged: {name} must be a {kind.__name__}, not {value}: {AGAIN}")
    if not isinstance(metadata.get("weights", {}), dict):
        raise CheckpointError(f"{path} is damaged: weights must be fingerprints by name: {AGAIN}")
    names = metadata.get("class_names", [])
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is damaged: class_names must be strings, not {names!r:.80}: {AGAIN}")
    return metadata


def read_tensors(folder: str, name: str) -> dict[str, Tensor]:
    """The tensors of `folder`/`name`.safetensors. Raises CheckpointError when it is missing or damaged."""
    path = storage.local_folder(folder) / f"{name}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {name}.safetensors: {AGAIN}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{folder}/{name}.safetensors is damaged ({error}): {AGAIN}") from None


def write_safetensors(file: Writable, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the safetensors format a tensor at a time: beside the tensors themselves it takes the memory of one.

    The library's own functions hold two more copies of all of them, and write metadata in a random order, while files
    are told apart by a hash of their bytes. Tensors of wider types come first, so that each begins at a multiple of its
    type's size.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def checksum(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return {"size": path.stat().st_size, "crc32": crc}
