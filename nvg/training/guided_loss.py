"""The loss of a content generator with its guidance folded in (docs/reference/few_step.md, content).

After Meng et al., "On Distillation of Guided Diffusion Models" (arXiv 2210.03142). With g(x_i, w) the student and f the
teacher, the guided logits of stage i are those of a guided estimate, since logits are linear in x_hat - x_i:

    x_hat(w) = f(x_i, "no class") + w (f(x_i, class) - f(x_i, "no class"))
    loss = KL( softmax logits(x_hat(w)) || softmax logits(g(x_i, w)) ) + |g(x_i, w) - x_hat(w)|^2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.config import DistillConfig
from nvg.generator import ContentGenerator
from nvg.generator.guidance import guided


class GuidedContent(nn.Module):
    """The student with its loss: a module that is called with the loss's inputs."""

    def __init__(self, student: ContentGenerator, teacher: ContentGenerator, config: DistillConfig) -> None:
        """teacher: frozen."""
        super().__init__()
        self.student = student
        self.config = config
        self.frozen = (teacher,)  # in a tuple: no part of this module's state

    def forward(
        self,
        canvases: Sequence[Tensor],
        labels: Tensor,
        codes: Tensor,
        stages: Sequence[int],
        rng: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms: `divergence` in nats, a mean over an image's clusters, and `estimate`, a mean squared
        error over the tokens of a stage; both are means over N images and S stages.

        canvases: x_0 ... x_K (N, L, e) each; labels (N,); codes (N, L) whole; rng: on the CPU.
        """
        (teacher,) = self.frozen
        drawn = torch.rand(labels.shape[0], generator=rng)
        guidance = (1 + (self.student.config.max_guidance - 1) * drawn).to(codes.device)
        inputs = [canvases[stage] for stage in stages]
        some = (labels.new_tensor(list(stages)), [self.student.rotary(codes, stage) for stage in stages])
        with torch.no_grad():
            targets = guided_differences(teacher, inputs, codes, labels, *some, guidance)
        found, _ = self.student(inputs, codes, labels, *some, guidance)
        divergences, errors = [], []
        for stage, difference, target in zip(stages, found, targets, strict=True):
            with torch.no_grad():
                expected = teacher.logits(target, codes, stage).float().log_softmax(dim=-1)
            predicted = self.student.logits(difference, codes, stage).float().log_softmax(dim=-1)
            divergences.append(F.kl_div(predicted, expected, reduction="none", log_target=True).sum(dim=-1).mean())
            errors.append(F.mse_loss(difference.float(), target))
        terms = {"divergence": torch.stack(divergences).mean(), "estimate": torch.stack(errors).mean()}
        return terms["divergence"] + terms["estimate"], terms


def guided_differences(
    content: ContentGenerator,
    canvases: Sequence[Tensor],
    codes: Tensor,
    labels: Tensor,
    stages: Tensor,
    tables: Sequence[Tensor],
    scale: Tensor,
) -> list[Tensor]:
    """x_hat - x_i of each stage, guided with scale w (N,); the other arguments are those of the generator."""
    count = len(canvases)
    lengths: list[int] = []

    def network(labels: Tensor, codes: Tensor, *both: Tensor) -> Tensor:
        found, _ = content(both[:count], codes, labels, stages, both[count:])
        lengths[:] = [one.shape[1] for one in found]
        return torch.cat(found, dim=1).float()

    both = guided(network, labels, (codes, *canvases, *tables), scale, content.config.num_classes)
    return list(both.split(lengths, dim=1))
