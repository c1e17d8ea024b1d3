"""Tokenizer and sampler folders: how they are written, found by name and loaded. No file is a pickle.

    tokenizer.safetensors, config.yaml, metadata.json                                           a tokenizer
    tokenizer.safetensors, content.safetensors, structure.safetensors, config.yaml, metadata.json   a sampler
Both hold averaged weights for use. metadata.json is written last: a folder without it is not finished.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nvg import config as configuration
from nvg import storage, tracking
from nvg.artifacts.files import (
    Unfilled,
    checked_record,
    compare_shapes,
    fill,
    read_tensors,
    shapes,
    shapes_of,
    write_safetensors,
)
from nvg.autoencoder import Autoencoder
from nvg.config import Config, SamplerConfig
from nvg.errors import CheckpointError, ConfigError
from nvg.generator import ContentGenerator, Sampler, StructureGenerator

Module = TypeVar("Module", bound=nn.Module)
PARTS = ("content", "structure")
# What of config.yaml decides how a sampler is built and used. The rest is on record there and not read again, so that a
# later version of the training or evaluation settings still loads it.
MODEL_SECTIONS = ("name", "output", "seed", "data", "tokenizer", "repa", "content", "structure", "sampler")
HALF = "half.json"  # instead of metadata.json, of a sampler that lacks a generator
ASSETS = Path(__file__).parents[1] / "assets"  # samplers that ship with the package


# ---- the tokenizer's folder: tokenizer.safetensors, config.yaml, metadata.json ----


def save_tokenizer(
    folder: str,
    state: Mapping[str, Tensor],
    config: Config,
    *,
    class_names: list[str],
    metadata: Mapping[str, Any],
) -> str:
    """Write a finished tokenizer's (averaged) weights; returns their fingerprint."""
    content = write_tokenizer(folder, state, config, class_names=class_names, metadata=metadata)
    finish_folder(folder, content)
    return content["fingerprint"]


def write_tokenizer(
    folder: str,
    state: Mapping[str, Tensor],
    config: Config,
    *,
    class_names: list[str],
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Write every file of a tokenizer but metadata.json; returns that file's content, for `finish_folder`."""
    mark = fingerprint(state)
    with storage.file_writer(storage.join(folder, "tokenizer.safetensors")) as file:
        write_safetensors(file, state)
    storage.write_bytes(storage.join(folder, "config.yaml"), configuration.to_yaml(config).encode())
    return {"format": storage.FORMAT, "kind": "tokenizer", "fingerprint": mark, "class_names": class_names, **metadata}


def finish_folder(folder: str, metadata: Mapping[str, Any]) -> bool:
    """Write a folder's metadata.json, which says that nothing is left to do; returns whether the folder is complete.

    A sampler that lacks a generator gets half.json instead, until the other generator is exported into the folder.
    """
    half = storage.join(folder, HALF)
    if metadata["kind"] == "sampler" and len(metadata["parts"]) < len(PARTS):
        storage.write_json(half, metadata)
        return False
    storage.write_json(storage.join(folder, storage.LAST_FILE), metadata)
    if storage.exists(half):
        storage.remove(half)
    return True


def load_tokenizer(folder: str) -> Autoencoder:
    """The tokenizer of a folder (path or URL) that holds a tokenizer or a sampler, in evaluation mode.

    Raises CheckpointError when the folder is unfinished or its weights do not fit its configuration or fingerprint.
    """
    metadata = checked_record(folder, "tokenizer", "sampler")
    config = model_config(folder)
    return _load_part(folder, "tokenizer", lambda: Autoencoder(config.tokenizer), tokenizer_fingerprint(metadata))


def tokenizer_fingerprint(metadata: Mapping[str, Any] | str) -> str:
    """The tokenizer's fingerprint, from a tokenizer's or sampler's folder or from its metadata.json."""
    if isinstance(metadata, str):
        metadata = checked_record(metadata, "tokenizer", "sampler")
    return metadata["fingerprint"] if metadata["kind"] == "tokenizer" else metadata["tokenizer"]


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values: 16 hexadecimal digits, the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# ---- the sampler's folder: tokenizer, content and structure .safetensors, config.yaml, metadata.json ----


def export_sampler(
    folder: str,
    *,
    tokenizer: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Config,
    class_names: list[str],
    metadata: Mapping[str, Any],
) -> bool:
    """Write the folder that `nvg.load` reads; returns whether the sampler is complete."""
    content = write_sampler(
        folder, tokenizer=tokenizer, parts=parts, config=config, class_names=class_names, metadata=metadata
    )
    return finish_folder(folder, content)


def write_sampler(
    folder: str,
    *,
    tokenizer: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Config,
    class_names: list[str],
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Write every file of a sampler but metadata.json; returns that file's content, for `finish_folder`.

    parts: averaged weights of `content`, `structure` or both. One alone is added to the one that the folder holds.
    """
    exported = exported_parts(folder)
    half = storage.join(folder, HALF)
    marks = dict(storage.read_json(half).get("weights", {})) if storage.exists(half) else {}
    for name, state in {"tokenizer": tokenizer, **parts}.items():
        if name == "content":  # alignment is a matter of training
            state = {key: value for key, value in state.items() if not key.startswith("align.")}
        marks[name] = fingerprint(state)
        with storage.file_writer(storage.join(folder, f"{name}.safetensors")) as file:
            write_safetensors(file, state)
    storage.write_bytes(storage.join(folder, "config.yaml"), configuration.to_yaml(config).encode())
    return {
        "format": storage.FORMAT,
        "kind": "sampler",
        "parts": [part for part in PARTS if part in exported or part in parts],
        "class_names": class_names,
        "tokenizer": marks["tokenizer"],
        "weights": marks,
        **metadata,
    }


def exported_parts(folder: str) -> list[str]:
    """Which generators a folder holds already: some of content, structure."""
    for name in (storage.LAST_FILE, HALF):
        path = storage.join(folder, name)
        if storage.exists(path):
            try:
                metadata = storage.read_json(path)
                exported = [part for part in PARTS if part in metadata["parts"]]
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path} is damaged ({error!r}): export again") from None
            storage.check_format(metadata, folder, CheckpointError)
            return exported
    return []


def whole_name(name: str) -> str:
    """A sampler's name as every process understands it: a folder's path becomes absolute, from this one's working
    directory, since other nodes have other ones. Names that ship, URLs and models:/ stay."""
    name = configuration.with_home(str(name))
    shipped = (ASSETS / name / storage.LAST_FILE).is_file()
    return storage.absolute(name) if not shipped and not storage.is_url(name) and Path(name).is_dir() else name


def sampler_folder(name: str) -> str:
    """The folder (absolute path or URL) of a sampler's name, as `nvg.load` takes it: one that ships with the package, a
    folder or URL, or `models:/NAME@alias`. Raises CheckpointError (a ValueError) for a name that is none."""
    name = whole_name(name)
    if name.startswith("models:/"):
        return tracking.registered_folder(name)
    if (ASSETS / name / storage.LAST_FILE).is_file():
        return str(ASSETS / name)
    if storage.is_url(name) or Path(name).is_dir():
        return name
    shipped = sorted(path.parent.name for path in ASSETS.glob(f"*/{storage.LAST_FILE}"))
    raise CheckpointError(
        f"no sampler {name!r}: neither a folder nor one of those that ship with nvg "
        f"({', '.join(shipped) or 'none'}): give a folder or URL that pipelines/train.py made, or "
        "models:/NAME@champion"
    )


def look_up(name: str) -> tuple[str, dict[str, Any], Config]:
    """Where a sampler is, its metadata.json and its `model_config`; no weights are read or downloaded.

    name: as `sampler_folder` takes it. One of MLflow's registry is at `models:/NAME/version`.
    """
    if not str(name).startswith("models:/"):
        folder = sampler_folder(name)
        return folder, read_metadata(folder), model_config(folder)
    version = tracking.registered_version(name)
    with tempfile.TemporaryDirectory() as folder:
        tracking.download(version, (storage.LAST_FILE, "config.yaml"), folder)
        return version, read_metadata(folder), model_config(folder)


def licence_of(folder: str) -> str | None:
    """The licence of a tokenizer's or sampler's weights, where metadata.json names one. Raises CheckpointError."""
    licence = read_metadata(folder).get("licence")
    if not isinstance(licence, str | None):
        raise CheckpointError(f"{folder}/metadata.json is damaged: licence must be a string, not {licence!r:.80}")
    return licence


def is_shipped(folder: str) -> bool:
    """Whether a sampler's folder is one of those that ship with the package."""
    return not storage.is_url(folder) and Path(folder).resolve().parent == ASSETS


def load_sampler(folder: str, settings: SamplerConfig | None = None) -> Sampler:
    """The sampler of a folder (path or URL). settings replace the `sampler` section it was trained with.

    Raises CheckpointError when the folder is unfinished, a part was never trained, or weights do not fit.
    """
    exported = [] if storage.exists(storage.join(folder, storage.LAST_FILE)) else exported_parts(folder)
    if len(exported) == 1:
        (part,) = exported
        missing = next(name for name in PARTS if name != part)
        name = model_config(folder).name
        raise CheckpointError(
            f"{folder} holds the {part} generator alone: the {missing} generator is missing. Train it into the same "
            f"folder: python pipelines/train.py --config conf/{name}.yaml 'train.parts=[{missing}]'"
        )
    metadata = checked_record(folder, "sampler")
    config = model_config(folder)
    if len(metadata["class_names"]) != config.data.num_classes:
        raise CheckpointError(
            f"{folder}/metadata.json names {len(metadata['class_names'])} classes, and config.yaml says "
            f"data.num_classes={config.data.num_classes}: one of the two files is of another sampler"
        )
    config.content.repa_block = None  # its projection is not exported
    marks = metadata.get("weights", {})  # the first samplers have none
    content = _load_part(folder, "content", lambda: ContentGenerator(config.content), marks.get("content"))
    structure = _load_part(folder, "structure", lambda: StructureGenerator(config.structure), marks.get("structure"))
    return Sampler(
        load_tokenizer(folder),
        content,
        structure,
        settings or config.sampler,
        metadata["class_names"],
        knows_no_class=_class_dropout(folder) != 0,
    )


def _class_dropout(folder: str) -> float | None:
    """train.class_dropout of a sampler's training, None where its config.yaml does not record it as a number."""
    train = configuration.read_file(storage.join(folder, "config.yaml")).get("train")
    try:
        return float(train["class_dropout"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None


def model_settings(folder: str) -> dict[str, Any]:
    """The sections of a tokenizer's or sampler's config.yaml that say how it is built and used."""
    path = storage.join(folder, "config.yaml")
    content = configuration.read_file(path)  # of a folder that may come from anywhere: no base is followed
    settings = {name: content[name] for name in MODEL_SECTIONS if name in content}
    if "${" in str(settings):
        raise ConfigError(f"{path} holds a ${{...}}, which would be looked up on this machine: put the value there")
    return settings


def model_config(folder: str) -> Config:
    """The configuration that `model_settings` gives, other sections at their defaults. Raises ConfigError naming the
    key that this version does not know, or misses."""
    try:
        return configuration.from_dict(model_settings(folder), where=storage.join(folder, "config.yaml"))
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Where nobody changed that file, another version of nvg than this one wrote it (which reads "
            f"format {storage.FORMAT}): use that version, or make the artifact again"
        ) from None


def read_metadata(folder: str) -> dict[str, Any]:
    """metadata.json of a tokenizer's or sampler's folder. Raises CheckpointError when it is not there or unreadable."""
    return checked_record(folder, "tokenizer", "sampler")


FORM_FIELDS = {"content": "content.position_network", "structure": "structure.canvas_tokens"}


def _compare_forms(folder: str, name: str, expected: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming the field, where a generator's weights are of another form than config.yaml says:
    with a position network or without one (docs/method.md, cluster tokens)."""
    asked, has = (any(key.startswith("position_network.") for key in keys) for keys in (expected, state))
    if name in FORM_FIELDS and asked != has:
        raise CheckpointError(
            f"{folder}/config.yaml: {FORM_FIELDS[name]} does not fit {name}.safetensors, whose weights have "
            f"{'a' if has else 'no'} position network: the two files are of different trainings"
        )


def _load_part(folder: str, name: str, build: Callable[[], Module], mark: str | None) -> Module:
    """A module with the weights of a file, for use. mark: their fingerprint, where it is known."""
    state = read_tensors(folder, name)
    where = f"{folder}/{name}.safetensors"
    expected = shapes_of(build)  # a configuration of another size is refused before memory is taken for it
    _compare_forms(folder, name, expected, state)
    compare_shapes(expected, shapes(state), where)
    if mark is not None and fingerprint(state) != mark:
        raise CheckpointError(f"{where} is damaged: its fingerprint differs from metadata.json")
    with Unfilled():
        module = build()
    fill(module, state, where)
    module.eval().requires_grad_(False)
    return module
