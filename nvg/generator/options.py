"""Sampling settings with a value per image, checked: they may differ within a batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvg.config import SamplerConfig


@dataclass(frozen=True, eq=False)
class Options:
    """SamplerConfig with a value per image: (N,) tensors, and one number of flow steps for all images."""

    flow_steps: int
    structure_guidance: Tensor
    content_guidance: Tensor
    top_p: Tensor
    structure_temperature: Tensor
    content_temperature: Tensor
    flow_shift: Tensor

    @staticmethod
    def of(settings: SamplerConfig, changes: dict[str, Any], count: int, device: torch.device) -> Options:
        """Settings with some fields changed. Raises ValueError naming an unknown field or an impossible value."""
        known = {item.name for item in dataclasses.fields(settings)}
        for name in changes:
            if name not in known:
                raise ValueError(f"no sampler setting {name!r}; there are {', '.join(sorted(known))}")
        values = dataclasses.asdict(settings) | changes
        flow_steps = values.pop("flow_steps")
        if not isinstance(flow_steps, int) or flow_steps < 1:
            raise ValueError(f"flow_steps={flow_steps} must be a whole number, at least 1, for all images alike")
        tensors = {}
        for name, value in values.items():
            each = [value] * count if isinstance(value, int | float) else list(value)
            if len(each) != count:
                raise ValueError(f"{len(each)} values of {name} for {count} images")
            for one in each:
                check_setting(name, one)
            tensors[name] = torch.tensor(each, dtype=torch.float32, device=device)
        return Options(flow_steps, **tensors)

    def rows(self, index: list[int]) -> Options:
        """The options of some images."""
        names = (item.name for item in dataclasses.fields(self) if item.name != "flow_steps")
        return Options(self.flow_steps, **{name: getattr(self, name)[index] for name in names})


def check_setting(name: str, value: float) -> None:
    """Raises ValueError for a value that a sampler setting cannot have."""
    if name == "top_p":
        if not 1e-6 <= value <= 1:  # less is 0 beside a float32 probability
            raise ValueError(f"top_p={value} must be in (0, 1], at least 1e-6")
    elif name == "content_temperature":
        if not 1e-3 <= value < math.inf:  # less takes logits out of float32
            raise ValueError(f"content_temperature={value} must be above 0, at least 0.001")
    elif not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be at least 0")
