"""The loss of a content generator with its guidance folded in (docs/fast_sampling.md, content).

After Meng et al., "On Distillation of Guided Diffusion Models" (arXiv 2210.03142). With g(x_i, w) the student and f the
teacher, the guided logits of stage i are those of a guided estimate, since logits are linear in x_hat - x_i:

    x_hat(w) = f(x_i, "no class") + w (f(x_i, class) - f(x_i, "no class"))
    loss = KL( softmax logits(x_hat(w)) || softmax logits(g(x_i, w)) ) + |g(x_i, w) - x_hat(w)|^2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.config import DistillConfig
from nvg.generator import ContentGenerator
from nvg.generator.guidance import guided
from nvg.granularity import structure_map


class GuidedContent(nn.Module):
    """The student with its loss: a module that is called with the loss's inputs."""

    def __init__(self, student: ContentGenerator, teacher: ContentGenerator, config: DistillConfig) -> None:
        """teacher: frozen."""
        super().__init__()
        self.student = student
        self.config = config
        self.frozen = (teacher,)  # in a tuple: no part of this module's state

    def forward(
        self, canvas: Tensor, labels: Tensor, stages: Tensor, codes: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, of N rows: `divergence` in nats, a mean over an image's clusters and then over
        images, and `estimate`, a mean squared error.

        canvas x_i (N, L, e), labels (N,), stages (N,) on the CPU, codes (N, L) whole; rng: on the CPU.
        """
        (teacher,) = self.frozen
        rows, device = codes.shape[0], codes.device
        stage, highest = stages.to(device), self.student.config.max_guidance
        guidance = (1 + (highest - 1) * torch.rand(rows, generator=rng)).to(device)
        table = self.student.rotary(codes, stage)
        with torch.no_grad():

            def estimate_of(labels: Tensor, canvas: Tensor, stage: Tensor, table: Tensor) -> Tensor:
                return teacher(canvas, labels, stage, table)[0].float()

            target = guided(estimate_of, labels, (canvas, stage, table), guidance, teacher.config.num_classes)
        estimate = self.student(canvas, labels, stage, table, guidance)[0].float()
        divergence = canvas.new_zeros(())
        for i in range(self.student.last_stage + 1):  # a stage has 2^i clusters: one shape a group
            some = (stages == i).nonzero()[:, 0].to(device)
            if some.shape[0] == 0:
                continue
            labelled = (canvas[some], structure_map(codes[some], i), i)
            with torch.no_grad():
                expected = teacher.logits(target[some], *labelled).float().log_softmax(dim=-1)
            predicted = self.student.logits(estimate[some], *labelled).float().log_softmax(dim=-1)
            mean = F.kl_div(predicted, expected, reduction="none", log_target=True).sum(dim=-1).mean()
            divergence = divergence + mean * (some.shape[0] / rows)
        terms = {"divergence": divergence, "estimate": F.mse_loss(estimate, target)}
        return terms["divergence"] + terms["estimate"], terms
