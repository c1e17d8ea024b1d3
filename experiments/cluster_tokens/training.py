"""One generator of one form, trained in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.cluster_tokens.unpooled import PositionHead, content_loss_by_head, unpooled_content_loss
from experiments.common.data import Tokens
from nvg.autoencoder import GranularityQuantizer
from nvg.config import Config, TrainConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.training.ema import EMA
from nvg.training.generator_loss import Generators
from nvg.training.generator_task import adamw
from nvg.training.schedule import scaled_lr, warmup_stable_decay

UNPOOLED = {"positions": unpooled_content_loss, "head": content_loss_by_head}


@dataclass(frozen=True)
class Form:
    """A form of a generator: what differs in its configuration, and how its canvas loss is taken."""

    name: str
    part: str  # content | structure
    settings: dict[str, Any]
    canvas_loss: str = "tokens"  # tokens | positions | head | none

    def build(self, config: Config, seed: int) -> ContentGenerator | StructureGenerator:
        """The generator before its first step."""
        torch.manual_seed(seed)
        if self.part == "content":
            content = ContentGenerator(replace(config.content, **self.settings))
            if self.canvas_loss == "head":
                shape = content.config
                content.position_head = PositionHead(shape.grid**2, shape.code_width, 64 * shape.depth)
            return content
        return StructureGenerator(replace(config.structure, **self.settings))


POSITIONS = {"tokens": "positions", "position_network": False}
CLUSTERS = {"tokens": "clusters", "position_network": True}
FORMS = {
    form.name: form
    for form in (
        Form("positions", "content", POSITIONS),
        Form("positions, position network", "content", POSITIONS | {"position_network": True}),
        Form("clusters", "content", CLUSTERS),
        Form("clusters, canvas loss on positions", "content", CLUSTERS, "positions"),
        Form("clusters, canvas loss by a head", "content", CLUSTERS, "head"),
        Form("clusters, no canvas loss", "content", CLUSTERS, "none"),
        Form("structure: positions", "structure", {"canvas_tokens": "positions"}),
        Form("structure: clusters", "structure", {"canvas_tokens": "clusters"}),
    )
}


def alone(
    network: ContentGenerator | StructureGenerator, quantizer: GranularityQuantizer, settings: TrainConfig
) -> Generators:
    """The loss of one generator."""
    if isinstance(network, ContentGenerator):
        return Generators(network, None, quantizer, settings)
    return Generators(None, network, quantizer, settings)


def loss_of(form: Form, network: Any, quantizer: GranularityQuantizer, config: Config) -> Callable[..., Tensor]:
    """The loss of a form: (sequence, labels, rng) -> a scalar."""
    train = replace(config.train, canvas_weight=0.0) if form.canvas_loss == "none" else config.train
    both = alone(network, quantizer, train)
    if form.canvas_loss not in UNPOOLED:
        return lambda sequence, labels, rng: both(sequence, labels, both.draw(len(labels), rng))[0]

    def unpooled(sequence: Any, labels: Tensor, rng: torch.Generator) -> Tensor:
        assert isinstance(network, ContentGenerator)
        with torch.no_grad():
            canvases = quantizer.canvases(sequence)
        dropped = torch.rand(len(labels), generator=rng) < train.class_dropout
        shown = torch.where(dropped, config.content.num_classes, labels)
        stages = range(quantizer.last_stage + 1)
        terms = UNPOOLED[form.canvas_loss](network, canvases, shown, sequence, stages)
        return terms["canvas"] + terms["cross_entropy"]

    return unpooled


def train(
    form: Form, config: Config, quantizer: GranularityQuantizer, tokens: Tokens, steps: int, seed: int
) -> tuple[ContentGenerator | StructureGenerator, float]:
    """The averaged network after a number of steps, and the seconds that they took."""
    network, settings = form.build(config, seed), config.train
    first = torch.arange(min(256, len(tokens.labels)))
    alone(network, quantizer, settings).begin(tokens.sequence[first])
    loss, optimizer = loss_of(form, network, quantizer, config), adamw(network, settings)
    average = EMA(network, settings.ema_decay)
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # blocks that rows skip
    network.train()
    start = time.perf_counter()
    for step in range(steps):
        factor = warmup_stable_decay(
            step, steps, warmup=settings.warmup_steps, decay_share=settings.decay_share, final=settings.final_lr
        )
        for group in optimizer.param_groups:
            group["lr"] = scaled_lr(settings.lr, settings.batch_size) * factor
        sequence, labels = tokens.rows(torch.randint(len(tokens.labels), (settings.batch_size,), generator=rng))
        optimizer.zero_grad(set_to_none=True)
        loss(sequence, labels, rng).backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        average.update()
    seconds = time.perf_counter() - start
    network.load_state_dict(average.shadow)
    return network.eval().requires_grad_(False), seconds
