"""nvg/config: what loads, what is refused and in which words, and what a digest depends on."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvg import config as configuration
from nvg.config import Config, digest, from_dict, load, merged, read, to_dict, to_yaml
from nvg.errors import ConfigError

CONF = sorted((Path(__file__).parents[2] / "conf").glob("*.yaml"))

MINIMAL: dict[str, Any] = {
    "name": "minimal",
    "output": "runs/minimal",
    "data": {"source": "folder", "train": "images", "image_size": 32, "num_classes": 3},
    "tokenizer": {"patch": 2, "widths": [16, 32]},
    "content": {"depth": 1},
    "structure": {"depth": 2},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one key set."""
    result = copy.deepcopy(MINIMAL)
    *sections, name = key.split(".")
    node = result
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return result


def without(key: str) -> dict[str, Any]:
    """MINIMAL with one key left out."""
    result = copy.deepcopy(MINIMAL)
    *sections, name = key.split(".")
    node = result
    for section in sections:
        node = node[section]
    del node[name]
    return result


# ---- what loads ----


def test_resources_of_workers_and_readers_are_ray_s_options() -> None:
    plain = from_dict(MINIMAL).cluster
    assert plain.actor == plain.reader == {"num_cpus": 1.0}
    kinds = ["cluster.use_gpu=true", "cluster.worker_resources={A100: 0.01}", "cluster.reader_resources={reader: 1}"]
    cluster = from_dict(MINIMAL, kinds).cluster
    assert cluster.actor == {"num_cpus": 1.0, "num_gpus": 1, "resources": {"A100": 0.01}}
    assert cluster.reader == {"num_cpus": 1.0, "resources": {"reader": 1.0}}
    for wrong in ("{reader: 0}", "{CPU: 1}"):
        with pytest.raises(ConfigError, match="cluster.reader_resources"):
            from_dict(MINIMAL, [f"cluster.reader_resources={wrong}"])


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_every_file_of_conf_loads(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    assert config.content.grid == config.structure.grid == config.tokenizer.grid
    assert config.tokenizer.positions == 2**config.tokenizer.last_stage


def test_there_are_configurations() -> None:
    assert {"fashion_mnist", "smoke", "imagenet_d16", "imagenet_d20", "imagenet_d24"} <= {path.stem for path in CONF}


RELEASED: dict[str, dict[str, Any]] = {  # what the released system's three trainings share: docs/method.md
    "data": {"image_size": 256, "crop_scale": 1.125, "resize": "lanczos8", "flip": False, "num_classes": 1000},
    "tokenizer": {
        "widths": [128, 256, 512, 512, 512],
        "blocks": 2,
        "decoder_blocks": 3,
        "attention": False,
        "code_width": 32,
        "codebook_size": 4096,
        "child_order": "merge",
    },
    "tokenizer_train": {
        "epochs": 100,
        "batch_size": 256,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "ema_decay": 0.9999,
        "precision": "tf32",
        "index_backprop_epochs": 1,
        "l1_weight": 1.0,
        "l2_weight": 0.0,
        "lpips_weight": 1.0,
        "commitment_weight": 0.25,
        "codebook_weight": 1.0,
        "entropy_weight": 0.0,
        "revive_every": 0,
        "discriminator_weight": 0.1,
        "discriminator_start": 0.0,
        "discriminator_weight_decay": 0.0005,
        "lecam_weight": 0.001,
    },
    "repa": {"block": 8, "weight": 0.5, "feature_width": 768},
    "train": {
        "lr": 1e-4,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "ema_decay": 0.9999,
        "warmup_steps": 1000,
        "class_dropout": 0.1,
    },
}
PROTOCOL: dict[str, dict[str, Any]] = {  # of the published figures
    "sampler": {
        "flow_steps": 25,
        "flow_shift": 0.5,
        "structure_guidance": 2.5,
        "content_guidance": 3.5,
        "top_p": 0.5,
        "structure_temperature": 0.0,
        "content_temperature": 1.0,
    },
    "evaluate": {"samples_per_class": 50},
}


FORMS: dict[str, dict[str, dict[str, Any]]] = {  # of the generators' tokens
    "released": {
        "content": {"tokens": "positions", "position_network": False, "residual": False},
        "structure": {"canvas_tokens": "positions"},
        "train": {"canvas_weight": 1.0},
    },
    "clusters": {
        "content": {"tokens": "clusters", "position_network": True, "residual": True},
        "structure": {"canvas_tokens": "clusters"},
        "train": {"canvas_weight": 0.0},
    },
}


def settings_of(config: Any, sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same keys of a configuration."""
    return {name: {key: getattr(getattr(config, name), key) for key in part} for name, part in sections.items()}


@pytest.mark.parametrize(
    ("name", "depth", "epochs", "batch", "decay_epochs", "final", "form"),
    [
        ("d16", 16, 200, 768, 40, 0.1, "clusters"),
        ("d20", 20, 250, 720, 50, 0.1, "clusters"),
        ("d24", 24, 350, 864, 150, 0.01, "clusters"),
        ("d16_released", 16, 200, 768, 40, 0.1, "released"),
    ],
)
def test_imagenet_has_the_settings_of_the_released_system_and_tokens_of_its_form(
    name: str, depth: int, epochs: int, batch: int, decay_epochs: int, final: float, form: str
) -> None:
    config = load(f"conf/imagenet_{name}.yaml")
    assert settings_of(config, RELEASED) == RELEASED
    assert settings_of(config, FORMS[form]) == FORMS[form]
    assert settings_of(config, PROTOCOL) == PROTOCOL
    assert (config.content.depth, config.structure.depth) == (depth, depth)
    assert (config.train.epochs, config.train.batch_size, config.train.final_lr) == (epochs, batch, final)
    assert config.train.decay_share * epochs == pytest.approx(decay_epochs, abs=0.1)


def test_the_published_protocol_has_the_released_sampler_s_settings() -> None:
    protocol = load("conf/imagenet_d16.yaml", ["sampler.top_p=1.0", "evaluate.samples_per_class=1"])
    content = merged(to_dict(protocol), read("conf/eval/imagenet_fid50k.yaml"))
    assert settings_of(from_dict(content), PROTOCOL) == PROTOCOL


def test_imagenet_depths_share_the_tokenizer_and_its_tokens() -> None:
    configs = [load(f"conf/imagenet_d{depth}.yaml") for depth in (16, 20, 24)]
    for config in configs[1:]:
        for section in ("output", "seed", "data", "tokenizer", "tokenizer_train", "repa"):
            assert getattr(config, section) == getattr(configs[0], section), section


def test_environment_variables_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    content = changed("data.train", "${oc.env:NVG_TEST_IMAGES,/data}/train")
    monkeypatch.setenv("NVG_TEST_IMAGES", "s3://images")
    assert from_dict(content).data.train == "s3://images/train"
    monkeypatch.delenv("NVG_TEST_IMAGES")
    assert from_dict(content).data.train == "/data/train"


def test_derived_fields_follow_from_the_other_sections() -> None:
    config = from_dict(changed("data.channels", 1))
    assert (config.tokenizer.image_size, config.tokenizer.channels) == (32, 1)
    assert (config.content.grid, config.content.code_width, config.content.num_classes) == (8, 32, 3)
    assert (config.structure.grid, config.structure.code_width, config.structure.num_classes) == (8, 32, 3)
    assert config.content.repa_block is None


def test_alignment_weights_switch_its_block_on() -> None:
    config = from_dict(MINIMAL, ["repa.weights=dinov2", "repa.block=1"])
    assert (config.content.repa_block, config.content.repa_width) == (1, 768)


def test_the_last_override_wins_over_the_file() -> None:
    config = from_dict(changed("train.lr", 1e-3), ["train.lr=2e-4", "train.lr=3e-4", "tokenizer.widths=[32,64]"])
    assert config.train.lr == 3e-4
    assert config.tokenizer.widths == [32, 64]


# ---- what is refused ----


def refusal(content: dict[str, Any], overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        from_dict(content, overrides or [], where="here.yaml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("data.imagesize", "data.image_size"),
        ("trian", "train"),
        ("train.bach_size", "train.batch_size"),
        ("sampler.flow_step", "sampler.flow_steps"),
        ("image_size", "data.image_size"),  # the right name at the wrong place
    ],
)
def test_an_unknown_key_is_named_with_the_one_that_was_meant(key: str, near: str) -> None:
    for message in (refusal(changed(key, 1)), refusal(MINIMAL, [f"{key}=1"])):
        assert message == f"here.yaml: unknown key {key!r}; did you mean {near!r}?"


def test_a_list_where_a_section_belongs_is_refused() -> None:
    assert refusal({**MINIMAL, "train": [1, 2]}).startswith("here.yaml: ")


def test_an_unknown_key_like_no_other_has_no_hint() -> None:
    assert refusal(MINIMAL, ["train.xyzzy=1"]) == "here.yaml: unknown key 'train.xyzzy'"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", "fast"),
        ("data.image_size", "large"),
        ("data.image_size", 32.5),
        ("data.flip", "perhaps"),
        ("tokenizer.widths", [16, "wide"]),
        ("tokenizer.widths", 16),
        ("content.depth", None),
        ("train", 5),
        ("train", None),
    ],
)
def test_a_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    message = refusal(changed(key, value))
    assert message.startswith(f"here.yaml: {key}")


@pytest.mark.parametrize(
    "key",
    [
        "name",
        "output",
        "data.source",
        "data.train",
        "data.image_size",
        "data.num_classes",
        "content.depth",
        "structure.depth",
    ],
)
def test_a_missing_value_is_asked_for_by_name(key: str) -> None:
    assert refusal(without(key)) == f"here.yaml: {key!r} must be given"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["data.image_size=30"], ["data.image_size=30", "tokenizer.patch", "tokenizer.widths"]),
        (["data.image_size=48"], ["data.image_size=48", "144 latent positions", "power of two"]),
        (["data.image_size=4"], ["data.image_size=4", "1 latent positions"]),
        (["data.image_size=256"], ["data.image_size=256", "4096 latent positions"]),
        (["structure.depth=3"], ["structure.depth=3", "even"]),
        (["structure.depth=0"], ["structure.depth=0"]),
        (["content.depth=0"], ["content.depth=0"]),
        (["content.tokens=pixels"], ["content.tokens='pixels'", "clusters, positions"]),
        (["content.tokens=cluster", "content.position_network=true"], ["content.tokens='cluster'", "clusters, pos"]),
        (["structure.canvas_tokens=Clusters"], ["structure.canvas_tokens='Clusters'", "clusters, positions"]),
        (["content.tokens=clusters"], ["content.tokens=clusters", "content.position_network=true"]),
        (
            ["content.tokens=clusters", "content.position_network=true", "content.residual=false"],
            ["content.residual=false", "content.tokens=positions"],
        ),
        (["cluster.num_workers=5"], ["tokenizer_train.batch_size=256", "cluster.num_workers", "5"]),
        (["train.batch_size=10", "train.accumulate=4"], ["train.batch_size=10", "train.accumulate", "4"]),
        (["train.accumulate=0"], ["train.accumulate=0"]),
        (["train.micro_batch=0"], ["train.micro_batch=0 must be at least 1"]),
        (["train.micro_batch=some"], ["train.micro_batch=some is no whole number, at least 1, or auto"]),
        (["train.accumulate=auto"], ["train.accumulate=auto is no whole number"]),
        (["train.parts=[canvas]"], ["train.parts=['canvas']"]),
        (["train.parts=[]"], ["train.parts=[]"]),
        *(
            ([f"{section}precision=float8"], [f"{section}precision='float8' is none of auto, float32, tf32, bfloat16"])
            for section in ("", "tokenizer_train.", "train.")
        ),
        (["train.betas=[0.9]"], ["train.betas=[0.9]"]),
        (["train.checkpoint_every=0"], ["train.checkpoint_every=0"]),
        (["tokenizer.widths=[16,130]"], ["tokenizer.widths=[16, 130]"]),
        (["tokenizer.blocks=0"], ["tokenizer.blocks=0", "at least 1, at most 64"]),
        (["tokenizer.decoder_blocks=0"], ["tokenizer.decoder_blocks=0", "at least 1, at most 64"]),
        (["tokenizer.child_order=spread"], ["tokenizer.child_order='spread'", "raster, merge"]),
        (["data.resize=lanczos"], ["data.resize='lanczos'", "antialiased, lanczos8"]),
        (["tokenizer.codebook_size=65537"], ["tokenizer.codebook_size=65537"]),
        (["data.source=zip"], ["data.source='zip'", "folder"]),
        (["data.channels=4"], ["data.channels=4"]),
        (["data.views=0"], ["data.views=0"]),
        (["data.views=128"], ["data.views=128"]),
        (["data.crop_scale=0.5"], ["data.crop_scale=0.5"]),
        (["data.class_names=[a,b]"], ["data.class_names", "2 names", "data.num_classes=3"]),
        (["repa.weights=dinov2"], ["repa.block=8", "content.depth"]),
        (["sampler.flow_steps=0"], ["sampler.flow_steps=0"]),
        (["sampler.flow_shift=-0.5"], ["sampler.flow_shift=-0.5", "at least 0, at most 5"]),
        (["sampler.top_p=0"], ["sampler.top_p=0"]),
        (["sampler.top_p=1.5"], ["sampler.top_p=1.5"]),
        (["distill.steps=-1"], ["distill.steps=-1"]),
        (["distill.steps=9", "distill.flow_share=1"], ["distill.flow_share=1"]),
        (["distill.steps=9", "distill.flow_steps=0"], ["distill.flow_steps=0"]),
        (
            ["distill.steps=9", "distill.max_guidance=2"],
            ["sampler.structure_guidance=2.5", "distill.max_guidance=2"],
        ),
        (["distill.steps=9", "distill.batch_size=7", "cluster.num_workers=2"], ["distill.batch_size=7"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_values_that_do_not_fit_together_are_refused_by_name(overrides: list[str], names: list[str]) -> None:
    message = refusal(MINIMAL, overrides)
    assert message.startswith("here.yaml: ")
    for name in names:
        assert name in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_batch=0", "max_batch=0 must be at least 1"),
        ("max_body_mb=0", "max_body_mb=0.0 must be above 0"),
        ("precision=float16", "precision='float16' is none of auto, float32, tf32, bfloat16"),
        ("port=65536", "port=65536 must be at least 1, at most 65535"),
        ("drain_seconds=-1", "drain_seconds=-1.0 must be at least 0"),
        ("min_replicas=2", "max_replicas=1 is below min_replicas=2"),
        (
            "max_queue=3",
            "max_queue=3 is below max_images=64: a request of so many images could never be taken",
        ),
    ],
)
def test_a_deployment_that_cannot_be_is_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configuration.serve_config({}, [override], where="here.yaml")
    assert str(raised.value) == f"here.yaml: {words}"


@pytest.mark.parametrize("override", ["train.lr", "=3", " = 3", "--verbose", "tokenizer.widths=[16", "name='open"])
def test_an_override_of_another_form_is_quoted(override: str) -> None:
    message = refusal(MINIMAL, [override])
    assert repr(override) in message


@pytest.mark.parametrize("key", sorted(configuration.DERIVED))
def test_a_derived_key_cannot_be_set_to_something_else(key: str) -> None:
    message = refusal(changed(key, 7))
    assert f"{key}=7 does not fit" in message
    assert f"leave {key} out" in message


def test_a_file_that_is_not_there_or_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load(tmp_path / "nowhere.yaml")
    for text, words in (("[1, 2]", "holds no keys"), ("", "holds no keys"), ("a: [1", "is not YAML")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / "bad.yaml")


# ---- a base, and what differs ----


def write(folder: Path, **files: str) -> Path:
    """Write NAME.yaml for each name; returns the path of the first one."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_a_file_wins_over_its_base_and_overrides_over_both(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, lowest=to_yaml(from_dict(MINIMAL)))
    write(tmp_path / "deep", middle="base: ../lowest.yaml\ntrain: {lr: 0.5, steps: 7}")
    top = write(tmp_path, top="base: deep/middle.yaml\nname: top\ntrain: {lr: 0.25}")
    config = load(top, ["train.warmup_steps=3"])
    assert config.name == "top"
    assert (config.train.lr, config.train.steps, config.train.warmup_steps) == (0.25, 7, 3)
    assert config.tokenizer == from_dict(MINIMAL).tokenizer
    assert configuration.read_file(top)["base"] == "deep/middle.yaml" and "base" not in configuration.read(top)
    other = write(tmp_path / "deep", absolute=f"base: file://{tmp_path}/top.yaml")
    assert load(other).train.steps == load(f"file://{other}").train.steps == 7


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "base: b.yaml"}, ["no configuration file at", "b.yaml", "(base of", "a.yaml"]),
        ({"a": "base: b.yaml", "b": "[1, 2]"}, ["b.yaml holds no keys", "(base of"]),
        ({"a": "base: a.yaml"}, ["a.yaml goes in a circle"]),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"}, ["c.yaml: base=", "circle", " -> "]),
        ({"a": "base: [b.yaml]"}, ["a.yaml: base=['b.yaml'] must be the path or URL"]),
        ({"a": "base: b.yaml", "b": "trian: {lr: 1}"}, ["a.yaml over", "b.yaml: unknown key 'trian'"]),
    ],
    ids=["missing", "no mapping", "itself", "circle", "list", "unknown key"],
)
def test_a_base_that_cannot_be_used_is_refused_by_its_file(
    tmp_path: Path, files: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(write(tmp_path, **files))
    for word in words:
        assert word in str(raised.value)


# ---- there and back, digests ----


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_yaml_round_trip(path: Path, tmp_path: Path) -> None:
    config = load(path, ["seed=3"])
    (tmp_path / "copy.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "copy.yaml") == config
    assert from_dict(to_dict(config)) == config


def test_digest_is_stable_and_sees_every_change() -> None:
    config = from_dict(MINIMAL)
    # Fixed, since artifacts are found by it: a change here makes every finished step be done again.
    assert digest("tokens", 3, ["a"]) == "98d3c48155d5"
    assert digest(config) == digest(from_dict(copy.deepcopy(MINIMAL)))
    others = [from_dict(MINIMAL, [item]) for item in ("seed=1", "train.lr=2e-4", "tokenizer.widths=[16,48]")]
    assert len({digest(config), *(digest(other) for other in others)}) == 4
    assert digest(config.train) != digest(config.tokenizer_train)


def test_digest_is_the_same_in_another_process() -> None:
    code = "from nvg.config import digest, load; print(digest(load('conf/smoke.yaml')))"
    root = Path(__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest(load(root / "conf/smoke.yaml"))


def test_defaults_are_not_shared_between_configurations() -> None:
    first: Config = from_dict(MINIMAL)
    first.train.betas.append(0.5)
    assert from_dict(MINIMAL).train.betas == [0.9, 0.95]


# ---- names that MLflow checks ----

NAMES = [
    "nvg",
    "org/nvg",
    "a:b",
    "",
    " ",
    ".",
    "..",
    "/nvg",
    "a/",
    "main.models.nvg",
    "ein Modell",
    "ü",
    "a\tb",
    "a/../b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_refused_by_name_where_mlflow_would_refuse_it_after_the_training(name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_name

    try:
        _validate_model_name(name)
    except MlflowException:
        message = refusal(changed("tracking.registered_model", name))
        assert message.startswith(f"here.yaml: tracking.registered_model={name!r}: MLflow takes no")
    else:
        assert from_dict(changed("tracking.registered_model", name)).tracking.registered_model == name


def test_a_model_s_name_leaves_room_for_its_alias() -> None:
    assert "takes none with @" in refusal(changed("tracking.registered_model", "nvg@champion"))


@pytest.mark.parametrize("key", ["name", "tracking.experiment"])
@pytest.mark.parametrize("name", ["", " ", "x" * 501])
def test_an_experiment_is_refused_by_name_where_mlflow_would_refuse_it(key: str, name: str) -> None:
    assert refusal(changed(key, name)).startswith(f"here.yaml: {key}={name!r} is MLflow's name of the experiment")


@pytest.mark.parametrize("name", ["org/nvg", "a:b", "x" * 500])
def test_other_names_of_experiments_are_mlflow_s_to_take(name: str) -> None:
    from mlflow.utils.validation import _validate_experiment_name

    _validate_experiment_name(name)
    assert from_dict(changed("tracking.experiment", name)).tracking.experiment == name


# ---- a word for None ----


@pytest.mark.parametrize("written", ["auto", None, 4])
def test_auto_and_null_are_the_same_micro_batch(tmp_path: Path, written: str | int | None) -> None:
    """Files from before the word have null, and so have those that a job writes."""
    value = None if written == "auto" else written
    config = from_dict(MINIMAL | {"train": {"micro_batch": written}})
    assert config.train.micro_batch == value and from_dict(to_dict(config)) == config
    path = write(tmp_path, top="base: low.yaml\ntrain: {micro_batch: auto}", low=to_yaml(config))
    assert load(path).train.micro_batch is None
    text = "null" if written is None else written
    assert load(path, ["train.micro_batch=8", f"train.micro_batch={text}"]).train.micro_batch == value


# ---- a training's length, as steps or as epochs ----


@pytest.mark.parametrize("section", ["tokenizer_train", "train"])
@pytest.mark.parametrize(
    ("lower", "upper", "steps", "epochs"),
    [
        ({"steps": 9}, ["epochs=3"], None, 3.0),
        ({"epochs": 3}, ["steps=9"], 9, None),
        ({"steps": 9}, ["epochs=3", "epochs=4"], None, 4.0),
        ({"steps": 9}, ["lr=1e-3"], 9, None),
        ({"steps": 9}, ["steps=null"], None, None),
        ({"epochs": 3}, ["steps=null"], None, 3.0),
    ],
)
def test_a_length_that_is_given_over_a_file_stands_for_the_file_s_length(
    tmp_path: Path, section: str, lower: dict[str, Any], upper: list[str], steps: int | None, epochs: float | None
) -> None:
    default = getattr(from_dict(MINIMAL), section).epochs
    for config in (
        from_dict(MINIMAL | {section: lower}, [f"{section}.{item}" for item in upper]),
        load(
            write(
                tmp_path,
                top=f"base: low.yaml\n{section}: {{{', '.join(item.replace('=', ': ') for item in upper[-1:])}}}",
                low=to_yaml(from_dict(MINIMAL | {section: lower})),
            )
        ),
    ):
        trained = getattr(config, section)
        assert (trained.steps, trained.epochs) == (steps, epochs or default)
        assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("section", ["tokenizer_train", "train"])
def test_a_length_in_steps_and_in_epochs_at_once_is_refused(section: str) -> None:
    message = f"here.yaml: {section}.steps=9 and {section}.epochs=3.0 both say how long the training is: leave one out"
    assert refusal(MINIMAL | {section: {"steps": 9, "epochs": 3}}) == message
    assert refusal(MINIMAL, [f"{section}.steps=9", f"{section}.epochs=3"]) == message


# ---- guidance of generators that never saw an image without its class ----


@pytest.mark.parametrize("network", ["structure", "content"])
@pytest.mark.parametrize("scale", ["0", "2.5", "0.99"])
def test_guidance_needs_a_training_without_class(network: str, scale: str) -> None:
    other = "content" if network == "structure" else "structure"
    without = ["train.class_dropout=0", f"sampler.{other}_guidance=1"]
    message = refusal(MINIMAL, [*without, f"sampler.{network}_guidance={scale}"])
    assert message == (
        f"here.yaml: sampler.{network}_guidance={scale} with train.class_dropout=0: guidance needs generators that "
        f"have seen images without their class: set sampler.{network}_guidance=1, or train.class_dropout above 0"
    )
    assert from_dict(MINIMAL, [*without, f"sampler.{network}_guidance=1"]).train.class_dropout == 0
    distilled = refusal(MINIMAL, [*without, f"sampler.{network}_guidance=1", "distill.steps=9"])
    assert "distill.steps=9 with train.class_dropout=0" in distilled
