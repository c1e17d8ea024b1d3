"""Keys of artifacts and identities of checkpoints: what they depend on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from nvg.artifacts.keys import artifact_keys, distilled_identity, generators_identity, tokenizer_identity
from nvg.config import Config, digest, load

CONF = Path(__file__).parents[2] / "conf"
TRAIN, TEST, TOKENIZER = "a" * 16, "b" * 16, "c" * 16


def keys(config: Config, teacher: dict[str, Any] | None = None) -> dict[str, str]:
    return artifact_keys(config, TRAIN, TEST if config.data.test else None, teacher)


def identities(config: Config) -> dict[str, str]:
    return {
        "tokenizer": tokenizer_identity(config),
        "generators": generators_identity(config, TOKENIZER),
        "distilled": distilled_identity(config, {"tokenizer": TOKENIZER}),
    }


@functools.cache
def fashion_mnist(*overrides: str) -> Config:
    return load(CONF / "fashion_mnist_hour.yaml", ["distill.steps=9", *overrides])


def test_another_format_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(fashion_mnist())
    monkeypatch.setattr("nvg.artifacts.keys.FORMAT", 99)
    assert not set(before.values()) & set(keys(fashion_mnist()).values())


@pytest.mark.parametrize(
    "override",
    [
        *("tokenizer_train.accumulate=2", "tokenizer_train.checkpoint_every=7", "tokenizer_train.preview_every=3"),
        *("train.accumulate=4", "train.gradient_checkpointing=true", "train.compile=true", "train.parallel=fsdp"),
        "train.micro_batch=2",
        *("train.checkpoint_every=7", "train.preview_every=3"),
        *("distill.accumulate=2", "distill.checkpoint_every=7", "distill.preview_every=3"),
        *("name=other", "output=/elsewhere", "cluster.num_workers=1", "tracking.log_every=3"),
    ],
)
def test_an_operational_setting_changes_neither_key_nor_identity(override: str) -> None:
    changed = fashion_mnist(override)
    assert changed != fashion_mnist()
    assert keys(changed) == keys(fashion_mnist())
    assert identities(changed) == identities(fashion_mnist())


STEPS = ["tokenizer", "tokens", "generators", "distilled", "evaluation"]
SHARED = ("lr=5e-4", "steps=77", "precision=bfloat16", "batch_size=64", "ema_decay=0.5", "betas=[0.8,0.9]")
OF_GENERATORS = (*SHARED, "shuffle_rows=99", "decay_share=0.3")


@pytest.mark.parametrize(
    ("section", "override", "trained"),
    [
        *(("tokenizer_train", item, "tokenizer") for item in (*SHARED, "entropy_weight=0.2")),
        *(("train", item, "generators") for item in (*OF_GENERATORS, "class_dropout=0.3")),
        *(("content", item, "generators") for item in ("position_network=true", "residual=false")),
        ("structure", "canvas_tokens=clusters", "generators"),
        *(("distill", item, "distilled") for item in (*SHARED, "shuffle_rows=99", "flow_share=0.3")),
    ],
)
def test_a_setting_that_changes_weights_changes_the_identity_and_the_keys_from_its_step_on(
    section: str, override: str, trained: str
) -> None:
    before, after = fashion_mnist(), fashion_mnist(f"{section}.{override}")
    changed = [step for step in STEPS if keys(after)[step] != keys(before)[step]]
    assert changed == STEPS[STEPS.index(trained) :]
    assert {name for name, mark in identities(after).items() if mark != identities(before)[name]} == {trained}


def test_a_seed_changes_everything() -> None:
    before, after = fashion_mnist(), fashion_mnist("seed=1")
    assert not set(keys(before).values()) & set(keys(after).values())
    assert not set(identities(before).values()) & set(identities(after).values())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_experiments_precision_is_of_every_step_that_has_none_of_its_own(precision: str) -> None:
    before = keys(fashion_mnist())
    after = keys(fashion_mnist(f"precision={precision}"))
    assert not set(before.values()) & set(after.values())
    assert keys(fashion_mnist("precision=auto")) == before
    own = [f"{section}.precision=float32" for section in ("tokenizer_train", "train", "distill")]
    trained, other = keys(fashion_mnist(*own)), keys(fashion_mnist(*own, f"precision={precision}"))
    assert trained["tokenizer"] == other["tokenizer"] and trained["tokens"] != other["tokens"]
    given = {"kind": "sampler"}
    one, two = (keys(fashion_mnist("distill.steps=0", *more), given) for more in ((), (f"precision={precision}",)))
    assert one["evaluation"] != two["evaluation"]


def test_views_are_the_tokens_and_test_images_the_evaluations() -> None:
    before = keys(fashion_mnist())
    views = keys(fashion_mnist("data.views=2"))
    assert {step for step in before if before[step] == views[step]} == {"tokenizer"}
    test = keys(fashion_mnist("data.test=null"))
    assert {step for step in before if before[step] != test[step]} == {"evaluation"}
    assert tokenizer_identity(fashion_mnist("data.views=2", "data.test=null")) == tokenizer_identity(fashion_mnist())


@pytest.mark.parametrize(("weights", "found"), [("null", True), ("dinov2", False)])
def test_tokens_of_the_time_when_features_were_a_column_are_found_where_they_have_none(
    weights: str, found: bool
) -> None:
    config = fashion_mnist(f"repa.weights={weights}", "repa.block=1")
    before = digest("tokens", keys(config)["tokenizer"], config.data.views, config.repa.weights)
    assert (keys(config)["tokens"] == before) is found


def test_generators_that_are_trained_one_by_one_make_the_same_artifact_from_checkpoints_of_their_own() -> None:
    both, content = fashion_mnist(), fashion_mnist("train.parts=[content]")
    assert keys(both) == keys(content)
    assert generators_identity(both, TOKENIZER) != generators_identity(content, TOKENIZER)


def test_a_teacher_is_told_by_its_metadata_not_by_its_name() -> None:
    one, other = fashion_mnist("distill.teacher=one"), fashion_mnist("distill.teacher=other")
    metadata = {"kind": "sampler", "weights": {"content": "1"}}
    assert keys(one, metadata) == keys(other, metadata)
    assert keys(one, metadata)["generators"] != keys(one, {**metadata, "weights": {"content": "2"}})["generators"]
    assert identities(one) == identities(other)
