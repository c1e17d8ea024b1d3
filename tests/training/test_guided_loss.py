"""The loss of a content generator with guidance folded in against its formulas, image by image and stage by stage."""

import pytest
import torch

from nvg.config import DistillConfig
from nvg.generator import ContentGenerator
from nvg.training.distill_task import begin_as
from nvg.training.guided_loss import GuidedContent
from tests.support.generators import FORMS, awake, content_at, content_config

IMAGES, POSITIONS, LAST, WIDTH = 6, 16, 4, 6
STAGES = list(range(LAST + 1))


@pytest.fixture(params=FORMS)
def teacher(request):
    torch.manual_seed(0)
    config = content_config(2, 4, request.param, num_classes=3, code_width=WIDTH, codebook_size=20)
    return awake(ContentGenerator(config)).requires_grad_(False)


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(1)
    canvases = list(torch.randn(LAST + 2, IMAGES, POSITIONS, WIDTH, generator=rng))
    codes = torch.stack([torch.randperm(POSITIONS, generator=rng) for _ in range(IMAGES)])
    return canvases, torch.arange(IMAGES) % 3, codes, STAGES


def test_a_student_begins_as_its_teacher(teacher, inputs):
    canvases, labels, codes, stages = inputs
    student, some = begin_as(teacher, 4.0).eval(), (stages, canvases[:-1], codes, labels)
    found, _ = content_at(student, *some, guidance=1 + 3 * torch.rand(IMAGES))
    torch.testing.assert_close(found, content_at(teacher, *some)[0])


def test_the_loss_is_the_formula_image_by_image_and_stage_by_stage(teacher, inputs):
    canvases, labels, codes, stages = inputs
    student = awake(begin_as(teacher, 3.0)).eval()
    loss, terms = GuidedContent(student, teacher, DistillConfig())(*inputs, torch.Generator().manual_seed(5))
    guidance = 1 + 2.0 * torch.rand(IMAGES, generator=torch.Generator().manual_seed(5))
    divergences, errors = [], []
    for j in range(IMAGES):
        one, w = slice(j, j + 1), guidance[j]
        for stage in stages:
            some = [stage], [canvases[stage][one]], codes[one]
            (with_class,), _ = content_at(teacher, *some, labels[one])
            (without,), _ = content_at(teacher, *some, torch.tensor([3]))
            (found,), _ = content_at(student, *some, labels[one], guidance=guidance[one])
            errors.append((found - without - w * (with_class - without)).square().mean())
            c, u = (teacher.logits(value, codes[one], stage) for value in (with_class, without))
            expected = (u + w * (c - u)).softmax(dim=-1)  # the guidance of the sampler: of logits
            predicted = student.logits(found, codes[one], stage).log_softmax(dim=-1)
            divergences.append((expected * (expected.log() - predicted)).sum(dim=-1).mean())
    torch.testing.assert_close(terms["estimate"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["divergence"], torch.stack(divergences).mean(), rtol=1e-3, atol=1e-5)
    assert loss == terms["divergence"] + terms["estimate"]


def test_only_the_student_learns_and_it_learns_the_scale(teacher, inputs):
    student = begin_as(teacher, 3.0)
    loss = GuidedContent(student, teacher, DistillConfig())
    assert {id(value) for value in loss.parameters()} == {id(value) for value in student.parameters()}
    loss(*inputs, torch.Generator().manual_seed(0))[0].backward()
    assert student.guidance_condition.mlp[-1].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
