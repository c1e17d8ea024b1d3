"""Operations that make numbers, seen while anything runs on any device, the meta device included.

Views make none, nor does asking for memory. What looks like a view and copies (`to` another dtype, `reshape` of numbers
that do not lie in order) is seen as the copy that it is.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nvg.generator.graphs import tensors_of

# One kernel on a GPU, and several operations elsewhere.
aten = torch.ops.aten
WHOLE = (aten.rms_norm.default, aten.scaled_dot_product_attention.default, aten.upsample_nearest2d.vec)
PACKAGE = "nvg"
PASSED_OVER = ("by_rows",)  # functions that stand for their caller


class Numbers(TorchDispatchMode):
    """Calls `see` for each operation that makes numbers."""

    def see(self, operation: str, tensors: list[Tensor]) -> None:
        """operation: its name, as mul. tensors: what it takes, and its first result. Others are statistics."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in WHOLE:
            with self:  # an operation made of others is seen as those
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        taken, given = tensors_of((args, kwargs)), tensors_of(result)
        memory = {one.untyped_storage()._cdata for one in taken}
        makes = func._schema.is_mutable or any(one.untyped_storage()._cdata not in memory for one in given)
        if makes and "empty" not in str(func):
            self.see(str(func).split(".")[1], taken + given[:1])
        return result


def place() -> str:
    """The function of the package that runs now, by the last part of its module: rope.rotary_table."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(f"{PACKAGE}.") and frame.f_code.co_name not in PASSED_OVER:
            return f"{module.rpartition('.')[2]}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back
    return "elsewhere"
