"""A registered sampler for MLflow's own tools: what a row may say, and which image it is."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

import nvg
from nvg import pyfunc
from nvg.artifacts.models import ASSETS
from nvg.generator import Sampler

DIGITS = [str((index + 8) % 10) for index in range(10)]  # class 0 is called "8", class 2 "0"


@pytest.fixture(scope="module")
def sampler():
    return nvg.load("fashion-mnist-fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sampler's folder as MLflow's registry keeps it."""
    folder = tmp_path_factory.mktemp("registered") / "sampler"
    shutil.copytree(ASSETS / "fashion-mnist-fast", folder)
    (folder / "MLmodel").write_text(pyfunc.describe((32, 32, 1)))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    import mlflow

    return mlflow.pyfunc.load_model(str(folder))


@pytest.mark.parametrize(
    "labels",
    [
        [3, 8],
        ["Dress", "Bag"],
        ["3", "8"],
        [3.0, 8.0],
        [np.int64(3), np.int32(8)],
        [np.float32(3), np.str_("Bag")],
        pd.Categorical(["Dress", "Bag"]),
        pd.array([3, 8], dtype="Int64"),
        pd.array(["Dress", "Bag"], dtype="string"),
        np.array([3, 8], dtype=np.uint8),
    ],
    ids=lambda labels: f"{type(labels).__name__} {list(labels)}",
)
def test_a_label_is_a_name_or_a_number_of_any_type(model, sampler, labels):
    made = model.predict(pd.DataFrame({"label": labels, "seed": [5, 6]}))
    assert np.array_equal(made, sampler.generate([3, 8], seed=[5, 6]))


def test_rows_may_be_a_list_and_mix_names_and_numbers(model, sampler):
    made = model.predict([{"label": "Bag", "seed": 0}, {"label": 3, "seed": 1}])
    assert np.array_equal(made, sampler.generate([8, 3], seed=[0, 1]))


@pytest.mark.parametrize(("label", "index"), [("2", 4), (2, 2), (2.0, 2), (np.int64(2), 2), ("8", 0)])
def test_a_number_is_an_index_and_a_text_a_name_first(sampler, label, index):
    whole = sampler
    digits = Sampler(whole.tokenizer, whole.content, whole.structure, whole.settings, DIGITS)
    made = pyfunc.PyfuncModel(digits).predict(pd.DataFrame({"label": [label], "seed": [0]}))
    assert np.array_equal(made, whole.generate([index], seed=0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"label": [3.5], "seed": [0]}, "label 3.5 must be a class name or a whole number"),
        ({"label": [None], "seed": [0]}, "label None must be a class name or a whole number"),
        ({"label": [float("nan")], "seed": [0]}, "label nan must be a class name or a whole number"),
        ({"label": [True], "seed": [0]}, "label True must be a class name or a whole number"),
        ({"label": [["Bag"]], "seed": [0]}, r"label \['Bag'\] must be a class name or a whole number"),
        ({"label": [b"Bag"], "seed": [0]}, "label b'Bag' must be a class name or a whole number"),
        ({"label": ["Hat"], "seed": [0]}, "no class 'Hat'; the classes are"),
        ({"label": [10], "seed": [0]}, "class 10 is none of 0 ... 9"),
        ({"label": [3], "seed": [0.5]}, "seed 0.5 must be a whole number"),
        ({"label": [3], "seed": ["x"]}, "seed 'x' must be a whole number"),
    ],
)
def test_a_row_that_is_no_image_is_refused(sampler, rows, message):
    with pytest.raises(ValueError, match=message):
        pyfunc.PyfuncModel(sampler).predict(pd.DataFrame(rows))


@pytest.mark.parametrize("column", ["label", "seed"])
def test_a_column_that_is_missing_is_named(model, column):
    from mlflow.exceptions import MlflowException

    rows = pd.DataFrame({"label": [3], "seed": [0]}).drop(columns=column)
    with pytest.raises(MlflowException, match=f"missing inputs.*{column}"):
        model.predict(rows)


def test_the_signature_that_older_models_are_registered_with_still_loads(folder, tmp_path, sampler):
    import mlflow

    old = tmp_path / "old"
    shutil.copytree(folder, old)
    content = yaml.safe_load((old / "MLmodel").read_text())
    inputs = [{"type": "string", "name": "label", "required": True}, {"type": "long", "name": "seed", "required": True}]
    content["signature"]["inputs"] = json.dumps(inputs)
    (old / "MLmodel").write_text(yaml.safe_dump(content))
    made = mlflow.pyfunc.load_model(str(old)).predict([{"label": "3", "seed": 5}])
    assert np.array_equal(made, sampler.generate([3], seed=5))
