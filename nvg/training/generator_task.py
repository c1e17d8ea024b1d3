"""The training of the generators as a `Task`: content, structure or both, from token batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nvg.autoencoder import Autoencoder
from nvg.config import Config, DistillConfig, TrainConfig
from nvg.describe import forward_flops
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.precision import dtype_of
from nvg.training.compiled import compile_blocks
from nvg.training.ema import EMA
from nvg.training.generator_loss import Generators
from nvg.training.parallel import Wrap, alone, assign, workers
from nvg.training.schedule import scaled_lr, warmup_stable_decay
from nvg.training.seeds import draw_seed
from nvg.training.task import Batch, Task

PREVIEW_CLASSES = 10
PREVIEW_COLUMNS = 4


class GeneratorTask(Task):
    """The generators' training.

    Batches hold codes (b, L), content (b, 2L - 1), labels (b,) and, for alignment, features (b, L, D).
    """

    divisible = True

    def __init__(
        self,
        config: Config,
        tokenizer: Autoencoder,
        stream: Callable[[int], Iterator[Batch]],
        total_steps: int,
        *,
        class_names: list[str],
        device: torch.device,
        wrap: Wrap = alone,
    ) -> None:
        """tokenizer: frozen, on any device. wrap: data parallelism, applied to the module that is called."""
        self.config, self.total_steps, self.stream = config, total_steps, stream
        self.tokenizer = tokenizer.to(device)
        self.class_names, self.device = class_names, device
        settings = config.train
        both = self._fresh()
        if settings.compile:
            compile_blocks(both)
        self.modules = {name: module for name, module in both.named_children()}
        self.generators = wrap(both, settings.parallel, dtype_of(settings.precision, device, training=True))
        self.averages = {name: EMA(module, settings.ema_decay) for name, module in self.modules.items()}
        self.optimizers = {name: adamw(module, settings) for name, module in self.modules.items()}
        self.clip = {name: list(module.parameters()) for name, module in self.modules.items()}
        self.bare = both
        self.parallel = [self.generators]

    def _fresh(self) -> Generators:
        """Generators as they are before the first step."""
        settings = self.config.train
        fresh: dict[str, Any] = {}
        for name, build in (("content", ContentGenerator), ("structure", StructureGenerator)):
            if name in settings.parts:
                torch.manual_seed(draw_seed(self.config.seed, name))
                fresh[name] = build(getattr(self.config, name)).to(self.device)
                fresh[name].backbone.gradient_checkpointing = settings.gradient_checkpointing
        return Generators(
            fresh.get("content"), fresh.get("structure"), self.tokenizer.quantizer, settings, self.config.repa.weight
        )

    def batches(self, step: int) -> Iterator[Batch]:
        return self.stream(step)

    def lr(self, step: int) -> dict[str, float]:
        settings = self.config.train
        factor = warmup_stable_decay(
            step,
            self.total_steps,
            warmup=settings.warmup_steps,
            decay_share=settings.decay_share,
            final=settings.final_lr,
        )
        rate = scaled_lr(settings.lr, settings.batch_size) * factor
        return dict.fromkeys(self.optimizers, rate)

    def begin(self, batch: Batch, rng: torch.Generator) -> None:
        """Set what follows from the codebook and from the scale of the first worker's first batch."""
        whole = self._fresh()  # the bare one may be split over the workers
        whole.begin(GranularitySequence.from_flat(batch["codes"], batch["content"]))
        tensors = self.bare.state_dict(keep_vars=True)  # buffers too: the input scales
        for name, value in whole.state_dict().items():
            if workers() > 1:
                distributed.broadcast(value, src=0)
            assign(tensors[name].data, value)
        for average in self.averages.values():
            average.reset()

    def draw(self, batch: Batch, rng: torch.Generator) -> Batch:
        draws = self.bare.draw(len(batch["labels"]), rng)
        return batch | {name: value.to(self.device, non_blocking=True) for name, value in draws.items()}

    def loss(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        sequence = GranularitySequence.from_flat(batch["codes"], batch["content"])
        return self.generators(sequence, batch["labels"], batch, batch.get("features"))

    def flops(self) -> float:
        return 3.0 * sum(forward_flops(self.config, self.modules).values())

    @torch.no_grad()
    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Draw samples.png with the averaged weights, where both generators are trained."""
        if len(averaged) < 2:
            return {}
        both = self._fresh()
        assert both.content is not None and both.structure is not None
        for name, state in averaged.items():
            getattr(both, name).load_state_dict(state)
        sampler = Sampler(self.tokenizer, both.content, both.structure, self.config.sampler, self.class_names)
        return {"samples.png": preview_grid(sampler, self.config.evaluate.seed)}


def adamw(module: nn.Module, settings: TrainConfig | DistillConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone: biases and gains have none. Fused: one operation, not 14 a tensor."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), fused=True)


def preview_grid(sampler: Sampler, seed: int) -> Any:
    """A picture of a few samples of some classes."""
    from nvg.pictures import sample_grid

    count = len(sampler.class_names)
    some = torch.linspace(0, count - 1, min(count, PREVIEW_CLASSES)).round().long()
    labels = some.repeat_interleave(PREVIEW_COLUMNS).tolist()
    return sample_grid(sampler.generate(labels, seed=seed), labels, sampler.class_names)
