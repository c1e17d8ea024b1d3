"""Every number's range: declared with the number, enforced on both sides, and written into its page of the docs."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvg import config as configuration
from nvg.config import Config, ServeConfig, from_dict, range_of, serve_config
from nvg.config.fields import Range, check_ranges, has_range
from nvg.config.fields import number as number_field
from nvg.config.reference import comments, pages
from nvg.config.schema import DERIVED
from nvg.errors import ConfigError
from pipelines import run
from tests.support.toy_config import CONFIG

FOLDER = Path(__file__).parents[2] / "docs" / "reference" / "configuration"
NUMBERS = ("int", "float", "list[int]", "list[float]", "dict[str, float]")


def fields(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """(key, its section's class, the field) of every setting."""
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(item.default_factory):
            yield from fields(item.default_factory, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, section, item


SETTINGS = {f"serve.{key}": (section, item) for key, section, item in fields(ServeConfig)} | {
    key: (section, item) for key, section, item in fields(Config)
}
NUMERIC = [key for key, (_, item) in SETTINGS.items() if str(item.type).removesuffix(" | None") in NUMBERS]
SET = [key for key in NUMERIC if key not in DERIVED]  # those that a person sets
ONE_OF_A_TYPE = {str(SETTINGS[key][1].type): key for key in SET}
NOT_FINITE: list[Any] = ["nan", "inf", "-inf", "1e999", math.nan, math.inf]


def of(key: str) -> Range:
    section, item = SETTINGS[key]
    assert has_range(section, item.name), f"{key} has no range: declare it by number(...), nvg/config/fields.py"
    return range_of(section, item.name)


def written(key: str, value: Any) -> Any:
    """The value as its setting takes it: in a list, in a dictionary, or as it is."""
    kind = str(SETTINGS[key][1].type)
    if kind.startswith("list"):
        return [value, value]
    return {"reader": value} if kind.startswith("dict") else value


def refusal(key: str, value: Any) -> str:
    """What is said of a configuration with this value."""
    with pytest.raises(ConfigError) as raised:
        if key.startswith("serve."):
            serve_config({key.removeprefix("serve."): written(key, value)}, where="here.yaml")
        else:
            content: dict[str, Any] = copy.deepcopy(CONFIG)
            *sections, name = key.split(".")
            node = content
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = written(key, value)
            from_dict(content, where="here.yaml")
    return str(raised.value)


def is_whole(key: str) -> bool:
    return "int" in str(SETTINGS[key][1].type)


@pytest.mark.parametrize("key", NUMERIC)
def test_every_number_declares_its_range(key: str) -> None:
    of(key)


def outside(key: str) -> Iterator[float]:
    """The nearest values beyond each bound of a setting."""
    allowed, step = of(key), 1 if is_whole(key) else 1e-3
    if allowed.least is not None:
        yield allowed.least - step
    if allowed.most is not None:
        yield allowed.most + step
    yield from (bound for bound in (allowed.above, allowed.below) if bound is not None)


@pytest.mark.parametrize("key", SET)
def test_a_number_beyond_a_bound_is_refused_with_its_key_and_range_in_one_line(key: str) -> None:
    name, tried = key.removeprefix("serve."), 0
    for value in outside(key):
        message = refusal(key, value)
        # Derived settings come first where a width or a size of nothing makes none of them.
        assert message.startswith((f"here.yaml: {name}", "tokenizer.patch=0")), message
        assert str(of(key)) in message or "tokenizer.patch=0" in message, message
        assert "\n" not in message
        tried += 1
    assert tried


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, "nan") for key in SET] + [(key, value) for key in ONE_OF_A_TYPE.values() for value in NOT_FINITE[1:]],
)
def test_no_number_may_be_infinite_or_none_at_all(key: str, value: Any) -> None:
    name = key.removeprefix("serve.")
    message = refusal(key, value)
    assert message.startswith(f"here.yaml: {name}") and ("finite number" in message or "no whole number" in message)


def bounds(key: str) -> Iterator[float]:
    allowed = of(key)
    yield from (bound for bound in (allowed.least, allowed.most) if bound is not None)


@pytest.mark.parametrize("key", [key for key in NUMERIC if list(bounds(key))])
def test_a_bound_itself_is_in_the_range(key: str) -> None:
    item = SETTINGS[key][1]
    for value in bounds(key):
        number = int(value) if is_whole(key) else value
        only = dataclasses.make_dataclass("Only", [(item.name, item.type, number_field(**vars(of(key))))])
        check_ranges(only(**{item.name: written(key, number)}))


def test_a_default_that_a_class_changes_keeps_the_range_of_the_class_before_it() -> None:
    assert range_of(configuration.TrainConfig, "warmup_steps") == range_of(configuration.TrainingConfig, "warmup_steps")
    assert refusal("train.warmup_steps", -1) == "here.yaml: train.warmup_steps=-1 must be at least 0"


def test_every_default_is_in_its_range() -> None:
    check_ranges(from_dict(CONFIG))
    check_ranges(ServeConfig())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.min_workers=3", "cluster.num_workers=2"], "cluster.min_workers=3 is above cluster.num_workers=2"),
        (["train.betas=[0.9,1]"], "train.betas[1]=1.0 must be at least 0, below 1"),
        (["train.lr=nan"], "train.lr=nan must be a finite number, above 0"),
        (["cluster.worker_resources={a: 0}"], "cluster.worker_resources.a=0.0 must be above 0"),
        (["train.clip_norm=-1"], "train.clip_norm=-1.0 must be at least 0"),
        (["train.steps=1e3"], "train.steps=1e3 is no whole number, at least 1"),
        (["train.lr=fast"], "train.lr=fast is no number, above 0"),
    ],
)
def test_the_message_names_key_value_and_range(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(copy.deepcopy(CONFIG), overrides, where="here.yaml")
    assert str(raised.value) == f"here.yaml: {message}"


@pytest.mark.parametrize(
    ("setting", "range_"),
    [
        ("cluster.num_workers=0", "at least 1"),
        ("cluster.encoders=0", "at least 1"),
        ("cluster.cpus_per_reader=0", "above 0"),
        ("data.unit_images=0", "at least 1"),
        ("data.limit=-1", "at least 1"),
        ("train.batch_size=0", "at least 1"),
        ("train.lr=-1", "above 0"),
        ("train.class_dropout=5", "at least 0, below 1"),
        ("sampler.content_temperature=0", "at least 0.01, at most 10"),
    ],
)
def test_a_command_ends_with_one_line_before_ray_starts(setting: str, range_: str) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(SystemExit) as stop:
        run.main(["--config", "conf/smoke.yaml", setting])
    message = f"error: conf/smoke.yaml: {key}={value}(\\.0)? must be {range_}"
    assert re.fullmatch(message, str(stop.value)), stop.value
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()


# ---- the pages ----


def test_the_pages_of_the_settings_are_what_the_schema_says() -> None:
    written = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    assert written == pages(), "the schema has changed: run python -m scripts.docs"


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_has_a_comment(key: str) -> None:
    section, item = SETTINGS[key]
    assert comments(section).get(item.name), f"say behind {key} what it does"


def test_the_pages_have_every_setting_once() -> None:
    text = "".join(pages().values())
    for key in SETTINGS:
        name = f"| `{key.removeprefix('serve.')}` |"
        assert text.count(name) == (2 if name in ("| `name` |", "| `precision` |") else 1), key  # a server's too
