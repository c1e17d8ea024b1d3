"""A task of seconds for the loop's tests: two small networks, on numbers that are a function of the step."""

import torch
from torch import nn

from nvg.training.ema import EMA
from nvg.training.loop import LoopSettings
from nvg.training.parallel import alone
from nvg.training.seeds import seeded
from nvg.training.task import Task


class ToyTask(Task):
    """Regression with two parts, clipped and averaged apart. Fails, or turns to NaN, at a step when told."""

    def __init__(
        self, *, dropout=0.3, lr=0.1, stop_at=None, nan_at=None, rows=8, scale=1.0, wrap=alone, mine=slice(None)
    ):
        self.stop_at, self.nan_at, self.rows, self.scale, self.mine = stop_at, nan_at, rows, scale, mine
        torch.manual_seed(3)
        self.modules = {
            "first": nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1)),
            "second": nn.Linear(4, 1),
        }
        self.averages = {name: EMA(module, 0.9) for name, module in self.modules.items()}
        self.optimizers = {name: torch.optim.AdamW(module.parameters(), lr=lr) for name, module in self.modules.items()}
        self.clip = {name: list(module.parameters()) for name, module in self.modules.items()}
        self.called = {name: wrap(module, "ddp") for name, module in self.modules.items()}
        self.parallel = list(self.called.values())
        self._lr = lr
        self.begin_calls = 0

    def lr(self, step):
        return dict.fromkeys(self.optimizers, self._lr / (1 + step))

    def begin(self, batch, rng):
        self.begin_calls += 1

    def batches(self, step):
        while True:
            if step == self.stop_at:
                raise InterruptedError(f"killed at step {step}")
            x = torch.randn(self.rows, 4, generator=seeded("data", step))
            y = x.sum(dim=1, keepdim=True) * self.scale
            y = y * float("nan") if step == self.nan_at else y
            yield {"x": x[self.mine], "y": y[self.mine]}
            step += 1

    def loss(self, batch, step, rng):
        noise = 0.1 * torch.randn(batch["y"].shape, generator=rng) if self.modules["first"][2].p else 0.0
        first = (self.called["first"](batch["x"]) - batch["y"] + noise).square().mean()
        second = (self.called["second"](batch["x"]) - batch["y"]).square().mean()
        return first + second, {"first": first, "second": second}

    def state(self):
        """Everything that training changes, by name."""
        state = {f"{m}.{k}": v for m, module in self.modules.items() for k, v in module.state_dict().items()}
        state |= {f"ema {m}.{k}": v for m, ema in self.averages.items() for k, v in ema.shadow.items()}
        for name, optimizer in self.optimizers.items():
            for number, entry in enumerate(optimizer.state.values()):
                state |= {f"{name} {number} {key}": value for key, value in entry.items()}
        return {name: value.clone() for name, value in state.items()}


def toy_settings(**changes):
    values = {
        "job": "toy",
        "total_steps": 12,
        "batch_size": 8,
        "slices": 1,
        "micro_batch": None,
        "clip_norm": 1.0,
        "checkpoint_every": 4,
        "log_every": 3,
        "preview_every": 0,
        "evaluate_every": 0,
        "precision": "auto",
        "seed": 5,
        "identity": "toy",
    }
    return LoopSettings(**(values | changes))
