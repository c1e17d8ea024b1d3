"""The loss of few-step generators against its formulas, image by image and stage by stage."""

import copy

import pytest
import torch

from nvg.config import DistillConfig
from nvg.generator import StructureGenerator
from nvg.generator.structure import STEP_COUNTS
from nvg.granularity import structure_embedding
from nvg.training.distill_task import begin_as
from nvg.training.few_step_loss import FewStep, draw_steps
from tests.support.generators import FORMS, awake, structure_at, structure_config

IMAGES, POSITIONS, LAST = 8, 16, 4
STAGES = [1, 2, 3]


@pytest.fixture(params=FORMS)
def teacher(request):
    torch.manual_seed(0)
    return awake(StructureGenerator(structure_config(2, 4, request.param, num_classes=3))).requires_grad_(False)


@pytest.fixture
def inputs(teacher):
    rng = torch.Generator().manual_seed(1)
    canvases = list(torch.randn(LAST + 2, IMAGES, POSITIONS, teacher.config.code_width, generator=rng))
    codes = torch.stack([torch.randperm(POSITIONS, generator=rng) for _ in range(IMAGES)])
    return canvases, torch.arange(IMAGES) % 3, codes, STAGES


def test_a_student_begins_as_its_teacher(teacher, inputs):
    canvases, labels, codes, stages = inputs
    point = [torch.randn(IMAGES, POSITIONS, LAST) for _ in stages], torch.rand(IMAGES, len(stages)), canvases[1:4]
    student = begin_as(teacher, 4.0).eval()
    told = {"steps": torch.rand(IMAGES, len(stages)), "guidance": 1 + torch.rand(IMAGES, len(stages))}
    found = structure_at(student, stages, *point, codes, labels, **told)
    torch.testing.assert_close(found, structure_at(teacher, stages, *point, codes, labels))


def test_steps_are_of_all_sizes_and_begin_where_a_step_does():
    size, time, flow = draw_steps(2000, 3, 0.25, torch.Generator().manual_seed(0))
    assert size.shape == time.shape == (2000, 3) and int(flow.sum()) == 500
    assert torch.equal(size == 0, flow[:, None].expand_as(size))  # an image has one kind at all its stages
    assert time[flow].min() < 0.01 and time[flow].max() > 0.99
    for count in STEP_COUNTS:
        those = size == 1 / count
        assert 750 < int(those.sum()) < 1050
        assert set((time[those] * count).tolist()) == set(range(1, count + 1))
    assert (time - size)[~flow].min() >= 0
    assert (size[~flow] != size[~flow][:, :1]).any()  # sizes are drawn stage by stage


@pytest.mark.parametrize("images", [2, 3, 8])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_both_kinds_have_an_image_whatever_their_share(images, share):
    *_, flow = draw_steps(images, 3, share, torch.Generator().manual_seed(0))
    assert int(flow.sum()) == {0.0: 1, 0.5: round(images / 2), 1.0: images - 1}[share]


@pytest.mark.parametrize("flow_share", [0.25, 0.5])
def test_the_loss_is_the_formula_image_by_image_and_stage_by_stage(teacher, inputs, flow_share):
    canvases, labels, codes, stages = inputs
    student = awake(begin_as(teacher, 3.0)).eval()
    average = copy.deepcopy(student).requires_grad_(False)
    for parameter in average.parameters():
        parameter.mul_(0.9)
    loss, terms = FewStep(student, average, teacher, DistillConfig(flow_share=flow_share))(
        *inputs, torch.Generator().manual_seed(5)
    )
    rng = torch.Generator().manual_seed(5)  # the same draws, in the same order
    noise = torch.randn(IMAGES, POSITIONS, LAST, generator=rng)
    guidance = 1 + 2.0 * torch.rand(IMAGES, generator=rng)
    sizes, times, flow = draw_steps(IMAGES, len(stages), flow_share, rng)
    errors = {"flow": [], "shortcut": []}
    for j in range(IMAGES):
        one, scale = slice(j, j + 1), guidance[j].view(1, 1)
        clean = structure_embedding(codes[one], LAST) - 1
        for index, stage in enumerate(stages):
            known, size, time = stage - 1, sizes[one, index, None], times[one, index, None]
            rest = [canvases[stage][one]], codes[one]

            def at(network, z, time, label, stage=stage, rest=rest, **told):
                return structure_at(network, [stage], [z], time, *rest, label, **told)[0]

            z = time * noise[one] + (1 - time) * clean
            z[..., :known] = clean[..., :known]
            if flow[j]:
                with_class, without = (at(teacher, z, time, label) for label in (labels[one], torch.tensor([3])))
                target = without + guidance[j] * (with_class - without)
            else:
                half = size / 2
                told = half if half >= 1 / 16 else torch.zeros(1, 1)  # half of the smallest size is the flow itself
                first = at(average, z, time, labels[one], steps=told, guidance=scale)
                between = z - half * first
                between[..., :known] = clean[..., :known]
                second = at(average, between, time - half, labels[one], steps=told, guidance=scale)
                target = (first + second) / 2
            velocity = at(student, z, time, labels[one], steps=size, guidance=scale)
            error = (velocity - target)[..., known:].square().mean()
            errors["flow" if flow[j] else "shortcut"].append(error)
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
    assert all(parameter.grad is None for parameter in teacher.parameters())
