"""The loss of few-step generators against its formulas, row by row."""

import copy

import pytest
import torch

from nvg.config import DistillConfig
from nvg.generator import StructureGenerator
from nvg.generator.structure import STEP_COUNTS
from nvg.granularity import structure_embedding
from nvg.training.distill_task import begin_as
from nvg.training.few_step_loss import FewStep, draw_steps
from tests.support.generators import awake, structure_config

ROWS, POSITIONS, LAST = 12, 16, 4


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return awake(StructureGenerator(structure_config(2, 4, num_classes=3))).requires_grad_(False)


@pytest.fixture
def inputs(teacher):
    rng = torch.Generator().manual_seed(1)
    canvas = torch.randn(ROWS, POSITIONS, teacher.config.code_width, generator=rng)
    codes = torch.stack([torch.randperm(POSITIONS, generator=rng) for _ in range(ROWS)])
    return canvas, torch.arange(ROWS) % 3, torch.arange(ROWS) % 3 + 1, codes


def test_a_student_begins_as_its_teacher(teacher, inputs):
    canvas, labels, stage, codes = inputs
    noisy, time = torch.randn(ROWS, POSITIONS, LAST), torch.rand(ROWS)
    student = begin_as(teacher, 4.0).eval()
    table = teacher.rotary(codes, stage)
    told = student(noisy, time, canvas, labels, stage, table, torch.rand(ROWS), 1 + torch.rand(ROWS))
    torch.testing.assert_close(told, teacher(noisy, time, canvas, labels, stage, table))


def test_steps_are_of_all_sizes_and_begin_where_a_step_does():
    size, time = draw_steps(4000, 0.25, torch.Generator().manual_seed(0))
    flow = size == 0
    assert int(flow.sum()) == 1000 and time[flow].min() < 0.01 and time[flow].max() > 0.99
    for count in STEP_COUNTS:
        those = size == 1 / count
        assert 450 < int(those.sum()) < 750
        assert set((time[those] * count).tolist()) == set(range(1, count + 1))
    assert (time - size >= 0).all()


@pytest.mark.parametrize("flow_share", [0.25, 0.5])
def test_the_loss_is_the_formula_row_by_row(teacher, inputs, flow_share):
    canvas, labels, stage, codes = inputs
    student = awake(begin_as(teacher, 3.0)).eval()
    average = copy.deepcopy(student).requires_grad_(False)
    for parameter in average.parameters():
        parameter.mul_(0.9)
    loss, terms = FewStep(student, average, teacher, DistillConfig(flow_share=flow_share))(
        canvas, labels, stage, codes, torch.Generator().manual_seed(5)
    )
    rng = torch.Generator().manual_seed(5)  # the same draws, in the same order
    noise = torch.randn(ROWS, POSITIONS, LAST, generator=rng)
    guidance = 1 + 2.0 * torch.rand(ROWS, generator=rng)
    size, time = draw_steps(ROWS, flow_share, rng)
    errors = {"flow": [], "shortcut": []}
    for j in range(ROWS):
        one = slice(j, j + 1)
        known, clean = int(stage[j]) - 1, structure_embedding(codes[one], LAST) - 1
        z = time[j] * noise[one] + (1 - time[j]) * clean
        z[..., :known] = clean[..., :known]
        rest = (canvas[one], labels[one], stage[one], teacher.rotary(codes[one], stage[one]))
        if size[j] == 0:
            with_class = teacher(z, time[one], *rest)
            without = teacher(z, time[one], rest[0], torch.tensor([3]), *rest[2:])
            target = without + guidance[j] * (with_class - without)
        else:
            half = size[one] / 2
            told = half if half >= 1 / 16 else torch.zeros(1)  # half of the smallest size is the flow itself
            first = average(z, time[one], *rest, told, guidance[one])
            between = z - half * first
            between[..., :known] = clean[..., :known]
            second = average(between, time[one] - half, *rest, told, guidance[one])
            target = (first + second) / 2
        velocity = student(z, time[one], *rest, size[one], guidance[one])
        error = (velocity - target)[..., known:].square().mean()
        errors["flow" if size[j] == 0 else "shortcut"].append(error)
    for name, values in errors.items():
        torch.testing.assert_close(terms[name], torch.stack(values).mean(), rtol=1e-4, atol=1e-5)
    assert loss == terms["flow"] + terms["shortcut"]


def test_only_the_student_learns(teacher, inputs):
    student = begin_as(teacher, 3.0)
    few_step = FewStep(student, copy.deepcopy(student).requires_grad_(False), teacher, DistillConfig())
    assert {id(value) for value in few_step.parameters()} == {id(value) for value in student.parameters()}
    few_step(*inputs, torch.Generator().manual_seed(0))[0].backward()
    assert student.step_condition.mlp[-1].weight.grad.abs().sum() > 0
    assert student.guidance_condition.mlp[-1].weight.grad.abs().sum() > 0
