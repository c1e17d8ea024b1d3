"""The writer of safetensors: what the library reads, and the same bytes for the same content."""

import os
import subprocess
import sys

import pytest
import torch

from nvg import storage
from nvg.artifacts.files import DTYPES, write_safetensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_what_is_written(tmp_path, dtype):
    tensors = {"matrix": torch.arange(6).reshape(2, 3).to(dtype), "odd": torch.ones(3), "number": torch.tensor(7)}
    tensors["turned"] = tensors["matrix"].T  # not contiguous
    with storage.file_writer(f"{tmp_path}/a.safetensors") as file:
        write_safetensors(file, tensors)
    metadata, read = storage.read_safetensors(f"{tmp_path}/a.safetensors")
    assert metadata == {} and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())


@pytest.mark.slow
def test_equal_tensors_and_metadata_are_equal_bytes_whoever_writes_them(tmp_path):
    """Classifiers and references are named by a hash of their file."""
    program = (
        "import sys, torch; from nvg.artifacts.files import write_safetensors\n"
        "tensors = {name: torch.arange(5.0) for name in ('b', 'a', 'odd')}\n"
        "write_safetensors(sys.stdout.buffer, tensors, {str(key): 'x' * key for key in range(9)})"
    )
    other = os.environ | {"PYTHONHASHSEED": "1"}  # other orders of sets
    written = subprocess.run([sys.executable, "-c", program], env=other, stdout=subprocess.PIPE, check=True).stdout
    with storage.file_writer(f"{tmp_path}/file.safetensors") as file:
        tensors = {name: torch.arange(5.0) for name in ("odd", "a", "b")}
        write_safetensors(file, tensors, {str(key): "x" * key for key in reversed(range(9))})
    assert written == (tmp_path / "file.safetensors").read_bytes()
    metadata, tensors = storage.read_safetensors(f"{tmp_path}/file.safetensors")
    assert metadata == {str(key): "x" * key for key in range(9)}
    assert tensors.keys() == {"a", "b", "odd"} and all(torch.equal(t, torch.arange(5.0)) for t in tensors.values())
