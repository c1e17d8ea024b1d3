"""Distillation of the structure generator as a `Task`: a frozen teacher, and a student that begins as the teacher."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nvg.config import Config
from nvg.generator import Sampler, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.ema import EMA
from nvg.training.few_step_loss import FewStep
from nvg.training.generator_loss import rows_of_stages
from nvg.training.generator_task import adamw, preview_grid
from nvg.training.loop import Batch, Task, draw_seed
from nvg.training.schedule import scaled_lr, warmup_stable_decay


class FewStepTask(Task):
    """Batches hold codes (b, L), content (b, 2L - 1), labels (b,)."""

    def __init__(
        self,
        config: Config,
        teacher: Sampler,
        stream: Callable[[int], Iterator[Batch]],
        total_steps: int,
        *,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        """teacher: whole; its content generator is for previews. wrap: data parallelism."""
        self.config, self.settings = config, config.few_step
        self.total_steps, self.stream = total_steps, stream
        self.teacher = teacher.to(device)
        torch.manual_seed(draw_seed(config.seed, "few_step"))
        student = begin_as(teacher.structure, self.settings.max_guidance).to(device)
        self.student = student
        self.modules = {"structure": student}
        self.averages = {"structure": EMA(student, self.settings.ema_decay)}
        self.optimizers = {"structure": adamw(student, self.settings)}
        self.clip = {"structure": list(student.parameters())}
        average = copy.deepcopy(student).eval().requires_grad_(False)
        average.load_state_dict(self.averages["structure"].shadow, assign=True)  # the very tensors: it follows
        self.few_step = wrap(FewStep(student, average, teacher.structure, self.settings))
        self.parallel = [self.few_step]

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
        return {"structure": scaled_lr(settings.lr, settings.batch_size) * factor}

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        sequence = GranularitySequence.from_flat(batch["codes"], batch["content"])
        quantizer = self.teacher.tokenizer.quantizer
        with torch.no_grad(), torch.autocast(sequence.codes.device.type, enabled=False):
            canvases = torch.stack(quantizer.canvases(sequence))  # (K + 2, N, L, e)
        stages, rows = rows_of_stages(
            batch["labels"].shape[0], 1, quantizer.last_stage - 1, generator, all_stages=self.settings.all_stages
        )
        stages, rows = stages.to(canvases.device), rows.to(canvases.device)
        terms = self.few_step(canvases[stages, rows], batch["labels"][rows], stages, sequence.codes[rows], generator)
        return terms["flow"] + terms["shortcut"], terms

    @torch.no_grad()
    def preview(self) -> dict[str, Any]:
        """samples.png: structure by the averaged weights, content by the teacher."""
        teacher, settings = self.teacher, self.sampler_config().sampler
        with self.averages["structure"].applied():
            student = Sampler(teacher.tokenizer, teacher.content, self.student, settings, teacher.class_names)
            return {"samples.png": preview_grid(student, self.config.evaluate.seed)}

    def sampler_config(self) -> Config:
        """The configuration of the sampler with the student in it."""
        settings = dataclasses.replace(self.config.sampler, flow_steps=self.settings.flow_steps)
        return dataclasses.replace(self.config, structure=self.student.config, sampler=settings)

    def averaged(self) -> dict[str, Tensor]:
        """The student's averaged weights."""
        return self.averages["structure"].shadow


def begin_as(teacher: StructureGenerator, max_guidance: float) -> StructureGenerator:
    """A few-step generator whose output is the teacher's, whatever step size and guidance it is told."""
    config = dataclasses.replace(teacher.config, few_step=True, max_guidance=max_guidance)
    student = StructureGenerator(config)
    own = student.state_dict()
    student.load_state_dict(own | dict(teacher.state_dict()))
    return student
