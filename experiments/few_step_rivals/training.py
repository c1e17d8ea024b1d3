"""The training that all rivals share, from the teacher's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from experiments.few_step_rivals.data import Tokens
from experiments.few_step_rivals.losses import MAX_GUIDANCE, Bits, MeanFlow, Reflow, Shortcut, reflow_pairs
from nvg.generator import Sampler, StructureGenerator
from nvg.training.distill_task import begin_as
from nvg.training.ema import EMA
from nvg.training.schedule import warmup_stable_decay

IMAGES, LR, WARMUP, DECAY_SHARE, FINAL_LR, EMA_DECAY = 32, 1e-3, 100, 0.5, 0.02, 0.998  # conf/fashion_mnist_hour.yaml
PAIRED = 6000  # images whose structure reflow's teacher makes, three stages each
FOLDED = ("shortcut", "meanflow")  # step size and guidance scale are inputs, as in a few-step generator of nvg


def untrained(name: str, teacher: StructureGenerator) -> StructureGenerator:
    """A rival's network before its first step."""
    return begin_as(teacher, MAX_GUIDANCE) if name in FOLDED else copy.deepcopy(teacher).requires_grad_(True)


def train(loss: Shortcut | Bits | Reflow | MeanFlow, average: EMA, tokens: Tokens, steps: int) -> None:
    """Train loss.student: IMAGES images a step, all their stages; `average` follows. The same draws for every loss."""
    torch.manual_seed(0)  # blocks that rows skip
    rng = torch.Generator().manual_seed(0)
    student = loss.student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    images = getattr(loss, "images", len(tokens.labels))
    for step in range(steps):
        factor = warmup_stable_decay(step, steps, warmup=WARMUP, decay_share=DECAY_SHARE, final=FINAL_LR)
        optimizer.param_groups[0]["lr"] = LR * factor
        stage = torch.arange(1, student.last_stage).repeat_interleave(IMAGES)
        image = torch.randint(images, (IMAGES,), generator=rng).repeat(student.last_stage - 1)
        optimizer.zero_grad(set_to_none=True)
        value = loss(image, tokens.inputs(image, stage), rng)
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update()
        if (step + 1) % 250 == 0:
            print(f"  step {step + 1}: loss {value.item():.4f}", flush=True)


def trained(name: str, teacher: Sampler, tokens: Tokens, steps: int, paired: int = PAIRED) -> StructureGenerator:
    """A rival's network with averaged weights, trained from the teacher's."""
    student = untrained(name, teacher.structure)
    average = EMA(student, EMA_DECAY)
    follower = copy.deepcopy(student).eval().requires_grad_(False)
    follower.load_state_dict(average.shadow, assign=True)  # the very tensors: it follows
    losses: dict[str, Callable[[], Shortcut | Bits | Reflow | MeanFlow]] = {
        "shortcut": lambda: Shortcut(student, follower, teacher.structure),
        "bits": lambda: Bits(student),
        "reflow": lambda: Reflow(student, *reflow_pairs(teacher, tokens, paired, steps=25)),
        "meanflow": lambda: MeanFlow(student, teacher.structure),
    }
    train(losses[name](), average, tokens, steps)
    return follower
