"""The models that are compared: their networks, trainings, samplers and counts of operations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from experiments.common.data import Tokens
from experiments.common.held_out import BATCH, HELD_OUT, held_out
from experiments.common.judge import Draws
from experiments.next_scale.quantizer import ScaleQuantizer, ScaleSequence
from experiments.next_scale.sampler import ScaleSampler
from experiments.next_scale.tasks import NextScaleTask, ScaleTokenizerTask, Stream, cross_entropies
from experiments.next_scale.transformer import NextScale
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.describe import flops, parameters
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.training.generator_task import GeneratorTask
from nvg.training.task import Batch, Task
from nvg.training.tokenizer_task import TokenizerTask

SCALES = (1, 2, 3, 4, 6, 8)  # 130 tokens on 8x8 latents, where ours has 127
COUNTED = 4  # images of a pass whose operations are counted: a network fills fewer up to four
DEVICE = torch.device("cpu")


# ---- tokenizers ----


@dataclass(frozen=True)
class Tokenizer:
    """Our tokenizer, with its own quantizer or that of some scales."""

    name: str
    scales: tuple[int, ...] | None = None

    def build(self, config: Config) -> Autoencoder:
        """The tokenizer, untrained."""
        tokenizer = Autoencoder(config.tokenizer)
        if self.scales is not None:
            tokenizer.quantizer = ScaleQuantizer(config.tokenizer, self.scales)
        return tokenizer.eval()

    def task(self, config: Config, stream: Stream, steps: int) -> Task:
        """Its training."""
        if self.scales is not None:
            return ScaleTokenizerTask(config, self.scales, stream, steps, device=DEVICE)
        return TokenizerTask(config, stream, steps, steps, device=DEVICE)

    def tokens(self, config: Config) -> int:
        """Content tokens an image."""
        return 2 * config.tokenizer.positions - 1 if self.scales is None else sum(side**2 for side in self.scales)

    def bits(self, config: Config) -> float:
        """Bits an image where all entries, and all structures, are equally likely. A structure is a way to halve L
        positions down to pairs, and the order of two halves means nothing: there are L! / 2^(L - 1)."""
        positions = config.tokenizer.positions
        structure = math.lgamma(positions + 1) / math.log(2) - (positions - 1)
        content = self.tokens(config) * math.log2(config.tokenizer.codebook_size)
        return content + (structure if self.scales is None else 0.0)


GRANULARITY, OF_SCALES = Tokenizer("granularity"), Tokenizer("scales", SCALES)


# ---- generators ----


Drawings = Mapping[str, Mapping[str, Any]]  # settings of the sampler that differ, by what a row says of them
AS_CONFIGURED: Drawings = {"": {}}


class Model:
    """A way to generate, on its tokenizer."""

    name: str
    tokenizer: Tokenizer
    drawings: Drawings

    def task(self, config: Config, tokenizer: Autoencoder, stream: Stream, steps: int) -> Task:
        """The training of all its networks."""
        raise NotImplementedError

    def networks(self, config: Config) -> dict[str, torch.nn.Module]:
        """Its networks, untrained, by the names of the task's modules."""
        raise NotImplementedError

    def held_out(
        self, networks: dict[str, Any], tokenizer: Autoencoder, kept: dict[str, Tensor]
    ) -> dict[str, list[float]]:
        """Losses on held-out images by their name, stage by stage."""
        raise NotImplementedError

    def sampler(self, config: Config, networks: dict[str, Any], tokenizer: Autoencoder, names: list[str]) -> Draws:
        """A sampler of trained networks; names: of the classes."""
        raise NotImplementedError

    def draw(self, sampler: Any, classes: list[int], **settings: float) -> None:
        """Draw pictures without the decoder, for what this costs."""
        raise NotImplementedError

    def size(self, config: Config) -> int:
        """How many numbers it learns, without the tokenizer."""
        with torch.device("meta"):
            return sum(map(parameters, self.networks(config).values()))


@dataclass(frozen=True)
class Ours(Model):
    """Our two generators, in one of their forms."""

    name: str
    content: dict[str, Any]
    structure: dict[str, Any]
    canvas_weight: float
    drawings: Drawings = field(default_factory=lambda: AS_CONFIGURED)
    tokenizer: Tokenizer = GRANULARITY

    def _config(self, config: Config) -> Config:
        content, structure = replace(config.content, **self.content), replace(config.structure, **self.structure)
        train = replace(config.train, canvas_weight=self.canvas_weight)
        return replace(config, content=content, structure=structure, train=train)

    def task(self, config: Config, tokenizer: Autoencoder, stream: Stream, steps: int) -> Task:
        return GeneratorTask(self._config(config), tokenizer, stream, steps, class_names=[], device=DEVICE)

    def networks(self, config: Config) -> dict[str, torch.nn.Module]:
        changed = self._config(config)
        return {"content": ContentGenerator(changed.content), "structure": StructureGenerator(changed.structure)}

    def held_out(
        self, networks: dict[str, Any], tokenizer: Autoencoder, kept: dict[str, Tensor]
    ) -> dict[str, list[float]]:
        return {name: held_out(one, tokenizer.quantizer, Tokens.of(kept)) for name, one in networks.items()}

    def sampler(self, config: Config, networks: dict[str, Any], tokenizer: Autoencoder, names: list[str]) -> Draws:
        return Sampler(tokenizer, networks["content"], networks["structure"], config.sampler, names)  # type: ignore[return-value]

    def draw(self, sampler: Any, classes: list[int], **settings: float) -> None:
        deque(sampler.stages(classes, **settings), maxlen=0)  # a stage decodes its canvas where it is asked to


@dataclass(frozen=True)
class ByScales(Model):
    """The next-scale generator."""

    name: str = "next-scale"
    drawings: Drawings = field(default_factory=lambda: AS_CONFIGURED)
    tokenizer: Tokenizer = OF_SCALES

    def task(self, config: Config, tokenizer: Autoencoder, stream: Stream, steps: int) -> Task:
        return NextScaleTask(config, tokenizer, stream, steps, class_names=[], device=DEVICE)

    def networks(self, config: Config) -> dict[str, torch.nn.Module]:
        return {"next_scale": NextScale(config.content, SCALES)}

    @torch.no_grad()
    def held_out(
        self, networks: dict[str, Any], tokenizer: Autoencoder, kept: dict[str, Tensor]
    ) -> dict[str, list[float]]:
        found = []
        for rows in torch.arange(min(HELD_OUT, len(kept["labels"]))).split(BATCH):
            sequence = ScaleSequence.from_flat(kept["content"][rows], SCALES)
            inputs = tokenizer.quantizer.inputs(sequence)  # type: ignore[operator]
            losses = cross_entropies(networks["next_scale"], inputs, kept["labels"][rows], sequence)
            found.append(torch.stack([one.mean(dim=1) for one in losses], dim=1))  # (n, S)
        return {"next_scale": [round(value, 4) for value in torch.cat(found).mean(dim=0).tolist()]}

    def sampler(self, config: Config, networks: dict[str, Any], tokenizer: Autoencoder, names: list[str]) -> Draws:
        return ScaleSampler(tokenizer, networks["next_scale"], config.sampler)  # type: ignore[return-value]

    def draw(self, sampler: Any, classes: list[int], **settings: float) -> None:
        sampler.draw(classes, **settings)


# A pass a stage in place of flow_steps guided ones: then clusters draw by as many operations as next-scale, within 3%.
ONE_PASS = {"flow_steps": 1, "structure_guidance": 1.0}
POSITIONS = {"tokens": "positions", "position_network": False}  # the source's form
CLUSTERS = {"tokens": "clusters", "position_network": True}
MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        ByScales(),
        Ours("positions", POSITIONS, {"canvas_tokens": "positions"}, 1.0),
        Ours("clusters", CLUSTERS, {"canvas_tokens": "clusters"}, 0.0, {"": {}, ", one pass of structure": ONE_PASS}),
    )
}
REFERENCE = "positions"  # trains for train.steps; the others for as many operations


# ---- counts ----


def some_tokens(model: Model, config: Config) -> Batch:
    """Tokens of no image, for passes whose operations are counted."""
    entries, positions = config.tokenizer.codebook_size, config.tokenizer.positions
    batch = {
        "content": torch.randint(entries, (COUNTED, model.tokenizer.tokens(config))),
        "labels": torch.zeros(COUNTED, dtype=torch.int64),
    }
    if model.tokenizer is GRANULARITY:
        batch["codes"] = torch.arange(positions).repeat(COUNTED, 1)
    return batch


def training_flops(model: Model, config: Config) -> float:
    """Floating-point operations of a training step for an image, forward and backward: a multiply-add is two."""
    task = model.task(config, model.tokenizer.build(config), lambda step: iter(()), 1)
    batch, rng = some_tokens(model, config), torch.Generator().manual_seed(0)
    for module in task.modules.values():
        module.train()
    return flops(lambda: task.loss(task.draw(batch, rng), 0, rng)[0].backward()) / COUNTED


def steps_at_equal_flops(costs: dict[str, float], name: str, reference_steps: int) -> int:
    """The steps of a model whose training then takes as many operations as the reference's. costs: operations of a
    step for an image, by model."""
    return max(1, round(reference_steps * costs[REFERENCE] / costs[name]))


def sampling_flops(model: Model, sampler: Draws, classes: list[int], settings: dict[str, float]) -> float:
    """Floating-point operations of a picture, without the decoder, after other pictures of these classes: our sampler
    keeps the logits of stage 0."""
    model.draw(sampler, classes, **settings)
    return flops(lambda: model.draw(sampler, classes, **settings)) / len(classes)
