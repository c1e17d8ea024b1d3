"""Finding the weights of frozen networks (VGG16, DINO, DINOv2, Inception): one clear message when they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nvg import storage
from nvg.errors import WeightsError


def read_tensors(url: str, *, key: str, expected: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of one .safetensors file, path or URL.

    key: the configuration key that names the file; expected: what the file holds; remedy: how to make it. Raises
    WeightsError with the three of them when the file is missing or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise WeightsError(f"{key}={url}: cannot be read ({error}). Expected: {expected}. {remedy}") from error
    try:
        return load(data)
    except SafetensorError as error:
        raise WeightsError(f"{key}={url}: not a safetensors file ({error}). Expected: {expected}. {remedy}") from error


def load_vit(url: str, *, key: str, class_name: str, model: str, **options: Any) -> Any:
    """A frozen vision transformer from a folder as model hubs lay it out (config.json, model.safetensors).

    class_name: the class in `transformers`, an optional extra; model: the hub's name of the folder, for the message.
    Returns the `transformers` module.
    Nothing is downloaded from a hub, and pickled weights are refused. Raises WeightsError when the folder or a file
    is missing or the weights do not fill the model, ImportError when `transformers` is not installed.
    """
    from safetensors import SafetensorError

    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{key}={url} needs the package `transformers`: pip install 'nvg[vit]', or set {key}=null"
        ) from error
    expected = f"Expected: a folder with config.json and model.safetensors of {model}"
    folder = _vit_folder(url, key, expected)
    try:
        network, info = getattr(transformers, class_name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # damaged files, shapes that differ
        raise WeightsError(f"{key}={url}: the folder cannot be loaded ({error}). {expected}") from error
    # transformers fills what it does not find with random numbers and only logs it.
    missing = sorted(info["missing_keys"]) + sorted(str(item) for item in info.get("mismatched_keys", ()))
    if missing:
        raise WeightsError(f"{key}={url}: model.safetensors does not hold {', '.join(missing[:3])} … . {expected}")
    return freeze(network)


def _vit_folder(url: str, key: str, expected: str) -> Path:
    """The local folder, or local copy, of a vision transformer. Raises WeightsError where a file is missing."""
    try:
        folder = storage.local_folder(url)
    except FileNotFoundError as error:
        raise WeightsError(f"{key}={url}: no such folder. {expected}, or set {key}=null") from error
    except OSError as error:
        raise WeightsError(f"{key}={url}: cannot be read ({error}). {expected}") from error
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{key}={url}: the folder has no config.json. {expected}")
    if not (folder / "model.safetensors").is_file():
        remedy = ""
        if (folder / "pytorch_model.bin").is_file():
            remedy = f". Make it: python -m nvg.frozen.convert vit --folder {url}"
        raise WeightsError(f"{key}={url}: the folder has no model.safetensors. {expected}{remedy}")
    return folder


def freeze(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its parameters without gradient; gradients still flow through to its input."""
    return network.eval().requires_grad_(False)
