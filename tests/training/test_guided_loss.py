"""The loss of a content generator with guidance folded in against its formulas, row by row."""

import pytest
import torch

from nvg.config import DistillConfig
from nvg.generator import ContentGenerator
from nvg.granularity import structure_map
from nvg.training.distill_task import begin_as
from nvg.training.guided_loss import GuidedContent
from tests.support.generators import awake, content_config

ROWS, POSITIONS, LAST, WIDTH = 10, 16, 4, 6


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    config = content_config(2, 4, num_classes=3, code_width=WIDTH, codebook_size=20)
    return awake(ContentGenerator(config)).requires_grad_(False)


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(1)
    canvas = torch.randn(ROWS, POSITIONS, WIDTH, generator=rng)
    codes = torch.stack([torch.randperm(POSITIONS, generator=rng) for _ in range(ROWS)])
    return canvas, torch.arange(ROWS) % 3, torch.arange(ROWS) % (LAST + 1), codes


def test_a_student_begins_as_its_teacher(teacher, inputs):
    canvas, labels, stage, codes = inputs
    table = teacher.rotary(codes, stage)
    told = begin_as(teacher, 4.0).eval()(canvas, labels, stage, table, 1 + 3 * torch.rand(ROWS))[0]
    torch.testing.assert_close(told, teacher(canvas, labels, stage, table)[0])


def test_the_loss_is_the_formula_row_by_row(teacher, inputs):
    canvas, labels, stage, codes = inputs
    student = awake(begin_as(teacher, 3.0)).eval()
    loss, terms = GuidedContent(student, teacher, DistillConfig())(*inputs, torch.Generator().manual_seed(5))
    guidance = 1 + 2.0 * torch.rand(ROWS, generator=torch.Generator().manual_seed(5))
    divergences, errors = [], []
    for j in range(ROWS):
        one, i = slice(j, j + 1), int(stage[j])
        table = teacher.rotary(codes[one], stage[one])
        labelled = (canvas[one], structure_map(codes[one], i), i)
        with_class, _ = teacher(canvas[one], labels[one], stage[one], table)
        without, _ = teacher(canvas[one], torch.tensor([3]), stage[one], table)
        estimate, _ = student(canvas[one], labels[one], stage[one], table, guidance[one])
        errors.append((estimate - without - guidance[j] * (with_class - without)).square().mean())
        c, u = teacher.logits(with_class, *labelled), teacher.logits(without, *labelled)
        wanted = (u + guidance[j] * (c - u)).softmax(dim=-1)  # the guidance of the sampler: of logits
        found = student.logits(estimate, *labelled).log_softmax(dim=-1)
        divergences.append((wanted * (wanted.log() - found)).sum(dim=-1).mean())
    torch.testing.assert_close(terms["estimate"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["divergence"], torch.stack(divergences).mean(), rtol=1e-3, atol=1e-5)
    assert loss == terms["divergence"] + terms["estimate"]


def test_only_the_student_learns_and_it_learns_the_scale(teacher, inputs):
    student = begin_as(teacher, 3.0)
    loss = GuidedContent(student, teacher, DistillConfig())
    assert {id(value) for value in loss.parameters()} == {id(value) for value in student.parameters()}
    loss(*inputs, torch.Generator().manual_seed(0))[0].backward()
    assert student.guidance_condition.mlp[-1].weight.grad.abs().sum() > 0
