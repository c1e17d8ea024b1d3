"""A registered sampler for MLflow's own tools (its pyfunc flavour), from the files that `nvg.load` reads. No pickle.

Registered models hold the name of this module (`loader_module`), so it keeps its path and `_load_pyfunc`.

    mlflow.pyfunc.load_model("models:/nvg@champion").predict([{"label": "Bag", "seed": 0}])
    mlflow models serve -m models:/nvg@champion --env-manager local

A row is an image: `label` and `seed`. A label that is a number is a class's index; a text is a class's name and, where
no class has that name, its index. The answer is uint8 (N, H, W, C).
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from nvg.artifacts.models import load_sampler

if TYPE_CHECKING:
    import pandas as pd

    from nvg.generator import Sampler


class PyfuncModel:
    """A sampler with the method that MLflow calls."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """The images of the rows. A row's image depends on its label and seed alone. Raises ValueError for an unknown
        class."""
        labels = [class_label(label) for label in model_input["label"]]
        return self.sampler.generate(labels, seed=[whole("seed", seed) for seed in model_input["seed"]])


def class_label(value: Any) -> str | int:
    """A row's label as the sampler takes it. Raises ValueError for what is neither a text nor a whole number."""
    return str(value) if isinstance(value, str) else whole("label", value, "a class name or ")


def whole(column: str, value: Any, also: str = "") -> int:
    """A whole number of a row. pandas makes floats of a column of numbers with a gap: 3.0 is 3.

    Raises ValueError naming the column. also: what else would do.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)  # type: ignore[call-overload]
    raise ValueError(f"{column} {value!r} must be {also}a whole number")


def _load_pyfunc(folder: str) -> PyfuncModel:
    return PyfuncModel(load_sampler(folder))


def describe(image_shape: tuple[int, int, int]) -> str:
    """The MLmodel file of a registered sampler whose images are (H, W, C)."""
    import mlflow.pyfunc
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    description = Description()
    mlflow.pyfunc.add_to_model(description, loader_module=__name__)
    description.signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "label"), ColSpec(DataType.long, "seed")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image_shape))]),
    )
    return description.to_yaml()
