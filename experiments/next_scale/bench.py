"""The trainings and measurements of a data set: each is made once and kept, and the rows of the tables."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.common.data import all_images, encode, save
from experiments.common.judge import AT_ONCE, GRID, Judge, cell
from experiments.next_scale.models import (
    MODELS,
    Model,
    Tokenizer,
    sampling_flops,
    steps_at_equal_flops,
    training_flops,
)
from experiments.next_scale.tasks import batches_of, cpu_seconds, fit
from nvg import config as configuration
from nvg import storage
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.data.images import to_float
from nvg.describe import parameters
from nvg.errors import TrainingDiverged
from nvg.evaluation import metrics
from nvg.evaluation.reconstruction import mean_squared_error, psnr

RATES = (0.25, 0.5, 1.0)  # times train.lr
RATE_SHARE = 4  # of a training's steps, one in so many chooses the rate
RATE_SEED = 0
RECONSTRUCTED = 2000  # held-out images
TIMED = 3  # calls of AT_ONCE pictures
# The recipe's top-p is one number for all scales. Ours falls to `top_p` at the last stage: its useful values are lower.
GRIDS = dict.fromkeys(MODELS, GRID) | {"next-scale": {**GRID, "top_p": (0.5, 0.75, 0.9, 0.96, 1.0)}}

TOKENIZER_HEAD = ["tokenizer", "content tokens", "bits an image", "parameters", "PSNR in dB", "entries used"]
HEAD = [
    *("model", "seed", "tokens an image", "parameters", "training GFLOP an image and step", "steps", "training TFLOP"),
    *("CPU s", "lr at batch 256", "held-out loss", "Fréchet distance", "accuracy", "precision", "recall"),
    *("sampling MFLOP a picture", "CPU s a picture", "sampler"),
]


@dataclass(frozen=True)
class Training:
    """A training of a model: what its files are named by."""

    model: Model
    steps: int
    seed: int
    factor: float  # of train.lr

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.model.name}-{self.steps}-{self.seed}-{self.factor:g}"


@dataclass(frozen=True)
class Bench:
    """All that the rows of a data set share. Results are kept in config.output."""

    config: Config
    steps: int  # of `positions`
    samples: int  # of a row

    @staticmethod
    def open(config: Config, steps: int, samples: int) -> Bench:
        """The bench of a configuration. Ends the program where the output folder has results of another one."""
        path, text = Path(config.output) / "config.yaml", configuration.to_yaml(config)
        if path.exists() and path.read_text() != text:
            sys.exit(f"error: {path.parent} holds results of other settings: give another folder, output=FOLDER")
        storage.write_bytes(str(path), text.encode())
        return Bench(config, steps, samples)

    @property
    def work(self) -> Path:
        """The folder of results."""
        return Path(self.config.output)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a JSON file in the folder; made where there is none."""
        path = self.work / f"{name}.json"
        if not path.exists():
            storage.write_json(str(path), make())
        return json.loads(path.read_text())

    # ---- tokenizers ----

    def tokenizer(self, kind: Tokenizer) -> Autoencoder:
        """A trained tokenizer; trained once and kept."""
        path, training = (self.work / f"tokenizer-{kind.name}.{suffix}" for suffix in ("safetensors", "training"))
        if not path.exists():
            section = self.config.tokenizer_train
            images, _ = all_images(self.config.data, "train")
            stream, steps = batches_of({"images": images}, section.batch_size, self.config.seed), section.steps or 1
            weights = fit(kind.task(self.config, stream, steps), self.config, section, steps, training)
            save(weights["tokenizer"], path)
            storage.remove(str(training))
        tokenizer = kind.build(self.config)
        tokenizer.load_state_dict(load_file(path))
        return tokenizer.requires_grad_(False)

    def tokens(self, kind: Tokenizer, split: str) -> dict[str, Tensor]:
        """A split's tokens; encoded once and kept."""
        path = self.work / f"tokens-{kind.name}" / f"{split}.safetensors"
        return encode(self.tokenizer(kind), self.config.data, split, path)

    def tokenizer_row(self, kind: Tokenizer) -> list[str]:
        """The cells of a tokenizer."""
        quality = self.kept(f"tokenizer-{kind.name}", lambda: self.reconstruction(kind))
        size = parameters(kind.build(self.config))
        return [kind.name, str(kind.tokens(self.config)), f"{kind.bits(self.config):.0f}", f"{size:,}", *quality]

    def reconstruction(self, kind: Tokenizer) -> list[str]:
        """PSNR on held-out images, and the share of entries that these use."""
        tokenizer, used, errors = self.tokenizer(kind), set[int](), list[Tensor]()
        images, _ = all_images(self.config.data, "test")
        for some in images[:RECONSTRUCTED].split(100):
            sequence = tokenizer.encode(to_float(some))
            errors.append(mean_squared_error(to_float(some), tokenizer.decode(sequence)))
            used |= set(sequence.flat_content().unique().tolist())
        figure = metrics.mean(psnr(torch.cat(errors)), limits=metrics.DISTANCE)
        return [cell(figure), f"{len(used) / self.config.tokenizer.codebook_size:.2f}"]

    # ---- trainings ----

    @cached_property
    def costs(self) -> dict[str, float]:
        """Operations of a step for an image, by model."""
        return {name: training_flops(model, self.config) for name, model in MODELS.items()}

    def record(self, training: Training) -> dict[str, Any]:
        """Held-out losses and CPU seconds of a training, whose weights are kept beside; trained once."""
        folder = self.work / f"{training.name}.training"
        result: dict[str, Any] = self.kept(training.name, lambda: self.train(training, folder))
        storage.remove(str(folder))
        return result

    def train(self, training: Training, folder: Path) -> dict[str, Any]:
        """Train, with checkpoints in a folder."""
        model, lr = training.model, training.factor * self.config.train.lr
        config = replace(self.config, seed=training.seed, train=replace(self.config.train, lr=lr))
        tokenizer, train_tokens = self.tokenizer(model.tokenizer), self.tokens(model.tokenizer, "train")
        stream = batches_of(train_tokens, config.train.batch_size, training.seed)
        task = model.task(config, tokenizer, stream, training.steps)
        weights = fit(task, config, config.train, training.steps, folder)
        state = {f"{name}.{key}": value for name, some in weights.items() for key, value in some.items()}
        save(state, self.work / f"{training.name}.safetensors")
        losses = model.held_out(self.networks(training), tokenizer, self.tokens(model.tokenizer, "test"))
        return {"losses": losses, "cpu_seconds": cpu_seconds(folder)}

    def networks(self, training: Training) -> dict[str, torch.nn.Module]:
        """The trained networks by name."""
        networks = torch.nn.ModuleDict(training.model.networks(self.config))
        networks.load_state_dict(load_file(self.work / f"{training.name}.safetensors"))
        return dict(networks.eval().items())

    def training(self, model: Model, seed: int) -> Training:
        """The training of a row: at equal operations, with the learning rate of the least held-out loss after a share
        of the steps."""
        steps = steps_at_equal_flops(self.costs, model.name, self.steps)

        def loss(factor: float) -> float:
            try:
                losses = self.record(Training(model, max(1, steps // RATE_SHARE), RATE_SEED, factor))["losses"]
            except TrainingDiverged as error:
                print(f"factor {factor:g} of lr: {error}", file=sys.stderr)
                return float("inf")
            return sum(map(statistics.mean, losses.values()))

        factor = self.kept(f"{model.name}-{steps}-rate", lambda: min(RATES, key=loss))
        return Training(model, steps, seed, factor)

    # ---- pictures ----

    @cached_property
    def judge(self) -> Judge:
        """The networks and images by which drawn pictures are measured."""
        return Judge.open(self.config, samples=self.samples, tuning_samples=max(2, self.samples // 5))

    def drawn(self, training: Training, drawing: str) -> list[str]:
        """The cells of drawn pictures. Settings are tuned on the first training of a model that is drawn."""
        model, names = training.model, self.judge.class_names
        config = replace(self.config, sampler=replace(self.config.sampler, **model.drawings[drawing]))
        sampler = model.sampler(config, self.networks(training), self.tokenizer(model.tokenizer), names)
        settings: dict[str, float] = self.kept(
            f"{model.name}{drawing}-{training.steps}-tuned-{self.samples}",
            lambda: self.judge.tune(sampler, GRIDS[model.name]),
        )
        figures = self.judge.figures(sampler, **settings)
        classes = [index % len(names) for index in range(AT_ONCE)]
        operations = sampling_flops(model, sampler, classes, settings)
        seconds = []
        for _ in range(TIMED):
            start = time.process_time()
            model.draw(sampler, classes, **settings)
            seconds.append((time.process_time() - start) / AT_ONCE)
        told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        return [*map(cell, figures.values()), f"{operations / 1e6:.1f}", f"{statistics.median(seconds):.4f}", told]

    def rows(self, model: Model, seed: int) -> Iterator[list[str]]:
        """The rows of a training, one for each way to draw."""
        training, section = self.training(model, seed), self.config.train
        record, cost = self.record(training), self.costs[model.name]
        losses = "; ".join(f"{name} {statistics.mean(values):.3f}" for name, values in record["losses"].items())
        cells = [
            str(seed),
            str(model.tokenizer.tokens(self.config)),
            f"{model.size(self.config):,}",
            f"{cost / 1e9:.3f}",
            str(training.steps),
            f"{cost * section.batch_size * training.steps / 1e12:.2f}",
            f"{record['cpu_seconds']:.0f}",
            f"{training.factor * section.lr:g}",
            losses,
        ]
        for drawing in model.drawings:
            make = partial(self.drawn, training, drawing)
            drawn = self.kept(f"{training.name}-drawn{drawing}-{self.samples}", make)
            yield [model.name + drawing, *cells, *drawn]
