"""Distillation of the generators as a `Task`: a frozen teacher, and students that start as the teacher."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nvg.config import Config
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.ema import EMA
from nvg.training.few_step_loss import FewStep
from nvg.training.generator_task import adamw, preview_grid
from nvg.training.guided_loss import GuidedContent
from nvg.training.parallel import Wrap, alone
from nvg.training.schedule import scaled_lr, warmup_stable_decay
from nvg.training.seeds import draw_seed
from nvg.training.task import Batch, Task


class DistillTask(Task):
    """The distillation. Batches hold codes (b, L), content (b, 2L - 1), labels (b,)."""

    def __init__(
        self,
        config: Config,
        teacher: Sampler,
        stream: Callable[[int], Iterator[Batch]],
        total_steps: int,
        *,
        device: torch.device,
        wrap: Wrap = alone,
    ) -> None:
        """teacher: a sampler, whose generators that are not distilled stay as they are. wrap: data parallelism."""
        self.config, self.settings = config, config.distill
        self.total_steps, self.stream = total_steps, stream
        self.teacher = teacher.to(device)
        self.modules, self.averages = {}, {}
        self.losses: dict[str, nn.Module] = {}  # by part
        self.students: dict[str, Any] = {"content": teacher.content, "structure": teacher.structure}
        for part in self.settings.parts:
            torch.manual_seed(draw_seed(config.seed, "distill", part))
            student = begin_as(self.students[part], self.settings.max_guidance).to(device)
            self.students[part] = self.modules[part] = student
            self.averages[part] = EMA(student, self.settings.ema_decay)
            self.losses[part] = wrap(self._loss_of(part, student), "ddp")
        self.optimizers = {part: adamw(module, self.settings) for part, module in self.modules.items()}
        self.clip = {part: list(module.parameters()) for part, module in self.modules.items()}
        self.parallel = list(self.losses.values())

    def _loss_of(self, part: str, student: Any) -> nn.Module:
        if part == "content":
            return GuidedContent(student, self.teacher.content, self.settings)
        average = copy.deepcopy(student).eval().requires_grad_(False)
        average.load_state_dict(self.averages[part].shadow, assign=True)  # the very tensors: it follows
        return FewStep(student, average, self.teacher.structure, self.settings)

    def batches(self, step: int) -> Iterator[Batch]:
        return self.stream(step)

    def lr(self, step: int) -> dict[str, float]:
        settings = self.settings
        factor = warmup_stable_decay(
            step,
            self.total_steps,
            warmup=settings.warmup_steps,
            decay_share=settings.decay_share,
            final=settings.final_lr,
        )
        return dict.fromkeys(self.optimizers, scaled_lr(settings.lr, settings.batch_size) * factor)

    def loss(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        sequence = GranularitySequence.from_flat(batch["codes"], batch["content"])
        quantizer = self.teacher.tokenizer.quantizer
        with torch.no_grad(), torch.autocast(sequence.codes.device.type, enabled=False):
            canvases = quantizer.canvases(sequence)  # K + 2 of (N, L, e)
        whole = canvases[0].new_zeros(())
        terms: dict[str, Tensor] = {}
        for part, loss in self.losses.items():
            stages = range(quantizer.last_stage + 1) if part == "content" else range(1, quantizer.last_stage)
            part_loss, part_terms = loss(canvases, batch["labels"], sequence.codes, stages, rng)
            whole, terms = whole + part_loss, terms | part_terms
        return whole, terms

    @torch.no_grad()
    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Draw samples.png with the averaged weights."""
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.applied())
            teacher, settings = self.teacher, self.sampler_config().sampler
            content, structure = self.students["content"], self.students["structure"]
            sampler = Sampler(teacher.tokenizer, content, structure, settings, teacher.class_names)
            return {"samples.png": preview_grid(sampler, self.config.evaluate.seed)}

    def sampler_config(self) -> Config:
        """The configuration of the sampler with the students in it."""
        settings = self.config.sampler
        if "structure" in self.settings.parts:
            settings = dataclasses.replace(settings, flow_steps=self.settings.flow_steps)
        parts = {part: student.config for part, student in self.students.items()}
        return dataclasses.replace(self.config, sampler=settings, **parts)


def begin_as(teacher: ContentGenerator | StructureGenerator, max_guidance: float) -> Any:
    """A student of the teacher's kind whose output is the teacher's, for any guidance (and step size) it is given."""
    folded = {"guided": True} if isinstance(teacher, ContentGenerator) else {"few_step": True}
    student = type(teacher)(dataclasses.replace(teacher.config, max_guidance=max_guidance, **folded))  # type: ignore
    student.load_state_dict(student.state_dict() | dict(teacher.state_dict()))
    return student
