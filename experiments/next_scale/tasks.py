"""What is trained: the two tokenizers and the generators of all models, as tasks of the project's own training loop.

The tasks of next-scale generation are ours but for their network and its loss, so optimizer, schedule, averages,
dropped classes and the care of unused entries are the same.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.next_scale.quantizer import ScaleQuantizer, ScaleSequence
from experiments.next_scale.transformer import NextScale
from nvg import storage
from nvg.config import Config, TrainConfig
from nvg.config.schema import TrainingConfig
from nvg.training.ema import EMA
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import LoopSettings, Place, train
from nvg.training.seeds import draw_seed, seeded
from nvg.training.task import Batch, Task
from nvg.training.tokenizer_task import TokenizerTask

CHECKPOINT_EVERY = 50  # steps: one to two minutes

Stream = Callable[[int], Iterator[Batch]]


def batches_of(rows: dict[str, Tensor], batch_size: int, seed: int) -> Stream:
    """Batches without end from any step on, each a function of (seed, step): random rows of tensors (N, ...)."""

    def stream(step: int) -> Iterator[Batch]:
        count = len(next(iter(rows.values())))
        for number in itertools.count(step):
            index = torch.randint(count, (batch_size,), generator=seeded(seed, "rows", number))
            yield {name: value[index] for name, value in rows.items()}

    return stream


class ScaleTokenizerTask(TokenizerTask):
    """The training of our tokenizer with the quantizer of scales in place of ours."""

    def __init__(
        self, config: Config, scales: Sequence[int], stream: Stream, steps: int, *, device: torch.device
    ) -> None:
        super().__init__(config, stream, steps, steps, device=device)
        settings = self.settings
        self.autoencoder.quantizer = ScaleQuantizer(config.tokenizer, scales).to(device)
        parameters = list(self.autoencoder.parameters())
        self.averages = {"tokenizer": EMA(self.autoencoder, settings.ema_decay)}
        self.optimizers = {"tokenizer": self._adamw(parameters, settings.lr, settings.weight_decay)}
        self.clip = {"tokenizer": parameters}


class ScaleLoss(nn.Module):
    """The cross-entropy of the next scale, over all scales of every image, as one module."""

    def __init__(self, network: NextScale, quantizer: ScaleQuantizer, config: TrainConfig) -> None:
        super().__init__()
        self.next_scale = network
        self.config = config
        self.quantizer = [quantizer]  # in a list: frozen, and no part of this module's state

    @torch.no_grad()
    def begin(self, sequence: ScaleSequence) -> None:
        """Before the first step: set the input scales by some images."""
        self.next_scale.begin(self.quantizer[0].inputs(sequence))

    def draw(self, images: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Whether the class of an image is dropped (N,), drawn on the CPU."""
        return {"dropped": torch.rand(images, generator=rng) < self.config.class_dropout}

    def forward(
        self, sequence: ScaleSequence, labels: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a mean over tokens: labels (N,); draws: of `draw`."""
        with torch.no_grad():
            inputs = self.quantizer[0].inputs(sequence)
        shown = torch.where(draws["dropped"].to(labels.device), self.next_scale.config.num_classes, labels)
        loss = torch.cat(cross_entropies(self.next_scale, inputs, shown, sequence), dim=1).mean()
        return loss, {"cross_entropy": loss}


def cross_entropies(
    network: NextScale, inputs: Sequence[Tensor], labels: Tensor, sequence: ScaleSequence
) -> list[Tensor]:
    """Of every token, in nats: (N, n_k^2) a scale."""
    logits = network(inputs, labels)
    each = zip(logits, sequence.content, strict=True)
    return [F.cross_entropy(one.transpose(1, 2), tokens, reduction="none") for one, tokens in each]


class NextScaleTask(GeneratorTask):
    """The training of a next-scale generator. Batches hold content (b, T) and labels (b,)."""

    def _fresh(self) -> Any:
        torch.manual_seed(draw_seed(self.config.seed, "next_scale"))
        quantizer = self.tokenizer.quantizer
        assert isinstance(quantizer, ScaleQuantizer)
        network = NextScale(self.config.content, quantizer.scales).to(self.device)
        return ScaleLoss(network, quantizer, self.config.train)

    def begin(self, batch: Batch, rng: torch.Generator) -> None:
        self.bare.begin(self._sequence(batch))
        for average in self.averages.values():
            average.reset()

    def loss(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.generators(self._sequence(batch), batch["labels"], batch)
        return loss, terms

    def flops(self) -> Any:
        return None  # the experiment counts them itself

    def _sequence(self, batch: Batch) -> Any:
        network = self.bare.next_scale
        assert isinstance(network, NextScale)
        return ScaleSequence.from_flat(batch["content"], network.scales)


def fit(task: Task, config: Config, section: TrainingConfig, steps: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """The averaged weights of a task's modules after a number of steps. An interrupted training goes on from its last
    checkpoint in `folder`, where cpu_seconds.json has the CPU seconds of its steps."""
    clock = folder / "cpu_seconds.json"
    before, start = cpu_seconds(folder), time.process_time()

    def report(metrics: dict[str, float]) -> None:  # after each checkpoint
        storage.write_json(str(clock), before + time.process_time() - start)

    settings = LoopSettings(
        job=folder.name,
        total_steps=steps,
        batch_size=section.batch_size,
        slices=1,
        micro_batch=None,
        clip_norm=section.clip_norm,
        checkpoint_every=CHECKPOINT_EVERY,
        log_every=config.tracking.log_every,
        preview_every=0,
        evaluate_every=0,
        precision="float32",
        seed=config.seed,
        identity=folder.name,
    )
    train(task, settings, config, str(folder), place=Place(report=report))
    return task.averaged()


def cpu_seconds(folder: Path) -> float:
    """The CPU seconds that a training's steps took so far."""
    path = folder / "cpu_seconds.json"
    return float(path.read_text()) if path.exists() else 0.0
