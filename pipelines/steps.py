"""The steps of the pipeline: one table of them, and where each one's artifact is.

An artifact is a folder `<output>/<step>-<key>`. The key is the hash of the configuration that the step reads and of its
inputs' keys, so a changed setting makes a new artifact and leaves the old one, and an unchanged one is found again.
`metadata.json` is written last: a folder without it is the leftovers of an interrupted step, never a result.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nvg import storage
from nvg.artifacts.keys import artifact_keys, drawn_with
from nvg.artifacts.lease import lease, left_over
from nvg.config import Config
from nvg.errors import ConfigError, DataError, OutputBusy
from nvg.training.jobs import tidy

# ---- the table ----


def check_nothing(config: Config) -> None:
    """The check of a step whose configuration says all when it is read."""


def check_evaluation(config: Config) -> None:
    """What can be known of an evaluation before hours of training. Raises ConfigError or DataError."""
    if config.data.num_classes < 2 and config.evaluate.inception_weights is None:
        raise ConfigError(
            "data.num_classes=1: evaluation measures on features of a classifier of the data set's classes, and one "
            "class gives none: set evaluate.inception_weights (docs/guides/evaluate.md), or stop before: "
            "--until generators"
        )
    for name in ("reference", "inception_weights"):
        path = getattr(config.evaluate, name)
        if path not in (None, "test", "train") and not storage.exists(path):
            raise ConfigError(f"evaluate.{name}={path}: no such file. docs/guides/evaluate.md says where it comes from")
    dinov2 = config.evaluate.dinov2_weights
    if dinov2 is not None and not storage.exists(storage.join(dinov2, "config.json")):
        raise ConfigError(
            f"evaluate.dinov2_weights={dinov2}: no such folder with a config.json. docs/guides/evaluate.md says "
            "where it comes from"
        )
    if config.evaluate.reference.endswith(".npz"):
        from nvg.evaluation.evaluation import npz_reference

        npz_reference(config)


@dataclass(frozen=True)
class Step:
    """A step of the pipeline, which makes one artifact of those of other steps."""

    name: str
    makes: str  # for a reader of the job's output
    script: str  # the file that runs it as a job of its own
    needs: tuple[str, ...]  # the steps whose artifacts it reads, in the order in which its maker takes their folders
    maker: str  # "module:function", called with the configuration, the folders of its needs and its own
    check: Callable[[Config], None] = check_nothing  # raises ConfigError for what would fail after hours

    def load_maker(self) -> Callable[..., Any]:
        """The function that makes the artifact. Its module is imported now: most commands make few steps, or none."""
        module, _, function = self.maker.partition(":")
        return getattr(importlib.import_module(module), function)


# In order: a step needs earlier ones alone. `distilled` is there where the configuration asks for it.
STEPS = {
    step.name: step
    for step in (
        Step(
            "tokenizer",
            "train the autoencoder and its codebook",
            "pipelines/train_tokenizer.py",
            (),
            "pipelines.train_tokenizer:train_tokenizer",
        ),
        Step(
            "tokens",
            "turn every training image into granularity tokens",
            "pipelines/build_tokens.py",
            ("tokenizer",),
            "pipelines.build_tokens:build_tokens",
        ),
        Step(
            "generators",
            "train the content and structure generators on the tokens",
            "pipelines/train.py",
            ("tokenizer", "tokens"),
            "pipelines.train:train_generators",
        ),
        Step(
            "distilled",
            "teach the generators to draw in fewer passes",
            "pipelines/distill.py",
            ("generators", "tokens"),
            "pipelines.distill:distill_generators",
        ),
        Step(
            "evaluation",
            "draw samples and measure them against real images",
            "pipelines/evaluate.py",
            ("distilled",),  # the generators themselves where nothing is distilled
            "pipelines.evaluate:evaluate_trained",
            check_evaluation,
        ),
    )
}


# ---- where artifacts are ----


@dataclass(frozen=True)
class Artifact:
    """Where a step's result is, or will be."""

    step: str
    key: str
    folder: str
    given: bool = False  # a part of distill.teacher: used, never made and never removed

    @property
    def complete(self) -> bool:
        """Whether the step has finished."""
        return self.given or storage.exists(storage.join(self.folder, storage.LAST_FILE))


def plan(config: Config) -> dict[str, Artifact]:
    """The artifact of every step, in order; `distilled` where the configuration asks for it.

    Reads the images' listings (of data.source=ilsvrc also the files with its labels), metadata.json and config.yaml of
    distill.teacher, 64 KiB of every file of frozen weights, and the directory of an .npz of evaluate.reference.
    Raises ConfigError for a configuration that no training can make.
    """
    if config.structure.few_step or config.content.guided:
        raise ConfigError(
            "structure.few_step=true and content.guided=true are what pipelines/distill.py makes: set distill.steps"
        )
    from nvg.data import open_source

    train = open_source(config.data, "train")
    test_images = open_source(config.data, "test", train).fingerprint() if config.data.test else None
    given, teacher = _teacher(config.distill.teacher)
    keys = artifact_keys(config, train.fingerprint(), test_images, teacher, file_fingerprints(config))
    folders = {step: storage.join(config.output, f"{step}-{key}") for step, key in keys.items()} | given
    return {step: Artifact(step, key, folders[step], given=step in given) for step, key in keys.items()}


def file_fingerprints(config: Config) -> dict[str, str]:
    """What tells the contents of the files that a configuration names beside images, by setting: frozen weights, and
    the .npz of evaluate.reference. What is missing or cannot be read is left out: the step that needs it reports it."""
    found: dict[str, str] = {}
    for name in ("tokenizer_train", "repa", "evaluate"):
        section = getattr(config, name)
        for item in dataclasses.fields(section):
            path = getattr(section, item.name) if item.metadata.get("path") else None
            if path in (None, "test", "train") or not storage.exists(path):
                continue
            with suppress(DataError, FileNotFoundError):
                found[f"{name}.{item.name}"] = npz_fingerprint(path) if path.endswith(".npz") else storage.sample(path)
    return found


def split_fingerprints(config: Config) -> list[str | None]:
    """What tells the images of both splits; None for those that are not here, which not every evaluation needs."""
    from nvg.data import open_source

    found: list[str | None] = [None, None]
    for index, split in enumerate(("train", "test")):
        with suppress(DataError, FileNotFoundError):
            found[index] = open_source(config.data, split).fingerprint()
    return found


def npz_fingerprint(path: str) -> str:
    """What tells the contents of an .npz: the checksums of its directory. Raises DataError for another file."""
    from nvg.evaluation.npz import read_header

    with storage.open(path) as file:
        return read_header(file).fingerprint


def _teacher(name: str | None) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Where the steps are that a teacher stands for, and its metadata.json. Raises ConfigError for a distilled one."""
    if name is None:
        return {}, None
    from nvg.artifacts.models import look_up

    place, metadata, model = look_up(name)
    if model.structure.few_step or model.content.guided:
        raise ConfigError(f"distill.teacher={name} is itself distilled: name the sampler that it was made of")
    return {"tokenizer": place, "generators": place}, metadata


def fetched(artifact: Artifact) -> Artifact:
    """An artifact whose files can be read: a teacher of MLflow's registry is downloaded, once in a process."""
    if not artifact.folder.startswith("models:/"):
        return artifact
    return dataclasses.replace(artifact, folder=_download(artifact.folder))


@functools.cache
def _download(version: str) -> str:
    from nvg.artifacts.models import sampler_folder

    return sampler_folder(version)


def planned(step: str, artifacts: Mapping[str, Artifact]) -> Artifact:
    """The artifact of a step in a plan. Raises ConfigError where the configuration does not ask for the step."""
    if step not in artifacts:  # the only step that a configuration may be without
        raise ConfigError(
            "distill.steps=0: there is no such step; say how many steps to train, for example distill.steps=4000"
        )
    return artifacts[step]


def sampler_artifact(artifacts: Mapping[str, Artifact]) -> Artifact:
    """The artifact that images are drawn with: the distilled generators where there are some."""
    return artifacts.get("distilled", artifacts["generators"])


def as_drawn(config: Config) -> Config:
    """The configuration with the settings with which `sampler_artifact(plan(config))` draws."""
    return dataclasses.replace(config, sampler=drawn_with(config))


def inputs(step: str, artifacts: Mapping[str, Artifact]) -> list[Artifact]:
    """The artifacts that a step reads, in the order of its `needs`."""
    return [sampler_artifact(artifacts) if name == "distilled" else artifacts[name] for name in STEPS[step].needs]


# ---- making them ----


def make(step: str, config: Config, artifacts: Mapping[str, Artifact]) -> None:
    """Make a step's artifact on the running Ray. Its inputs must be complete."""
    folders = [artifact.folder for artifact in inputs(step, artifacts)]
    STEPS[step].load_maker()(config, *folders, artifacts[step].folder)


def tidy_up(artifact: Artifact) -> None:
    """Remove what a job left that was killed when its artifact was complete: its lease tells."""
    if not artifact.given and left_over(artifact.folder):
        with suppress(OutputBusy), lease(artifact.folder):  # where the job lives it does so itself
            tidy(artifact.folder)


@contextmanager
def claimed(*artifacts: Artifact) -> Iterator[None]:
    """The right to make some artifacts, for as long as the block lasts. Raises OutputBusy where another job has it."""
    with ExitStack() as stack:
        for artifact in artifacts:
            stack.enter_context(lease(artifact.folder))
        try:
            yield
        finally:
            for artifact in artifacts:
                if artifact.complete:  # and what made it was killed before it could tidy up
                    tidy(artifact.folder)
