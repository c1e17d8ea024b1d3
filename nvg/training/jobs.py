"""The trainings, from their data to the finished artifact: tokenizer, generators, generators of fewer passes.

A Ray Train worker runs them (nvg/training/ray_train.py gives `place` and `wrap`) or, with the defaults, a test does.
Each writes the artifact's files, closes its MLflow run, and writes metadata.json last: a job that is killed in between
is started again, and does what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nvg import pyfunc, storage, tracking
from nvg.artifacts.keys import distilled_identity, generators_identity, tokenizer_identity
from nvg.artifacts.models import (
    HALF,
    PARTS,
    export_sampler,
    exported_parts,
    fingerprint,
    finish_folder,
    licence_of,
    load_sampler,
    load_tokenizer,
    tokenizer_fingerprint,
    write_sampler,
    write_tokenizer,
)
from nvg.config import (
    Config,
    GeneratorTrainingConfig,
    TokenizerTrainConfig,
    TrainConfig,
    TrainingConfig,
    long_warmup,
)
from nvg.console import say
from nvg.data import ImageSource, image_batches, open_source, token_batches
from nvg.data.tokens import read_metadata
from nvg.errors import ConfigError
from nvg.training.distill_task import DistillTask
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import LoopSettings, Place, train
from nvg.training.parallel import Wrap, alone
from nvg.training.task import Batch, Task
from nvg.training.tokenizer_task import TokenizerTask

SNAPSHOTS = "snapshots"  # in the artifact's folder: samplers to be evaluated while the training goes on

# ---- the tokenizer ----


def train_tokenizer(config: Config, place: Place, wrap: Wrap = alone, *, folder: str) -> dict[str, Any]:
    """Train the tokenizer into `folder` (path or URL), going on from its checkpoints; returns figures."""
    if (figures := _figures(folder)) is not None:
        return figures
    settings = config.tokenizer_train
    source = open_source(config.data, split="train")
    images = source.count()
    steps_per_epoch = _steps_per_epoch(images, settings.batch_size, "images", "tokenizer_train")
    total_steps = _total_steps("tokenizer_train", settings, steps_per_epoch, place)
    stream = _image_stream(source, config, settings, place, steps_per_epoch)
    task = TokenizerTask(config, stream, total_steps, steps_per_epoch, device=place.device, wrap=wrap)
    identity = tokenizer_identity(config)
    training = _Training("train_tokenizer", config, place, folder, {"data_fingerprint": source.fingerprint()})
    figures = training.train(task, settings, total_steps, identity)
    if place.rank == 0:
        metadata = write_tokenizer(
            folder,
            task.averages["tokenizer"].shadow,
            config,
            class_names=source.class_names,
            metadata={
                "data_fingerprint": source.fingerprint(),
                "images": images,
                "training": figures,
                "run_id": training.run_id,
            },
        )
        training.finish_run(metadata)
        finish_folder(folder, metadata)
    return figures


# ---- the generators ----


def train_generators(
    config: Config,
    place: Place,
    wrap: Wrap = alone,
    *,
    tokenizer: str,
    tokens: str,
    folder: str,
) -> dict[str, Any]:
    """Train `train.parts` on the tokens of folder `tokens` into `folder`, going on from checkpoints; returns figures.

    A part that the folder holds already is left as it is.
    """
    if (figures := _figures(folder)) is not None:
        return figures
    config = _with_missing_parts(config, folder)
    settings = config.train
    if not settings.parts:
        return storage.read_json(storage.join(folder, HALF))["training"]
    token_set, mark = _token_set(tokens, tokenizer, config), tokenizer_fingerprint(tokenizer)
    class_names = token_set["class_names"]
    steps_per_epoch = _steps_per_epoch(token_set["images"], settings.batch_size, "images in the tokens", "train")
    total_steps = _total_steps("train", settings, steps_per_epoch, place)

    autoencoder = load_tokenizer(tokenizer)
    weights = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    stream = _token_stream(tokens, config, settings, place, steps_per_epoch)
    task = GeneratorTask(
        config, autoencoder, stream, total_steps, class_names=class_names, device=place.device, wrap=wrap
    )
    identity = generators_identity(config, mark)
    name = "train_" + ("generators" if len(settings.parts) == 2 else settings.parts[0])
    tags = {"tokenizer": mark, "data_fingerprint": token_set.get("data_fingerprint", "")}
    training = _Training(name, config, place, folder, tags)

    def sampler() -> dict[str, Any]:
        return {"tokenizer": weights, "parts": task.averaged(), "config": config, "class_names": class_names}

    checkpoints = _checkpoints_name(settings.parts)
    figures = training.train(task, settings, total_steps, identity, checkpoints, sampler)
    finished = sampler()
    if place.rank == 0:
        metadata = write_sampler(
            folder,
            **finished,
            metadata={
                "training": figures,
                "run_id": training.run_id,
                "steps_per_epoch": steps_per_epoch,
                **inherited_licence(tokenizer),
            },
        )
        training.finish_run(metadata)
        if not finish_folder(folder, metadata):
            missing = next(part for part in PARTS if part not in metadata["parts"])
            say(f"{name}: now train the {missing} generator, with train.parts=[{missing}]")
    return figures


def _with_missing_parts(config: Config, folder: str) -> Config:
    """The configuration with those of train.parts that the folder does not hold yet."""
    exported = exported_parts(folder)
    missing = [part for part in PARTS if part in config.train.parts and part not in exported]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, parts=missing))


def inherited_licence(folder: str) -> dict[str, str]:
    """The entry of metadata.json for the licence of the weights in a folder that a new sampler takes over."""
    licence = licence_of(folder)
    return {} if licence is None else {"licence": licence}


# ---- generators of fewer passes ----


def distill_generators(
    config: Config,
    place: Place,
    wrap: Wrap = alone,
    *,
    generators: str,
    tokens: str,
    folder: str,
) -> dict[str, Any]:
    """Distil `distill.parts` of sampler `generators`, on the tokens of folder `tokens`: a whole sampler in `folder`,
    going on from its checkpoints; returns figures.

    Raises ConfigError for tokens of another tokenizer or another number of classes.
    """
    if (figures := _figures(folder)) is not None:
        return figures
    settings = config.distill
    token_set, teacher = _token_set(tokens, generators, config), load_sampler(generators)
    if not teacher.knows_no_class:
        raise ConfigError(
            f"{generators} was trained with train.class_dropout=0: it has no guidance for a distilled generator to "
            "learn: name another teacher"
        )
    steps_per_epoch = _steps_per_epoch(token_set["images"], settings.batch_size, "images in the tokens", "distill")

    networks = {"tokenizer": teacher.tokenizer, "content": teacher.content, "structure": teacher.structure}
    kept = {
        name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in networks.items()
    }
    marks = {name: fingerprint(state) for name, state in kept.items()}
    marks["tokenizer"] = tokenizer_fingerprint(generators)  # of the file: one that ships holds float16
    stream = _token_stream(tokens, config, settings, place, steps_per_epoch)
    task = DistillTask(config, teacher, stream, settings.steps, device=place.device, wrap=wrap)
    identity = distilled_identity(config, marks)
    training = _Training("distill", config, place, folder, {"teacher": generators, "tokenizer": marks["tokenizer"]})

    def sampler() -> dict[str, Any]:
        students = task.averaged()
        return {
            "tokenizer": kept["tokenizer"],
            "parts": {part: students.get(part, kept[part]) for part in PARTS},
            "config": task.sampler_config(),
            "class_names": token_set["class_names"],
        }

    figures = training.train(task, settings, settings.steps, identity, sampler=sampler)
    finished = sampler()
    if place.rank == 0:
        record = {"training": figures, "run_id": training.run_id, **inherited_licence(generators)}
        record["teacher"] = {"folder": settings.teacher or generators, **marks}
        metadata = write_sampler(folder, **finished, metadata=record)
        training.finish_run(metadata)
        finish_folder(folder, metadata)
    return figures


# ---- the artifact's folder ----


def tidy(folder: str) -> None:
    """Remove the files that a finished training no longer needs: its checkpoints, Ray Train's notes, and samplers that
    were to be evaluated while it went on.

    This is safe at any time. metadata.json says that a training is finished, so tidying comes after it; when a job is
    killed in between, the next job that finds the artifact complete tidies up (pipelines/steps.py).
    """
    complete = storage.exists(storage.join(folder, storage.LAST_FILE))
    names = ["ray_train", SNAPSHOTS]
    if complete:
        names += ["checkpoints", _checkpoints_name(PARTS)]
    names += [_checkpoints_name([part]) for part in (PARTS if complete else exported_parts(folder))]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            storage.remove(storage.join(folder, name))


def _checkpoints_name(parts: Sequence[str]) -> str:
    """The folder of the checkpoints of a training of some generators."""
    return "-".join(["checkpoints", *parts])


def _figures(folder: str) -> dict[str, Any] | None:
    """The figures of a finished training: Ray may start its workers again after their work was done."""
    path = storage.join(folder, storage.LAST_FILE)
    return storage.read_json(path)["training"] if storage.exists(path) else None


# ---- data ----


def _token_set(tokens: str, tokenizer: str, config: Config) -> dict[str, Any]:
    """metadata.json of a folder of tokens.

    Raises ConfigError for tokens of another tokenizer than that of `tokenizer` (its folder, or a sampler's), and for
    tokens of another number of classes than data.num_classes.
    """
    metadata, mark, classes = read_metadata(tokens), tokenizer_fingerprint(tokenizer), config.data.num_classes
    if metadata["fingerprint"] != mark:
        raise ConfigError(f"the tokens in {tokens} are of tokenizer {metadata['fingerprint']}, {tokenizer} has {mark}")
    if len(metadata["class_names"]) != classes:
        raise ConfigError(
            f"the tokens in {tokens} are of {len(metadata['class_names'])} classes, and data.num_classes={classes}"
        )
    return metadata


def endless(epoch: Callable[[int, int], Iterator[Batch]], steps_per_epoch: int) -> Callable[[int], Iterator[Batch]]:
    """From batches of one epoch, `epoch(number, skip)`, to batches from any step on, epoch after epoch.

    Every worker must make the same number of steps in an epoch: batches of an epoch beyond `steps_per_epoch` are left
    out, and fewer are an error (RuntimeError).
    """

    def batches(step: int) -> Iterator[Batch]:
        number, skip = divmod(step, steps_per_epoch)
        while True:
            given = skip
            for batch in epoch(number, skip):
                yield batch
                given += 1
                if given == steps_per_epoch:
                    break
            if given < steps_per_epoch:
                raise RuntimeError(f"epoch {number} gave {given} batches of {steps_per_epoch}: has the data changed?")
            number, skip = number + 1, 0

    return batches


def _image_stream(
    source: ImageSource, config: Config, settings: TrainingConfig, place: Place, steps_per_epoch: int
) -> Callable[[int], Iterator[Batch]]:
    """A worker's share of the image batches of a source, from any step on."""
    rows = _rows(config, settings, place)

    def epoch(number: int, skip: int) -> Iterator[Batch]:
        return image_batches(
            config,
            source,
            epoch=number,
            rank=place.rank,
            world=place.world,
            batch_size=rows.stop - rows.start,
            seed=config.seed,
            skip=skip,
        )

    return endless(epoch, steps_per_epoch)


def _token_stream(
    folder: str, config: Config, settings: GeneratorTrainingConfig, place: Place, steps_per_epoch: int
) -> Callable[[int], Iterator[Batch]]:
    """A worker's share of the token batches of a folder, from any step on."""
    rows = _rows(config, settings, place)

    def epoch(number: int, skip: int) -> Iterator[Batch]:
        return token_batches(
            folder,
            epoch=number,
            batch_size=settings.batch_size,
            rows=rows,
            seed=config.seed,
            shuffle_rows=settings.shuffle_rows,
            skip=skip,
            reader=config.cluster.reader,
        )

    return endless(epoch, steps_per_epoch)


def _slices(config: Config, section: TrainingConfig) -> int:
    return config.cluster.num_workers * section.accumulate


def _rows(config: Config, section: TrainingConfig, place: Place) -> slice:
    """The rows of each global batch that are this worker's."""
    share, size = place.share(_slices(config, section)), section.batch_size // _slices(config, section)
    return slice(share.start * size, share.stop * size)


# ---- the loop and the run ----


def _loop_settings(name: str, config: Config, section: TrainingConfig, total_steps: int, identity: str) -> LoopSettings:
    return LoopSettings(
        job=name,
        total_steps=total_steps,
        batch_size=section.batch_size,
        slices=_slices(config, section),
        micro_batch=section.micro_batch if isinstance(section, TrainConfig) else None,
        clip_norm=section.clip_norm,
        checkpoint_every=section.checkpoint_every,
        log_every=config.tracking.log_every,
        preview_every=section.preview_every,
        evaluate_every=section.evaluate_every if isinstance(section, GeneratorTrainingConfig) else 0,
        precision=section.precision,
        seed=config.seed,
        identity=identity,
    )


class _Training:
    """A training job: its loop, and its MLflow run, which is the same after a restart."""

    def __init__(self, name: str, config: Config, place: Place, folder: str, tags: dict[str, str]) -> None:
        self.name, self.config, self.place, self.folder = name, config, place, folder
        self.tags = {**tags, "artifact": folder}
        self.run: tracking.Run | None = None

    @property
    def run_id(self) -> str | None:
        """The run's id, once it has started."""
        return self.run.id if self.run is not None else None

    def train(
        self,
        task: Task,
        section: TrainingConfig,
        total_steps: int,
        identity: str,
        checkpoints: str = "checkpoints",
        sampler: Callable[[], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Train to the last step, going on from the checkpoints in the artifact's folder; returns figures.

        sampler: what `export_sampler` takes of the present averages; every worker calls it.
        """

        def snapshot(done: int) -> str | None:
            """A sampler to be evaluated while the training goes on; its folder, on the first worker."""
            assert sampler is not None
            present = sampler()
            if self.place.rank > 0:
                return None
            folder = storage.join(self.folder, SNAPSHOTS, f"step-{done:08d}")
            export_sampler(folder, **present, metadata={"run_id": self.run_id, "step": done})
            return folder

        return train(
            task,
            _loop_settings(self.name, self.config, section, total_steps, identity),
            self.config,
            storage.join(self.folder, checkpoints),
            place=self.place,
            start_tracking=self._start_run,
            snapshot=snapshot,
        )

    def _start_run(self, run_id: str | None) -> tracking.Run:
        """Start a run, or go on with the checkpoint's run, or with one that never came to a checkpoint."""
        self.run = tracking.start(self.config, self.name, run_id, self.folder)
        self.run.set_tags(self.tags)
        return self.run

    def finish_run(self, metadata: dict[str, Any]) -> None:
        """Add the job's figures, register a complete sampler when asked to, and close the run. May be done twice.

        metadata: the content of the folder's metadata.json, which is written after this.
        """
        assert self.run is not None
        figures = metadata["training"]
        numbers = {f"final/{name}": value for name, value in figures.items() if isinstance(value, int | float)}
        self.run.log_metrics(numbers, figures["steps"])
        if "fingerprint" in metadata:
            self.run.set_tags({"fingerprint": metadata["fingerprint"]})
        name = self.config.tracking.registered_model
        if name is not None and len(metadata.get("parts", ())) == len(PARTS):
            data = self.config.data
            mlmodel = pyfunc.describe((data.image_size, data.image_size, data.channels))
            version = self.run.register(name, storage.local_folder(self.folder), metadata, mlmodel)
            say(f"{self.name}: registered as models:/{name}/{version}, alias champion")
        self.run.end()


def _steps_per_epoch(rows: int, batch_size: int, kind: str, section: str) -> int:
    if rows < batch_size:
        raise ConfigError(f"{section}.batch_size={batch_size} is more than the {rows} {kind}: lower it")
    return rows // batch_size


def _total_steps(name: str, section: TokenizerTrainConfig | TrainConfig, steps_per_epoch: int, place: Place) -> int:
    """The length of a training. Remarks on a warm-up as long, which the driver cannot know of a length in epochs."""
    if section.steps is not None:
        return section.steps
    total = math.ceil(section.epochs * steps_per_epoch)
    if place.rank == 0 and (line := long_warmup(name, section, total)) is not None:
        say(line)
    return total
