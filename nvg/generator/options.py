"""Sampling settings with a value per image, checked: they may differ within a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvg.config import SamplerConfig, range_of
from nvg.generator.seeds import whole_number


@dataclass(frozen=True, eq=False)
class Options:
    """SamplerConfig with a value per image: (N,) tensors, and one number of flow steps for all images."""

    flow_steps: int
    scales: Mapping[str, Sequence[float]]  # both guidances, where the host reads them
    structure_guidance: Tensor
    content_guidance: Tensor
    top_p: Tensor
    structure_temperature: Tensor
    content_temperature: Tensor
    flow_shift: Tensor

    @staticmethod
    def of(settings: SamplerConfig, changes: dict[str, Any], count: int, rows: int, device: torch.device) -> Options:
        """Settings with some fields changed, of `count` images, the first one's again for up to `rows`. Raises
        ValueError naming an unknown field or an impossible value."""
        known = {item.name for item in dataclasses.fields(settings)}
        for name in changes:
            if name not in known:
                raise ValueError(f"no sampler setting {name!r}; there are {', '.join(sorted(known))}")
        values = dataclasses.asdict(settings) | changes
        flow_steps = values.pop("flow_steps")
        if (steps := whole_number(flow_steps)) is None:
            raise ValueError(f"flow_steps={flow_steps} must be a whole number, for all images alike")
        range_of(settings, "flow_steps").require("flow_steps", steps)
        columns = {}
        for name, value in values.items():
            each = list(value) if isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0 else [value] * count
            each = [one.item() if hasattr(one, "item") else one for one in each]  # numpy's and torch's numbers
            if len(each) != count:
                raise ValueError(f"{len(each)} values of {name} for {count} images")
            for one in each:
                if not isinstance(one, int | float) or isinstance(one, bool):
                    raise ValueError(f"{name}={one!r} must be a number")
                range_of(settings, name).require(name, one)
            columns[name] = [float(one) for one in each + each[:1] * (rows - count)]
        scales = {name: columns[name] for name in ("structure_guidance", "content_guidance")}
        tensors = torch.tensor(list(columns.values()), dtype=torch.float32).to(device)  # one copy
        return Options(steps, scales, **dict(zip(columns, tensors, strict=True)))
