"""The moving average against its plain formula."""

import pytest
import torch
from torch import nn

from nvg.training.ema import EMA


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def walk(module, steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            module.linear.weight += torch.randn(2, 3, generator=rng)
            module.count += 1
        yield module.linear.weight.detach().clone()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_average_follows_the_formula(decay):
    module = Small()
    ema = EMA(module, decay)
    expected = module.linear.weight.detach().double().clone()
    for number, weight in enumerate(walk(module, 30)):
        ema.update()
        now = min(decay, (1 + number) / (10 + number))
        expected = now * expected + (1 - now) * weight.double()
    torch.testing.assert_close(ema.shadow["linear.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert ema.shadow["count"].tolist() == [30, 30]  # whole numbers are copied, not averaged


def test_average_is_kept_in_float32():
    module = nn.Linear(4, 4, dtype=torch.bfloat16)
    ema = EMA(module, 0.999)
    ema.update()
    assert ema.shadow["weight"].dtype == torch.float32


def test_averaged_weights_are_there_inside_the_context_alone():
    module = Small()
    ema = EMA(module, 0.9)
    for _ in walk(module, 5):
        ema.update()
    own = module.linear.weight.detach().clone()
    module.train()
    with ema.applied():
        assert torch.equal(module.linear.weight, ema.shadow["linear.weight"])
        assert not module.training
        module.requires_grad_(False)  # as a sampler does
    assert torch.equal(module.linear.weight, own) and module.training
    assert module.linear.weight.requires_grad


def test_rows_moved_by_hand_are_not_averaged():
    module = Small()
    ema = EMA(module, 0.9)
    with torch.no_grad():
        module.linear.weight[1] = 7.0
    before = ema.shadow["linear.weight"][0].clone()
    ema.copy_rows("linear.weight", torch.tensor([False, True]))
    assert ema.shadow["linear.weight"][1].tolist() == [7.0, 7.0, 7.0]
    assert torch.equal(ema.shadow["linear.weight"][0], before)
