"""What figures mean: the table at a run's end, and the page that explains it."""

import re
from pathlib import Path

import pytest

from nvg.evaluation.meaning import MEANINGS, bars

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "figures.md").read_text()
FIGURES = {
    "accuracy_on_samples": 0.85,
    "accuracy_on_test": 0.9,
    "frechet_distance": 1.5,
    "reconstruction_frechet_distance": 0.5,
    "train_to_test_distance": 0.01,
    "codebook_use": 0.9,
}


def test_the_page_explains_every_figure_in_the_same_words():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.split("## ")[0], re.MULTILINE))
    assert rows == MEANINGS


@pytest.mark.parametrize(
    ("changed", "name", "good"),
    [
        ({}, "frechet_distance", True),
        ({"frechet_distance": 1.54}, "frechet_distance", False),
        ({"train_to_test_distance": 0.1, "frechet_distance": 1.54}, "frechet_distance", True),
        ({}, "accuracy_on_samples", True),
        ({"accuracy_on_samples": 0.84}, "accuracy_on_samples", False),
        ({}, "codebook_use", True),
        ({"codebook_use": 0.89}, "codebook_use", False),
    ],
)
def test_a_figure_is_good_by_the_bar_that_the_page_names(changed, name, good):
    found, bar = bars(FIGURES | changed)[name]
    assert found is good and float(bar.split()[1]) > 0 and f"`{name}` |" in PAGE.split("## Which are good")[1]


def test_without_what_it_is_compared_with_a_figure_has_no_bar():
    assert bars({"frechet_distance": 1.0, "accuracy_on_samples": 1.0}) == {}
    assert set(bars({"accuracy_on_samples": 1.0, "accuracy_on_train": 0.9})) == {"accuracy_on_samples"}
