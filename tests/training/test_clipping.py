"""Clipping in one pass over memory: the weights and norms are those of torch's clip_grad_norm_."""

import copy
import math

import pytest
import torch
from torch import nn

from nvg.training.clipping import EPSILON, divisor, gradient_norm, step_divided
from nvg.training.loop import Loop, Place, Start
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config

SCALES = (100.0, 1e-3, 3.0, 1e-3)  # of the gradients of some steps: long and short ones alternate


def two_networks():
    torch.manual_seed(0)
    return {"first": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), "second": nn.Linear(8, 4)}


def task_with(networks, fused):
    """The toy's task with other networks."""
    task = ToyTask()
    task.modules, task.averages = networks, {}
    task.clip = {name: list(network.parameters()) for name, network in networks.items()}
    task.optimizers = {
        name: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=fused)
        for name, parameters in task.clip.items()
    }
    return task


def gradients(networks, step):
    """Put a step's gradients into networks; those of the second are short wherever those of the first are long."""
    torch.manual_seed(step)
    for number, network in enumerate(networks.values()):
        for parameter in network.parameters():
            parameter.grad = SCALES[step - number] * torch.randn(parameter.shape)


@pytest.mark.parametrize("clip_norm", [0.5, 1e9, 0.0])
@pytest.mark.parametrize("fused", [True, False])
def test_weights_and_norms_are_those_of_clip_grad_norm(fused, clip_norm, tmp_path):
    networks = two_networks()
    task, plain = task_with(networks, fused), task_with(copy.deepcopy(networks), fused)
    settings = toy_settings(clip_norm=clip_norm)
    arguments = {"config": toy_config(), "checkpoints": str(tmp_path), "place": Place(), "start": Start()}
    loop = Loop(task, settings, **arguments)
    clipped = []
    for step in range(len(SCALES)):
        gradients(task.modules, step)
        gradients(plain.modules, step)
        norms = loop.clip(step, torch.tensor(1.0))
        clipped.append(set(loop.divisors))
        loop.optimize()
        for name, parameters in plain.clip.items():
            assert norms[name] == nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf, foreach=True)
            plain.optimizers[name].step()
            tolerance = {"rtol": 1e-5, "atol": 1e-7} if clip_norm == 0.5 else {"rtol": 0, "atol": 0}
            for one, other in zip(task.clip[name], parameters, strict=True):
                torch.testing.assert_close(one, other, **tolerance)
                torch.testing.assert_close(one.grad, other.grad, **tolerance)
    assert clipped == ([{"first"}, {"second"}] * 2 if clip_norm == 0.5 else [set()] * 4)
    assert not any(hasattr(optimizer, "grad_scale") for optimizer in task.optimizers.values())


def test_a_norm_is_clipped_from_where_torch_clips_it():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.tensor([3.0, 0.0, 4.0, 0.0])
    norm = gradient_norm([weight, nn.Parameter(torch.ones(2))])  # which has no gradient
    assert norm == 5.0 and divisor(norm, 5.0 + EPSILON) == 1.0 and divisor(norm, 2.5) == pytest.approx(2.0)


def test_an_optimizer_that_fails_keeps_no_divisor():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(4)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.param_groups[0]["betas"] = None
    with pytest.raises(TypeError):
        step_divided(optimizer, torch.tensor(2.0))
    assert not hasattr(optimizer, "grad_scale")
