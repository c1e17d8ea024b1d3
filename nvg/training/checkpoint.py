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
the random numbers. The folder gets its name when it is complete, metadata.json last; what lacks it is no checkpoint.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nvg import config as configuration
from nvg import storage
from nvg.artifacts.files import FORMAT, checked_record, checksum, compare_shapes, plain, shapes
from nvg.config import Config
from nvg.errors import CheckpointError
from nvg.training.ema import EMA
from nvg.training.parallel import local
from nvg.training.shards import Saved, file_name, write_shards

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, by parameter
KEEP = 2  # checkpoints of a training that stay: the newest may be hurt by a failing disk


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
                save_file(plain(tensors), new / f"{name}.safetensors")
            (new / "config.yaml").write_text(configuration.to_yaml(config))
            files = {path.name: checksum(path) for path in sorted(new.iterdir())}
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
    compare_shapes(shapes(own), {name: saved.shape(name) for name in saved.keys()}, f"{url}/{saved.name}.safetensors")
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
    metadata = checked_record(url, "training")
    folder = Path(storage.local_folder(url))
    shards = metadata.get("shards", 1)
    if type(shards) is not int or not 1 <= shards <= len(metadata["files"]):
        raise CheckpointError(f"{url}/metadata.json is damaged: shards must be a count, not {shards!r:.80}")
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


def _check_moments(found: Mapping[str, torch.Size], parameter: Tensor, where: str) -> None:
    expected = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
    if found not in (expected, {}):
        raise CheckpointError(f"{where} does not fit the model: { ({k: tuple(v) for k, v in found.items()}) }")


def _count(values: Mapping[str, Any], name: str, where: str) -> int:
    if type(values.get(name)) is not int or values[name] < 0:
        raise CheckpointError(f"{where}: {name} must be a count, not {values.get(name)!r:.80}")
    return values[name]
