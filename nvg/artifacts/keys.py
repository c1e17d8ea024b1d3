"""What an artifact's folder is called, and by what a checkpoint knows its training.

A key is the hash of the settings that a step reads and of its inputs' keys, the tokenizer's also of the artifacts'
format, so that nothing of another format is found. An identity is the hash of what a training is of. Both leave out the
fields that the configuration marks as operational (nvg/config/schema.py). They are functions of the configuration and
of fingerprints alone: nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nvg.config import Config, SamplerConfig, digest, to_dict, without_operational
from nvg.storage import FORMAT


def artifact_keys(
    config: Config,
    train_images: str,
    test_images: str | None,
    teacher: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The key of every step, in order; `distilled` where the configuration asks for it.

    train_images, test_images: fingerprints of the images (nvg/data), which tell them wherever they are. teacher:
    metadata.json of distill.teacher, which stands for tokenizer and generators. files: by setting
    (`repa.weights`), the fingerprints of the files that the configuration names and a step reads beside images.
    """

    def read_by(*sections: str) -> list[str]:
        return [value for name, value in sorted((files or {}).items()) if name.partition(".")[0] in sections]

    data, seed = to_dict(config.data), config.seed
    for name in ("train", "test", "views"):  # the tokenizer draws views of its own; those of the tokens come below
        del data[name]
    keys: dict[str, str] = {}
    images: tuple[Any, ...] = ()
    if teacher is None:
        training = without_operational(config.tokenizer_train)
        weights = read_by("tokenizer_train")
        keys["tokenizer"] = digest("tokenizer", FORMAT, train_images, data, config.tokenizer, training, seed, *weights)
    else:
        keys["tokenizer"] = digest(teacher)
        images = (train_images, data, seed)  # a tokenizer of our own has these in its key
    layout = [] if config.repa.weights is None else ["features by row"]  # they were a column of the tokens before
    precision = [] if config.precision == "auto" else [config.precision]  # of trainings it is in their sections
    keys["tokens"] = digest(
        *("tokens", keys["tokenizer"], config.data.views, config.repa.weights, *images, *read_by("repa")),
        *(*layout, *precision),
    )
    if teacher is None:
        networks, training = (config.content, config.structure), without_operational(config.train)
        keys["generators"] = digest("generators", keys["tokens"], *networks, training, config.repa, seed)
    else:
        keys["generators"] = digest(teacher)
    sampler = keys["generators"]
    if config.distill.steps:
        inputs, training = (keys["tokens"], keys["generators"]), without_operational(config.distill)
        sampler = keys["distilled"] = digest("distilled", inputs, training, seed)
    drawn = drawn_with(config)
    weights = read_by("evaluate")
    keys["evaluation"] = digest("evaluation", sampler, test_images, config.evaluate, drawn, *weights, *precision)
    return keys


def tokenizer_identity(config: Config) -> str:
    """The identity of the tokenizer's training. The images are told by where they are."""
    data = to_dict(config.data)
    for name in ("test", "views"):
        del data[name]
    training = without_operational(config.tokenizer_train)
    return digest("tokenizer", data, config.tokenizer, training, config.seed)


def generators_identity(config: Config, tokenizer: str) -> str:
    """The identity of the training of `train.parts`, which are what a checkpoint holds. tokenizer: its fingerprint."""
    training = without_operational(config.train) | {"parts": config.train.parts}
    return digest("generators", tokenizer, config.content, config.structure, training, config.repa, config.seed)


def distilled_identity(config: Config, teacher: Mapping[str, str]) -> str:
    """The identity of a distillation. teacher: fingerprints of its tokenizer, content and structure weights."""
    return digest("distill", teacher, without_operational(config.distill), config.seed)


def drawn_with(config: Config) -> SamplerConfig:
    """The settings with which the finished sampler draws: a distilled structure generator has flow steps of its own."""
    if config.distill.steps and "structure" in config.distill.parts:
        return dataclasses.replace(config.sampler, flow_steps=config.distill.flow_steps)
    return config.sampler
