"""Checkpoints of a training: safetensors, YAML and JSON, never pickle.

A training checkpoint is a folder `step-00000500`:
    model.safetensors      every trained module, `<module>.<tensor>`
    ema.safetensors        the averaged modules, the same names
    optimizer.safetensors  `<optimizer>/<parameter>/<exp_avg | exp_avg_sq | step>`
    config.yaml            the resolved configuration
    metadata.json          step, MLflow run, seed, fingerprints, size and checksum of every file
Of weights that are split over workers (train.parallel=fsdp) each worker writes its own rows, `model-00001-of-00004.
safetensors`; any number of workers reads them again.
Every random draw of a step is a function of (seed, step, slice of the batch), so metadata.json holds the whole state of
the random numbers. The folder gets its name when it is complete, metadata.json last; a folder without it is unfinished.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvg import config as configuration
from nvg import storage
from nvg.artifacts.files import checked_record, checksum, compare_shapes, shapes, write_safetensors
from nvg.config import Config
from nvg.errors import CheckpointError
from nvg.training.ema import EMA
from nvg.training.parallel import local
from nvg.training.saver import Saver, TensorSets
from nvg.training.shards import Saved, file_name, write_shards

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, by parameter
KEEP = 2  # checkpoints of a training that stay: the newest may be hurt by a failing disk


def save_checkpoint(
    saver: Saver,
    folder: str,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, EMA],
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Config,
    metadata: Mapping[str, Any],
) -> str:
    """Have the saver write `folder`/step-XXXXXXXX, of the present state, and drop all but the last two checkpoints;
    returns its path or URL. `step` steps are done.

    Where the weights are split over workers, each of them must call this.
    """
    url = storage.join(folder, f"step-{step:08d}")
    content = {
        "format": storage.FORMAT,
        "kind": "training",
        "step": step,
        "ema_updates": {name: ema.updates for name, ema in averages.items()},
        "shards": saver.shards,
        **metadata,
    }
    text = configuration.to_yaml(config)

    def write(tensor_sets: TensorSets) -> None:
        if saver.shards == 1:
            _write(url, tensor_sets, text, content)
        else:
            _write_split(url, tensor_sets, text, content, saver)
        if saver.shard == 0:
            for old in list_checkpoints(folder)[:-KEEP]:
                storage.remove(old)

    saver.save(state_of(modules, averages, optimizers), write)
    return url


def state_of(
    modules: Mapping[str, nn.Module], averages: Mapping[str, EMA], optimizers: Mapping[str, torch.optim.Optimizer]
) -> TensorSets:
    """The state of a training by the names that it has in a checkpoint: the tensors themselves, not copies."""
    names = parameter_names(modules)
    return {
        "model": {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        "ema": {f"{name}.{key}": value for name, ema in averages.items() for key, value in ema.shadow.items()},
        "optimizer": {
            f"{name}/{names[parameter]}/{key}": value
            for name, optimizer in optimizers.items()
            for parameter, entry in optimizer.state.items()
            for key, value in entry.items()
        },
    }


def _write(url: str, tensor_sets: TensorSets, config: str, content: dict[str, Any]) -> None:
    """Write a checkpoint of one file per tensor set. config: as YAML. content: of metadata.json, without its list of
    files."""
    with storage.folder_writer(url) as temporary:
        new = Path(temporary)
        for name, tensors in tensor_sets.items():
            with (new / f"{name}.safetensors").open("wb") as file:
                write_safetensors(file, tensors)
        (new / "config.yaml").write_text(config)
        files = {path.name: checksum(path) for path in sorted(new.iterdir())}
        storage.write_json(str(new / storage.LAST_FILE), content | {"files": files})


def _write_split(url: str, tensor_sets: TensorSets, config: str, content: dict[str, Any], saver: Saver) -> None:
    """Write this worker's rows of a checkpoint; the first worker writes the other files when all rows are written."""
    files = write_shards(url, tensor_sets, saver)
    if files is None:
        return
    data = config.encode()
    storage.write_bytes(storage.join(url, "config.yaml"), data)
    files["config.yaml"] = {"size": len(data), "crc32": zlib.crc32(data)}
    storage.write_json(storage.join(url, storage.LAST_FILE), content | {"files": files})


def list_checkpoints(folder: str) -> list[str]:
    """The complete checkpoints of a training, oldest first."""
    if not storage.exists(folder):
        return []
    names = set()
    for path in storage.list_files(folder, (storage.LAST_FILE,)):
        match = re.search(rf"/(step-\d{{8}})/{re.escape(storage.LAST_FILE)}$", path)
        if match:
            names.add(match.group(1))
    return [storage.join(folder, name) for name in sorted(names)]


def checkpoint_step(url: str) -> int:
    """The number of steps that a checkpoint's name says are done."""
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
        ema.updates = _count(metadata["ema_updates"], name, f"{url}/{storage.LAST_FILE}: ema_updates")
    moments = _saved(url, "optimizer", metadata)
    names = parameter_names(modules)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = f"{name}/{names[parameter]}/"
                saved_shapes = {key: moments.shape(prefix + key) for key in MOMENTS if prefix + key in moments.names}
                _check_moments(saved_shapes, parameter, f"{url}/optimizer.safetensors: {prefix[:-1]}")
                optimizer.state.pop(parameter, None)
                if saved_shapes:  # else it had no gradient yet
                    state = _moments(moments, prefix, parameter)
                    if not state["step"] >= 0:
                        raise CheckpointError(
                            f"{url}/optimizer.safetensors is damaged: {prefix}step is {state['step']:g}: remove the "
                            "checkpoint to go on from the one before it"
                        )
                    optimizer.state[parameter] = state
    return metadata


def _saved(url: str, name: str, metadata: Mapping[str, Any]) -> Saved:
    try:
        return Saved(Path(storage.local_folder(url)), name, metadata.get("shards", 1))
    except ValueError as error:
        raise CheckpointError(f"{url}/{error}: remove it to go on from the checkpoint before it") from None


@torch.no_grad()
def _restore(saved: Saved, targets: Mapping[str, Mapping[str, Tensor]], url: str) -> None:
    tensors = {f"{name}.{key}": value for name, target in targets.items() for key, value in target.items()}
    saved_shapes = {name: saved.shape(name) for name in saved.names}
    compare_shapes(shapes(tensors), saved_shapes, f"{url}/{saved.name}.safetensors")
    for name, value in tensors.items():
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
    """metadata.json of a training checkpoint whose files are complete and as they were written.

    Raises CheckpointError naming the file that is missing, cut short or altered.
    """
    remedy = f"remove {url} to go on from the checkpoint before it"
    metadata = checked_record(url, "training")
    folder = Path(storage.local_folder(url))
    shards = metadata.get("shards", 1)
    if type(shards) is not int or not 1 <= shards <= len(metadata["files"]):
        raise CheckpointError(f"{url}/{storage.LAST_FILE} is damaged: shards must be a count, not {shards!r:.80}")
    files = [file_name(name, shard, shards) for name in ("ema", "model", "optimizer") for shard in range(shards)]
    for name in ("config.yaml", *files):
        if not (folder / name).is_file():
            raise CheckpointError(f"{url} has no {name}: {remedy}")
        if checksum(folder / name) != metadata["files"].get(name):
            raise CheckpointError(f"{url}/{name} is damaged (size or checksum differ from metadata.json): {remedy}")
    return metadata


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """Each parameter's name, `<module>.<parameter>`."""
    return {value: f"{name}.{key}" for name, module in modules.items() for key, value in module.named_parameters()}


def _check_moments(saved_shapes: Mapping[str, torch.Size], parameter: Tensor, where: str) -> None:
    expected = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
    if saved_shapes not in (expected, {}):
        tuples = {name: tuple(shape) for name, shape in saved_shapes.items()}
        raise CheckpointError(f"{where} does not fit the model: {tuples}")


def _count(values: Mapping[str, Any], name: str, where: str) -> int:
    if type(values.get(name)) is not int or values[name] < 0:
        raise CheckpointError(f"{where}: {name} must be a count, not {values.get(name)!r:.80}")
    return values[name]
