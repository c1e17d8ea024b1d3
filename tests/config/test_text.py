"""What a YAML file says: every key once, and each value what its setting takes it for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nvg import config as configuration
from nvg.config import Config, from_dict, load, serve_config
from nvg.config.text import TextError, parse
from nvg.errors import ConfigError
from pipelines import sweep
from tests.support.toy_config import CONFIG

MINIMAL = """\
name: minimal
output: runs/minimal
data: {source: folder, train: images, image_size: 8, channels: 1, num_classes: 2}
tokenizer: {widths: [16, 16]}
content: {depth: 1}
structure: {depth: 2}
"""


def write(folder: Path, more: str, name: str = "here.yaml") -> Path:
    path = folder / name
    path.write_text(MINIMAL + more)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{path}: ")


# ---- a key twice ----

TWICE = [
    ("train: {steps: 16}\ntrain: {batch_size: 16}\n", "train is given twice, in lines 7 and 8"),
    ("train:\n  steps: 16\n  batch_size: 16\n  steps: 2\n", "train.steps is given twice, in lines 8 and 10"),
    ("train: {steps: 1, steps: 2}\n", "train.steps is given twice, in line 7"),
    ("'train': {steps: 1}\n\"train\": {}\n", "train is given twice, in lines 7 and 8"),
    ("cluster:\n  worker_resources:\n    a: 1\n    a: 2\n", "cluster.worker_resources.a is given twice, in lines 9"),
    ("train:\n  parts: [{a: 1, a: 2}]\n", "train.parts[0].a is given twice, in line 8"),
    ("name: other\n", "name is given twice, in lines 1 and 7"),
]


@pytest.mark.parametrize(("more", "words"), TWICE, ids=[words for _, words in TWICE])
def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path: Path, more: str, words: str) -> None:
    assert refusal(write(tmp_path, more)).startswith(words)


def test_a_key_twice_in_a_base_or_in_a_file_of_serving_names_that_file(tmp_path: Path) -> None:
    base = write(tmp_path, "seed: 1\nseed: 2\n", "base.yaml")
    (tmp_path / "top.yaml").write_text("base: base.yaml\n")
    with pytest.raises(ConfigError, match=f"^{base}: seed is given twice, in lines 7 and 8: keep one of them"):
        load(tmp_path / "top.yaml")
    (tmp_path / "serve.yaml").write_text("port: 1\nmodel: a\nport: 2\n")
    with pytest.raises(ConfigError, match="serve.yaml: port is given twice, in lines 1 and 3"):
        configuration.read(tmp_path / "serve.yaml")


def test_a_base_and_the_file_over_it_may_both_have_a_key(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\n", "base.yaml")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nseed: 2\n")
    assert load(tmp_path / "top.yaml").seed == 2


def test_on_the_command_line_the_last_one_counts_but_not_within_one_value(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert load(path, ["train.steps=1", "train.steps=2", "train={steps: 3}"]).train.steps == 3
    assert "steps is given twice, in line 1" in refusal(path, "train={steps: 1, steps: 2}")


@pytest.mark.parametrize(
    ("vary", "overrides"),
    [(["seed=0,1", "seed=2"], []), (["seed=0,1"], ["seed=3"])],
    ids=["two axes", "axis and setting"],
)
def test_a_sweep_varies_a_key_once(vary: list[str], overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="seed is given twice: write all its values in one --vary seed=..."):
        sweep.combinations(vary, overrides)


@pytest.mark.parametrize("vary", ["seed=0,0", "seed=1,0,1", "tokenizer.widths=[16,16],[16,16]", "name=a,a"])
def test_a_sweep_takes_each_value_once(vary: str) -> None:
    with pytest.raises(ConfigError, match=r"^--vary .* is given twice: write each value once$"):
        sweep.combinations([vary])


def test_a_sweep_keeps_values_as_they_are_written() -> None:
    assert sweep.combinations(["name=no,01", "train.lr=1e-3"]) == [
        ["name=no", "train.lr=1e-3"],
        ["name=01", "train.lr=1e-3"],
    ]
    assert sweep.combinations(["tokenizer.widths=[16,16],[16,32]"])[1] == ['tokenizer.widths=["16", "32"]']


# ---- values ----

TRAPS: list[tuple[str, Any]] = [
    ("name=no", "no"),
    ("name=2026-01-01", "2026-01-01"),
    ("name=1:30", "1:30"),
    ("name=0x1F", "0x1F"),
    ("name='null'", "null"),
    ("data.class_names=[yes, 01]", ["yes", "01"]),
    ("data.class_names=[on, 1e3]", ["on", "1e3"]),
    ("data.class_names=[~a, 'a: b']", ["~a", "a: b"]),
    ("train.lr=1e-3", 0.001),
    ("train.lr=1E-3", 0.001),
    ("train.lr=.5", 0.5),
    ("train.betas=[9e-1, 0.5]", [0.9, 0.5]),
    ("seed=010", 10),
    ("seed=1_000", 1000),
    ("train.steps=null", None),
    ("train.steps=~", None),
    ("data.flip=no", False),
    ("data.flip=Yes", True),
    ("data.flip=off", False),
]


def value(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("item", "expected"), TRAPS, ids=[item for item, _ in TRAPS])
def test_a_value_is_what_its_setting_takes_it_for(tmp_path: Path, item: str, expected: Any) -> None:
    key, _, text = item.partition("=")
    section, _, name = key.rpartition(".")
    assert value(load(write(tmp_path, ""), [item]), key) == expected
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(f"{section or key}:")]
    if section == "data":
        lines.append(
            f"data: {{source: folder, train: images, image_size: 8, channels: 1, num_classes: 2, {name}: {text}}}"
        )
    else:
        lines.append(f"{section}:\n  {name}: {text}" if section else f"{key}: {text}")
    path = tmp_path / "written.yaml"
    path.write_text("\n".join(lines))
    assert value(load(path), key) == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("train:\n", "train is empty: write its keys below it, indented, or leave it out"),
        ("train: [1, 2]\n", "train is ['1', '2'] and no section"),
        ("train: 5\n", "train is '5' and no section"),
        ("train:\n\tsteps: 3\n", "line 8 is not YAML: a tab, where YAML takes spaces alone: indent with spaces"),
        ("train: steps: 3\n", "line 7 is not YAML: a second `key:` in one line"),
        ("train: {steps: 1:30}\n", "train.steps=1:30 is no whole number, at least 1"),
        ("train: {steps: 0x10}\n", "train.steps=0x10 is no whole number, at least 1"),
        ("train: {steps: 3.0}\n", "train.steps=3.0 is no whole number, at least 1"),
        ("train: {steps: yes}\n", "train.steps=yes is no whole number, at least 1"),
        ("train: {betas: }\n", "train.betas is empty: give a value, or leave the key out"),
        ("cluster: {worker_resources: }\n", "cluster.worker_resources is empty: give a value, or leave the key out"),
        ("evaluate: {reference: }\n", "evaluate.reference is empty: give a value, or leave the key out"),
        ("evaluate: {save_samples: 2}\n", "evaluate.save_samples=2 is neither true nor false"),
        ("train: {parts: [content, [structure]]}\n", "train.parts=['content', ['structure']]: a list of plain values"),
        ("train: &a {steps: 1}\ndistill: *a\n", "line 8: an alias (*name): write the values out"),
        ("train:\n  <<: {steps: 1}\n", "line 8: a merge key (<<): write the values out"),
        ("train: !other {steps: 1}\n", "line 7: the tag !other at train: write the value without it"),
        ("train: !!set {a}\n", "line 7: the tag tag:yaml.org,2002:set at train"),
        ("train: !!python/name:os.system x\n", "line 7: the tag tag:yaml.org,2002:python/name:os.system at train"),
        ("? [a]\n: 1\n", "line 7: a key that is no word"),
        ("---\nname: other\n", "line 7 is not YAML"),
        ("train: [1\n", "line 8 is not YAML"),
    ],
)
def test_what_reads_otherwise_than_it_looks_is_refused_in_one_line(tmp_path: Path, more: str, words: str) -> None:
    assert refusal(write(tmp_path, more)).startswith(words)


@pytest.mark.parametrize("item", ["train=", "train=null", "train=5"])
def test_a_section_on_the_command_line_needs_keys_too(tmp_path: Path, item: str) -> None:
    assert refusal(write(tmp_path, ""), item).startswith("train is ")


def test_deep_nesting_and_no_text_are_told_as_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00x")
    for name in ("deep", "binary"):
        with pytest.raises(ConfigError, match=f"{name}.yaml"):
            load(tmp_path / f"{name}.yaml")
    with pytest.raises(TextError, match="not YAML"):
        parse("a: \x07")


# ---- paths ----

PATHS = [
    "output",
    "data.train",
    "data.test",
    "tokenizer_train.lpips_weights",
    "tokenizer_train.discriminator_weights",
    "repa.weights",
    "distill.teacher",
    "evaluate.reference",
    "evaluate.inception_weights",
    "tracking.uri",
    "tracking.artifacts",
    "model",
]


def configured(key: str, text: str, *, on_the_command_line: bool) -> str:
    """The setting, given in a file or on the command line."""
    content: dict[str, Any] = {"repa": {"block": 1}, "distill": {"steps": 1}}
    content |= {name: dict(part) if isinstance(part, dict) else part for name, part in CONFIG.items()}
    if key == "model":
        given = [f"{key}={text}"] if on_the_command_line else []
        return serve_config({} if given else {key: text}, given).model
    if on_the_command_line:
        return value(from_dict(content, [f"{key}={text}"]), key)
    section, _, name = key.rpartition(".")
    node = content.setdefault(section, {}) if section else content
    node[name] = text
    return value(from_dict(content), key)


HOME = os.path.expanduser("~")


WHOLE = {
    "~/a b/x.npz": f"{HOME}/a b/x.npz",
    "file://~/x.npz": f"file://{HOME}/x.npz",
    "~root/x.npz": "/root/x.npz",
    "${oc.env:HOME}/x.npz": f"{os.environ.get('HOME')}/x.npz",
    "a/x.npz": "a/x.npz",
    "a~b/x.npz": "a~b/x.npz",
    "s3://bucket/~x/x.npz": "s3://bucket/~x/x.npz",
}


def every_path_and_every_text(texts: Iterable[str]) -> list[tuple[str, str]]:
    """(key, text): every path with the first text, and one path with all texts."""
    first, *others = texts
    return [(key, first) for key in PATHS] + [("data.train", text) for text in others]


@pytest.mark.parametrize("on_the_command_line", [True, False], ids=["command line", "file"])
@pytest.mark.parametrize(("key", "text"), every_path_and_every_text(WHOLE))
def test_every_path_has_the_same_home_folder(key: str, on_the_command_line: bool, text: str) -> None:
    assert configured(key, text, on_the_command_line=on_the_command_line) == WHOLE[text]


def test_a_database_may_be_at_home() -> None:
    assert configured("tracking.uri", "sqlite:///~/a.db", on_the_command_line=False) == f"sqlite:///{HOME}/a.db"


REFUSED = {
    "$HOME/x.npz": "$HOME/x.npz: variables are not expanded: write ~ for the home folder, or ${oc.env:NAME}",
    "%USERPROFILE%/x.npz": "%USERPROFILE%/x.npz: variables are not expanded",
    "C:\\runs\\x.npz": "C:\\runs\\x.npz is a path of Windows",
    "C:/runs/x.npz": "C:/runs/x.npz is a path of Windows",
    "file://runs/x.npz": "file://runs/x.npz: write file:///absolute/path, with three slashes",
    "~no-such-user/x.npz": "~no-such-user/x.npz: no home folder of ~no-such-user: write the whole path",
    "": "the path is empty: give one, or leave the key out",
    " ": "the path is empty: give one, or leave the key out",
}


@pytest.mark.parametrize(("key", "text"), every_path_and_every_text(REFUSED))
def test_what_would_become_an_odd_folder_here_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configured(key, text, on_the_command_line=False)
    assert str(raised.value).startswith(f"configuration: {key}: {REFUSED[text]}")


def test_a_configuration_and_its_base_may_be_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "", "base.yaml")
    (tmp_path / "top.yaml").write_text("base: ~/base.yaml\n")
    assert load("~/top.yaml").name == "minimal"
