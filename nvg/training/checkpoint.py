"""Checkpoints of a training and the folders that a finished one leaves: safetensors, YAML and JSON, never pickle.

A training checkpoint is a folder `step-00000500`:
    model.safetensors      every trained module, `<module>.<tensor>`
    ema.safetensors        the averaged modules, the same names
    optimizer.safetensors  `<optimizer>/<parameter>/<exp_avg | exp_avg_sq | step>`
    config.yaml            the resolved configuration
    metadata.json          step, MLflow run, seed, fingerprints, size and checksum of every file
Of weights that are split over workers (train.parallel=fsdp) each worker writes its own rows, `model-00001-of-00004.
safetensors`; any number of workers reads them again.
Every random draw of a step is a function of (seed, step, slice of the batch), so metadata.json holds the whole state of
the random numbers. The folder gets its name when it is complete, metadata.json last; what lacks it is no checkpoint.

A tokenizer folder and a sampler folder hold averaged weights for use: see `save_tokenizer` and `export_sampler`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from nvg import config as configuration
from nvg import storage, tracking
from nvg.autoencoder import Autoencoder
from nvg.config import Config, ConfigError, SamplerConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.training.ema import EMA
from nvg.training.parallel import local
from nvg.training.shards import Saved, file_name, write_shards

if TYPE_CHECKING:
    from nvg.generator import Sampler

Module = TypeVar("Module", bound=nn.Module)
FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, by parameter
KEEP = 2  # checkpoints of a training that stay: the newest may be hurt by a failing disk
PARTS = ("content", "structure")
# What of config.yaml decides how a sampler is built and used. The rest is on record there and not read again, so that a
# later version of the training or evaluation settings still loads it.
MODEL_SECTIONS = ("name", "output", "seed", "data", "tokenizer", "repa", "content", "structure", "sampler")
# What metadata.json must hold to be used, by kind.
FIELDS: dict[str, dict[str, type]] = {
    "training": {"step": int, "files": dict, "identity": str, "ema_updates": dict},
    "tokenizer": {"fingerprint": str, "class_names": list},
    "sampler": {"tokenizer": str, "class_names": list, "parts": list},
}
HALF = "half.json"  # instead of metadata.json, of a sampler that lacks a generator
ASSETS = Path(__file__).parents[1] / "assets"  # samplers that ship with the package
_CHUNK = 1 << 22  # bytes read at once for a checksum


class CheckpointError(ValueError):
    """A folder that cannot be used; the message names the file and what to do."""


# ---- checkpoints of a training ----


def save_checkpoint(
    folder: str,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, EMA],
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Config,
    metadata: Mapping[str, Any],
    shard: int = 0,
    shards: int = 1,
) -> str:
    """Write `folder`/step-XXXXXXXX and drop all but the last two; returns its path or URL. `step` steps are done.

    shards: among how many workers the weights are split; each of them must call this, with its number `shard`.
    """
    url = storage.join(folder, f"step-{step:08d}")
    names = parameter_names(modules)
    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    average = {f"{name}.{key}": value for name, ema in averages.items() for key, value in ema.shadow.items()}
    optimizer_state = {
        f"{name}/{names[parameter]}/{key}": value
        for name, optimizer in optimizers.items()
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }
    about = {
        "format": FORMAT,
        "kind": "training",
        "step": step,
        "ema_updates": {name: ema.updates for name, ema in averages.items()},
        "shards": shards,
        **metadata,
    }
    parts = {"model": state, "ema": average, "optimizer": optimizer_state}
    if shards > 1:
        files = write_shards(url, parts, shard, shards)
        if files is None:
            return url
        data = configuration.to_yaml(config).encode()
        storage.write_bytes(storage.join(url, "config.yaml"), data)
        files["config.yaml"] = {"size": len(data), "crc32": zlib.crc32(data)}
        storage.write_json(storage.join(url, "metadata.json"), about | {"files": files})
    else:
        with storage.folder_writer(url) as temporary:
            new = Path(temporary)
            for name, tensors in parts.items():
                save_file(_plain(tensors), new / f"{name}.safetensors")
            (new / "config.yaml").write_text(configuration.to_yaml(config))
            files = {path.name: _checksum(path) for path in sorted(new.iterdir())}
            storage.write_json(str(new / "metadata.json"), about | {"files": files})
    for old in list_checkpoints(folder)[:-KEEP]:
        storage.remove(old)
    return url


def list_checkpoints(folder: str) -> list[str]:
    """The complete checkpoints of a training, oldest first."""
    if not storage.exists(folder):
        return []
    found = []
    for path in storage.list_files(folder, ("metadata.json",)):
        match = re.search(r"/(step-\d{8})/metadata\.json$", path)
        if match:
            found.append(storage.join(folder, match.group(1)))
    return sorted(set(found))


def checkpoint_step(url: str) -> int:
    """How many steps are done in a checkpoint, by its name."""
    return int(url.rpartition("/step-")[2])


def latest_checkpoint(folder: str) -> str | None:
    """The newest complete checkpoint, or None. Unfinished ones are never taken."""
    return next(reversed(list_checkpoints(folder)), None)


def restore_checkpoint(
    url: str,
    *,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, EMA],
    optimizers: Mapping[str, torch.optim.Optimizer],
    identity: str,
) -> dict[str, Any]:
    """Put a checkpoint's state into fresh objects; returns its metadata.

    identity: the configuration that the training stands for; a checkpoint of another one is refused. Raises
    CheckpointError for that, for another format, and for a file that is missing, cut short or altered.
    """
    metadata = checked_metadata(url)
    if metadata["identity"] != identity:
        raise CheckpointError(
            f"{url} is of another configuration ({metadata['identity']}, now {identity}): train into another folder"
        )
    _restore(_saved(url, "model", metadata), {name: module.state_dict() for name, module in modules.items()}, url)
    _restore(_saved(url, "ema", metadata), {name: ema.shadow for name, ema in averages.items()}, url)
    for name, ema in averages.items():
        ema.updates = _count(metadata["ema_updates"], name, f"{url}/metadata.json: ema_updates")
    moments = _saved(url, "optimizer", metadata)
    names = parameter_names(modules)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = f"{name}/{names[parameter]}/"
                there = {key: moments.shape(prefix + key) for key in MOMENTS if prefix + key in moments.keys()}
                _check_moments(there, parameter, f"{url}/optimizer.safetensors: {prefix[:-1]}")
                optimizer.state.pop(parameter, None)
                if there:  # else it had no gradient yet
                    optimizer.state[parameter] = _moments(moments, prefix, parameter)
    return metadata


def _saved(url: str, name: str, metadata: Mapping[str, Any]) -> Saved:
    try:
        return Saved(Path(storage.local_folder(url)), name, metadata.get("shards", 1))
    except ValueError as error:
        raise CheckpointError(f"{url}/{error}: remove it to go on from the checkpoint before it") from None


@torch.no_grad()
def _restore(saved: Saved, targets: Mapping[str, Mapping[str, Tensor]], url: str) -> None:
    own = {f"{name}.{key}": value for name, tensors in targets.items() for key, value in tensors.items()}
    _compare(_shapes(own), {name: saved.shape(name) for name in saved.keys()}, f"{url}/{saved.name}.safetensors")
    for name, value in own.items():
        local(value).copy_(saved.read(name, value))


def _moments(saved: Saved, prefix: str, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state. Moments and, as these optimizers are fused, the step count are where the parameter is."""
    state = {"step": saved.read(f"{prefix}step", torch.zeros(())).to(parameter.device)}
    for key in ("exp_avg", "exp_avg_sq"):
        value = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        local(value).copy_(saved.read(prefix + key, parameter))
        state[key] = value
    return state


def checked_metadata(url: str) -> dict[str, Any]:
    """metadata.json of a training checkpoint whose files are all there and as they were written.

    Raises CheckpointError naming the file that is missing, cut short or altered.
    """
    remedy = f"remove {url} to go on from the checkpoint before it"
    metadata = _metadata(url, "training")
    folder = Path(storage.local_folder(url))
    shards = metadata.get("shards", 1)
    if type(shards) is not int or not 1 <= shards <= len(metadata["files"]):
        raise CheckpointError(f"{url}/metadata.json is damaged: shards must be a count, not {shards!r:.80}")
    files = [file_name(name, shard, shards) for name in ("ema", "model", "optimizer") for shard in range(shards)]
    for name in ("config.yaml", *files):
        if not (folder / name).is_file():
            raise CheckpointError(f"{url} has no {name}: {remedy}")
        if _checksum(folder / name) != metadata["files"].get(name):
            raise CheckpointError(f"{url}/{name} is damaged (size or checksum differ from metadata.json): {remedy}")
    return metadata


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """Each parameter's name, `<module>.<parameter>`."""
    return {value: f"{name}.{key}" for name, module in modules.items() for key, value in module.named_parameters()}


# ---- the tokenizer's folder: tokenizer.safetensors, config.yaml, metadata.json ----


def save_tokenizer(
    folder: str, state: Mapping[str, Tensor], config: Config, *, class_names: list[str], metadata: Mapping[str, Any],
    last: Callable[[dict[str, Any]], None] = lambda metadata: None,
) -> str:
    """Write a finished tokenizer's (averaged) weights; returns their fingerprint.

    last: called when only metadata.json is missing, with its content; that file says that nothing is left to do.
    """
    mark = fingerprint(state)
    storage.write_bytes(storage.join(folder, "tokenizer.safetensors"), save(_plain(state)))
    storage.write_bytes(storage.join(folder, "config.yaml"), configuration.to_yaml(config).encode())
    whole = {"format": FORMAT, "kind": "tokenizer", "fingerprint": mark, "class_names": class_names, **metadata}
    last(whole)
    storage.write_json(storage.join(folder, "metadata.json"), whole)
    return mark


def load_tokenizer(folder: str) -> Autoencoder:
    """The tokenizer of a folder (path or URL) that holds a tokenizer or a sampler, in evaluation mode.

    Raises CheckpointError when the folder is unfinished or its weights do not fit its configuration or fingerprint.
    """
    metadata = _metadata(folder, "tokenizer", "sampler")
    config = model_config(folder)
    return _load_part(folder, "tokenizer", lambda: Autoencoder(config.tokenizer), tokenizer_fingerprint(metadata))


def tokenizer_fingerprint(metadata: Mapping[str, Any] | str) -> str:
    """The tokenizer's fingerprint, from a tokenizer's or sampler's folder or from its metadata.json."""
    if isinstance(metadata, str):
        metadata = _metadata(metadata, "tokenizer", "sampler")
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
    last: Callable[[dict[str, Any]], None] = lambda metadata: None,
) -> bool:
    """Write what `nvg.load` reads; returns whether the sampler is whole.

    parts: averaged weights of `content`, `structure` or both. One alone leaves half.json in the place of metadata.json,
    until the other one is exported into the same folder. last: as in `save_tokenizer`.
    """
    done = exported_parts(folder)
    half = storage.join(folder, HALF)
    marks = dict(storage.read_json(half).get("weights", {})) if storage.exists(half) else {}
    for name, state in {"tokenizer": tokenizer, **parts}.items():
        if name == "content":  # alignment is a matter of training
            state = {key: value for key, value in state.items() if not key.startswith("align.")}
        marks[name] = fingerprint(state)
        storage.write_bytes(storage.join(folder, f"{name}.safetensors"), save(_plain(state)))
    storage.write_bytes(storage.join(folder, "config.yaml"), configuration.to_yaml(config).encode())
    done = [part for part in PARTS if part in done or part in parts]
    whole = len(done) == len(PARTS)
    about = {
        "format": FORMAT,
        "kind": "sampler",
        "parts": done,
        "class_names": class_names,
        "tokenizer": marks["tokenizer"],
        "weights": marks,
        **metadata,
    }
    last(about)
    storage.write_json(storage.join(folder, "metadata.json") if whole else half, about)
    if whole and storage.exists(half):
        storage.remove(half)
    return whole


def exported_parts(folder: str) -> list[str]:
    """Which generators a folder holds already: some of content, structure."""
    for name in ("metadata.json", HALF):
        path = storage.join(folder, name)
        if storage.exists(path):
            try:
                found = storage.read_json(path)["parts"]
                return [part for part in PARTS if part in found]
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path} is damaged ({error!r}): export again") from None
    return []


def sampler_folder(name: str) -> str:
    """The folder (path or URL) of a sampler's name, as `nvg.load` takes it: one that ships with the package, a
    folder or URL, or `models:/NAME@alias`. Raises CheckpointError (a ValueError) for a name that is none."""
    name = str(name)
    if name.startswith("models:/"):
        return tracking.registered_folder(name)
    if (ASSETS / name / "metadata.json").is_file():
        return str(ASSETS / name)
    if storage.is_url(name) or Path(name).is_dir():
        return name
    shipped = sorted(path.parent.name for path in ASSETS.glob("*/metadata.json"))
    raise CheckpointError(
        f"no sampler {name!r}: neither a folder nor one of those that ship with nvg "
        f"({', '.join(shipped) or 'none'}): give a folder or URL that pipelines/train.py made, or "
        "models:/NAME@champion"
    )


def is_shipped(folder: str) -> bool:
    """Whether a sampler's folder is one of those that ship with the package."""
    return not storage.is_url(folder) and Path(folder).resolve().parent == ASSETS


def load_sampler(folder: str, settings: SamplerConfig | None = None) -> Sampler:
    """The sampler of a folder (path or URL). settings replace the `sampler` section it was trained with.

    Raises CheckpointError when the folder is unfinished, a part was never trained, or weights do not fit.
    """
    from nvg.generator import Sampler

    there = [] if storage.exists(storage.join(folder, "metadata.json")) else exported_parts(folder)
    if len(there) == 1:
        (part,) = there
        missing = next(name for name in PARTS if name != part)
        name = model_config(folder).name
        raise CheckpointError(
            f"{folder} holds the {part} generator alone: the {missing} generator is missing. Train it into the same "
            f"folder: python pipelines/train.py --config conf/{name}.yaml 'train.parts=[{missing}]'"
        )
    metadata = _metadata(folder, "sampler")
    config = model_config(folder)
    if len(metadata["class_names"]) != config.data.num_classes:
        raise CheckpointError(
            f"{folder}/metadata.json names {len(metadata['class_names'])} classes, and config.yaml says "
            f"data.num_classes={config.data.num_classes}: one of the two files is of another sampler"
        )
    config.content.repa_block = None  # its projection is not exported
    marks = metadata.get("weights", {})  # samplers of earlier versions have none
    content = _load_part(folder, "content", lambda: ContentGenerator(config.content), marks.get("content"))
    structure = _load_part(folder, "structure", lambda: StructureGenerator(config.structure), marks.get("structure"))
    return Sampler(load_tokenizer(folder), content, structure, settings or config.sampler, metadata["class_names"])


def model_settings(folder: str) -> dict[str, Any]:
    """The sections of a tokenizer's or sampler's config.yaml that say how it is built and used."""
    path = storage.join(folder, "config.yaml")
    content = configuration.read(path)
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
            f"format {FORMAT}): use that version, or make the artifact again"
        ) from None


def read_metadata(folder: str) -> dict[str, Any]:
    """metadata.json of a tokenizer's or sampler's folder. Raises CheckpointError when it is not there or unreadable."""
    return _metadata(folder, "tokenizer", "sampler")


# ---- reading and writing ----


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a complete state into a module. Raises CheckpointError naming the tensors that do not fit."""
    _compare(_shapes(module.state_dict()), _shapes(state), where)
    module.load_state_dict(dict(state))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _compare(own: Mapping[str, torch.Size], saved: Mapping[str, torch.Size], where: str) -> None:
    faults = [f"{name} is missing" for name in own if name not in saved]
    faults += [f"{name} is not part of the model" for name in saved if name not in own]
    faults += [
        f"{name} has shape {tuple(saved[name])}, the model {tuple(own[name])}"
        for name in own
        if name in saved and saved[name] != own[name]
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{where} does not fit the configuration: {'; '.join(faults[:3])}{more}")


def _check_moments(found: Mapping[str, torch.Size], parameter: Tensor, where: str) -> None:
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
    if found not in (shapes, {}):
        raise CheckpointError(f"{where} does not fit the model: {({k: tuple(v) for k, v in found.items()})}")


def _count(values: Mapping[str, Any], name: str, where: str) -> int:
    if type(values.get(name)) is not int or values[name] < 0:
        raise CheckpointError(f"{where}: {name} must be a count, not {values.get(name)!r:.80}")
    return values[name]


def _load_part(folder: str, name: str, build: Callable[[], Module], mark: str | None) -> Module:
    """A module with the weights of a file, for use. mark: their fingerprint, where it is known."""
    state = read_tensors(folder, name)
    where = f"{folder}/{name}.safetensors"
    with torch.device("meta"):  # a configuration of another size is refused before memory is taken for it
        _compare(_shapes(build().state_dict()), _shapes(state), where)
    if mark is not None and fingerprint(state) != mark:
        raise CheckpointError(f"{where} is damaged: its fingerprint differs from metadata.json")
    module = build()
    fill(module, state, where)
    module.eval().requires_grad_(False)
    return module


def _metadata(folder: str, *kinds: str) -> dict[str, Any]:
    path = storage.join(folder, "metadata.json")
    if not storage.exists(path):
        raise CheckpointError(
            f"{folder} has no metadata.json: it is no folder of this project, or its job has not finished"
        )
    try:
        metadata = storage.read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("kind") not in kinds:
        kind = metadata.get("kind") if isinstance(metadata, dict) else None
        raise CheckpointError(f"{folder} holds a {kind or 'thing of unknown kind'}, expected a {' or '.join(kinds)}")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {metadata.get('format')}, this version of nvg reads {FORMAT}: make it again"
        )
    for name, kind in FIELDS[metadata["kind"]].items():
        if type(metadata.get(name)) is not kind:
            found = f"{metadata.get(name)!r:.80}"
            raise CheckpointError(f"{path} is damaged: {name} must be a {kind.__name__}, not {found}")
    if not isinstance(metadata.get("weights", {}), dict):
        raise CheckpointError(f"{path} is damaged: weights must be fingerprints by name")
    names = metadata.get("class_names", [])
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is damaged: class_names must be strings, not {names!r:.80}")
    return metadata


def read_tensors(folder: str, name: str) -> dict[str, Tensor]:
    """The tensors of `folder`/`name`.safetensors. Raises CheckpointError when it is not there or damaged."""
    return _tensors(Path(storage.local_folder(folder)) / f"{name}.safetensors", folder)


def _tensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{where} has no {path.name}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{where}/{path.name} is damaged ({error}): make it again") from None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous and each in its own memory, as safetensors wants them."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _checksum(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return {"size": path.stat().st_size, "crc32": crc}
