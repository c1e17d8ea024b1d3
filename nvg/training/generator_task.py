"""Training of the generators as a `Task`: content, structure or both, from token batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nvg.autoencoder import Autoencoder
from nvg.config import Config, DistillConfig, TrainConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.ema import EMA
from nvg.training.generator_loss import Generators
from nvg.training.loop import Batch, Task, draw_seed, workers
from nvg.training.schedule import scaled_lr, warmup_stable_decay

PREVIEW_CLASSES = 10
PREVIEW_COLUMNS = 4


class GeneratorTask(Task):
    """Batches hold codes (b, L), content (b, 2L - 1), labels (b,) and, for alignment, features (b, L, D)."""

    def __init__(
        self,
        config: Config,
        tokenizer: Autoencoder,
        stream: Callable[[int], Iterator[Batch]],
        total_steps: int,
        *,
        class_names: list[str],
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        """tokenizer: frozen, on any device. wrap: data parallelism, applied to the module that is called."""
        self.config, self.total_steps, self.stream = config, total_steps, stream
        self.tokenizer = tokenizer.to(device)
        self.class_names = class_names
        settings = config.train
        content = structure = None
        self.modules = {}
        if "content" in settings.parts:
            torch.manual_seed(draw_seed(config.seed, "content"))
            self.modules["content"] = content = ContentGenerator(config.content).to(device)
        if "structure" in settings.parts:
            torch.manual_seed(draw_seed(config.seed, "structure"))
            self.modules["structure"] = structure = StructureGenerator(config.structure).to(device)
        for part in (content, structure):
            if part is not None:
                part.backbone.gradient_checkpointing = settings.gradient_checkpointing
        both = Generators(content, structure, self.tokenizer.quantizer, settings, config.repa.weight)
        self.averages = {name: EMA(module, settings.ema_decay) for name, module in self.modules.items()}
        self.optimizers = {name: adamw(module, settings) for name, module in self.modules.items()}
        self.clip = {name: list(module.parameters()) for name, module in self.modules.items()}
        self.bare = both
        self.generators = wrap(both)
        self.parallel = [self.generators]

    def batches(self, step: int) -> Iterator[Batch]:
        return self.stream(step)

    def lr(self, step: int) -> dict[str, float]:
        settings = self.config.train
        factor = warmup_stable_decay(
            step, self.total_steps, warmup=settings.warmup_steps, decay_share=settings.decay_share,
            final=settings.final_lr,
        )
        rate = scaled_lr(settings.lr, settings.batch_size) * factor
        return dict.fromkeys(self.optimizers, rate)

    def begin(self, batch: Batch, generator: torch.Generator) -> None:
        """What follows from the codebook and from the scale of the first worker's first batch."""
        self.bare.begin(GranularitySequence.from_flat(batch["codes"], batch["content"]))
        if workers() > 1:
            for parameter in self.bare.parameters():
                distributed.broadcast(parameter.data, src=0)
        for average in self.averages.values():
            average.reset()

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        sequence = GranularitySequence.from_flat(batch["codes"], batch["content"])
        return self.generators(sequence, batch["labels"], generator, batch.get("features"))

    @torch.no_grad()
    def preview(self) -> dict[str, Any]:
        """samples.png of the averaged weights, when both generators are there."""
        if len(self.modules) < 2:
            return {}
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.applied())
            content, structure = self.modules["content"], self.modules["structure"]
            assert isinstance(content, ContentGenerator) and isinstance(structure, StructureGenerator)
            sampler = Sampler(self.tokenizer, content, structure, self.config.sampler, self.class_names)
            return {"samples.png": preview_grid(sampler, self.config.evaluate.seed)}

    def averaged(self) -> dict[str, dict[str, Tensor]]:
        """The averaged weights of each part that was trained."""
        return {name: ema.shadow for name, ema in self.averages.items()}


def adamw(module: nn.Module, settings: TrainConfig | DistillConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone: biases and gains have none. Fused: one operation, not 14 a tensor."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    first, second = settings.betas
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), fused=True)


def preview_grid(sampler: Sampler, seed: int) -> Any:
    """A picture of a few samples of some classes."""
    from nvg.evaluation.pictures import sample_grid

    count = len(sampler.class_names)
    some = torch.linspace(0, count - 1, min(count, PREVIEW_CLASSES)).round().long()
    labels = some.repeat_interleave(PREVIEW_COLUMNS).tolist()
    return sample_grid(sampler.generate(labels, seed=seed), labels, sampler.class_names)
