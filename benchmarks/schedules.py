"""The compared schedules, as samplers with random weights; the sections operations, sampler and peers share them.

All have full guidance (structure up to 2.5, content up to 3.5) and decode one picture an image.

- paper: 25 Euler steps per stage of the plain structure flow, each of two passes for guidance, and two passes of the
  content generator at every stage. Our sampler leaves the second pass out where the scale is exactly 1 (the first stage
  of either ramp), and keeps the first stage's logits by class; here all of it is computed, as the paper's has it.
- few-step: a few-step structure generator, one pass per stage, guidance an input; content of two passes.
- guided: the same structure, and a content generator that has guidance as an input too: one pass per stage.

The generators of either form: a stage of L position tokens, as in the paper, or of cluster tokens (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache

import torch

from benchmarks.common import Target, counted, randomized, replaced
from nvg import config as configuration
from nvg.autoencoder import Autoencoder, GranularityQuantizer
from nvg.config import Config
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator import sampler as sampling

PAPER_STEPS = 25
SCHEDULES = ("paper", "few-step", "guided")
PARTS = ("structure", "content", "decode")
BATCHES = (1, 8)
DEPTHS: Mapping[str, tuple[str, Sequence[str]]] = {
    "smoke": ("conf/smoke.yaml", ("data.num_classes=8",)),  # as many as the largest batch
    "d12": ("conf/imagenet_d16.yaml", ("content.depth=12", "structure.depth=12")),
    "d16": ("conf/imagenet_d16.yaml", ()),
    "d20": ("conf/imagenet_d20.yaml", ()),
    "d24": ("conf/imagenet_d24.yaml", ()),
}


FORMS: Mapping[str, Sequence[str]] = {
    "positions": (
        "content.tokens=positions",
        "content.position_network=false",
        "structure.canvas_tokens=positions",
    ),
    "clusters": (
        "content.tokens=clusters",
        "content.position_network=true",
        "content.residual=true",
        "structure.canvas_tokens=clusters",
    ),
}


def configured(depth: str, *overrides: str, form: str = "positions") -> Config:
    """The configuration of a depth: the published one, at another depth, or the tests' small one, its generators of a
    form. The alignment head, which training alone uses, is left out."""
    path, changes = DEPTHS[depth]
    return configuration.load(path, ["repa.weights=null", *changes, *FORMS[form], *overrides])


def build(config: Config, schedule: str) -> Sampler:
    """A sampler with random weights whose generators are those of a schedule."""
    torch.manual_seed(0)
    structure = replace(config.structure, few_step=schedule != "paper")
    content = replace(config.content, guided=schedule == "guided")
    sampler = Sampler(
        Autoencoder(config.tokenizer),
        ContentGenerator(content),
        StructureGenerator(structure),
        replace(config.sampler, flow_steps=1, structure_guidance=2.5, content_guidance=3.5),
        [str(index) for index in range(config.data.num_classes)],
    )
    for module in (sampler.tokenizer, sampler.content, sampler.structure):
        randomized(module)
    return sampler


def build_on_meta(config: Config, schedule: str) -> Sampler:
    """The same with its networks on the meta device. The quantizer, whose work is a thousandth, is real."""
    with torch.device("meta"):
        sampler = build(config, schedule)
    sampler.tokenizer.quantizer = GranularityQuantizer(config.tokenizer).requires_grad_(False)
    return sampler


def parts_of(sampler: Sampler) -> dict[str, list[Target]]:
    """The callables of a sampler by the part that they belong to."""
    return {
        "structure": [(sampler.structure, name) for name in ("forward", "rotary")],
        "content": [(sampler.content, name) for name in ("forward", "rotary", "logits")],
        "decode": [(sampler.tokenizer, "decode_canvas")],
    }


def draw(sampler: Sampler, schedule: str, images: int, flow_steps: int) -> None:
    """Draw one batch by a schedule; flow_steps: Euler steps per stage."""
    sampler._first_logits.clear()  # it keeps what it has computed of a class: here each picture is the first of its
    with _twice_at_every_stage() if schedule == "paper" else nullcontext():
        sampler.generate([index % len(sampler.class_names) for index in range(images)], flow_steps=flow_steps)


@contextmanager
def _twice_at_every_stage() -> Iterator[None]:
    """Within the block a sampler makes the second pass for guidance also where the scale is 1."""

    with replaced({"guidance": [(sampling, "one_pass")]}, lambda _part, _call: lambda scales, index: False):
        yield


@cache
def operations(depth: str, schedule: str, images: int, form: str = "positions") -> Mapping[str, int]:
    """Floating-point operations of one batch by part, of the whole schedule: exact, without computing."""
    sampler = build_on_meta(configured(depth, form=form), schedule)
    with counted(parts_of(sampler)) as totals:
        draw(sampler, schedule, images, PAPER_STEPS if schedule == "paper" else 1)
    return totals
