"""The table of steps: what it says is there, and a plan follows it."""

import contextlib
import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvg import config as configuration
from nvg import storage
from nvg.errors import ConfigError
from pipelines import steps, verify
from pipelines.steps import STEPS
from tests.support.synthetic import write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    return [f"data.train={write_images(root / 'images', each=4)}", f"output={root}/out"]


def planned(settings, *more):
    return steps.plan(configuration.load(ROOT / "conf" / "smoke.yaml", [*settings, *more]))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_a_script_a_maker_and_needs_earlier_steps_alone(name):
    step = STEPS[name]
    script = ROOT / step.script
    assert step.name == name and 'if __name__ == "__main__":' in script.read_text()
    module = step.maker.partition(":")[0]
    assert ROOT / f"{module.replace('.', '/')}.py" == script  # the file that runs a step also holds its maker
    order = list(STEPS)
    assert set(step.needs) <= set(order[: order.index(name)])
    folders = inspect.signature(step.load_maker()).parameters
    assert len(folders) == 1 + len(step.needs) + 1  # the configuration, the inputs, the output


def test_a_plan_holds_the_steps_in_their_order_and_each_reads_those_it_needs(settings):
    whole = planned(settings, "distill.steps=4")
    assert list(whole) == list(STEPS)
    for name in STEPS:
        assert [artifact.step for artifact in steps.inputs(name, whole)] == list(STEPS[name].needs)
    shorter = planned(settings)
    assert list(shorter) == [name for name in STEPS if name != "distilled"]
    assert steps.inputs("evaluation", shorter) == [shorter["generators"]]


def test_a_step_that_the_configuration_leaves_out_is_refused(settings):
    assert steps.planned("tokens", planned(settings)).step == "tokens"
    with pytest.raises(ConfigError, match="distill.steps=0: there is no such step"):
        steps.planned("distilled", planned(settings))


def test_an_evaluation_says_before_it_starts_what_it_lacks(settings):
    config = configuration.load(ROOT / "conf" / "smoke.yaml", [*settings, "evaluate.reference=/nowhere.npz"])
    for name in ("tokenizer", "tokens", "generators", "distilled"):
        STEPS[name].check(config)
    with pytest.raises(ConfigError, match="evaluate.reference=/nowhere.npz: no such file"):
        STEPS["evaluation"].check(config)


def test_every_step_but_the_evaluation_can_be_verified():
    assert [*verify.CHECKED, "evaluation"] == list(STEPS)


def test_on_a_cluster_relative_paths_are_those_of_the_driver(settings, tmp_path, monkeypatch):
    from nvg.artifacts.models import ASSETS, sampler_folder, whole_name
    from pipelines.command_line import placed

    monkeypatch.chdir(tmp_path)
    relative = ["output=out", "tracking.uri=sqlite:///a.db", "tracking.artifacts=files"]
    config = configuration.load(ROOT / "conf" / "smoke.yaml", [*settings, *relative])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert placed(config) == config
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    there = placed(config)
    assert (there.output, there.tracking.uri) == (f"{tmp_path}/out", f"sqlite:///{tmp_path}/a.db")
    assert there.tracking.artifacts == f"{tmp_path}/files"
    (tmp_path / "model").mkdir()
    assert whole_name("model") == sampler_folder("model") == f"{tmp_path}/model"
    for name in ("fashion-mnist", "s3://bucket/model", "models:/nvg@champion"):
        assert whole_name(name) == name
    assert sampler_folder("fashion-mnist") == str(ASSETS / "fashion-mnist")


def test_a_reference_that_is_replaced_is_evaluated_anew(settings, tmp_path):
    import numpy as np

    path = tmp_path / "reference.npz"
    asked = f"evaluate.reference={path}"
    missing = planned(settings, asked)
    made = []
    for value in (0, 1, 0):
        np.savez(path, arr_0=np.full((4, 16, 16, 3), value, np.uint8))  # of one size
        made.append(planned(settings, asked))
    assert made[0] == made[2] != made[1]
    assert {step for step in made[0] if made[0][step] != made[1][step]} == {"evaluation"}
    path.write_bytes(b"no npz")
    assert planned(settings, asked) == missing  # the evaluation's check says what is wrong


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("tokenizer_train.lpips_weights", "tokenizer"),
        ("tokenizer_train.discriminator_weights", "tokenizer"),
        ("repa.weights", "tokens"),
        ("evaluate.inception_weights", "evaluation"),
        ("evaluate.dinov2_weights", "evaluation"),
    ],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_weights_that_are_replaced_change_what_is_made_with_them(settings, tmp_path, setting, first, is_folder):
    asked = f"{setting}={tmp_path}/weights"
    path = tmp_path / "weights" / "model.safetensors" if is_folder else tmp_path / "weights"
    path.parent.mkdir(exist_ok=True)
    made = []
    for value in (b"0", b"1", b"0"):
        path.write_bytes(value * 200_000)  # of one size
        made.append(planned(settings, asked, *(["repa.block=1"] if first == "tokens" else [])))
    assert made[0] == made[2]
    changed = {step for step in made[0] if made[0][step] != made[1][step]}
    steps = list(made[0])
    assert changed == set(steps[steps.index(first) :])


def test_a_sampler_is_evaluated_anew_on_other_images(tmp_path):
    from nvg.artifacts.models import sampler_folder
    from pipelines.evaluate import evaluation_of

    found = []
    for each in (2, 3, 2):
        for split in ("train", "test"):
            shutil.rmtree(tmp_path / split, ignore_errors=True)
            write_images(tmp_path / split, each=each if split == "test" else 4)
        config = configuration.load(
            ROOT / "conf" / "smoke.yaml", [f"data.train={tmp_path}/train", f"data.test={tmp_path}/test"]
        )
        found.append(evaluation_of(config, sampler_folder("fashion-mnist")))
    assert found[0] == found[2] != found[1]
    shutil.rmtree(tmp_path / "train")  # of an evaluation that needs no images
    evaluation_of(config, sampler_folder("fashion-mnist"))


def test_a_listing_of_weights_reads_little_of_them(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(10_000_000))
    read = []
    opened = storage.open

    @contextlib.contextmanager
    def counting(name):
        with opened(name) as file:
            inner = file.read
            yield SimpleNamespace(seek=file.seek, read=lambda size: read.append(size) or inner(size))

    monkeypatch.setattr(storage, "open", counting)
    storage.sample(str(path))
    assert sum(read) == 16 * 4096


@pytest.mark.parametrize("vary", [["train.lr=1e-4", "train.lr=0.0001"], ["cluster.encoders=1", "cluster.encoders=2"]])
def test_a_sweep_refuses_combinations_that_are_one_result(settings, vary):
    from pipelines.sweep import _check_different

    _check_different({item: planned(settings, item) for item in ("train.lr=1", "train.lr=2")})
    with pytest.raises(ConfigError, match=f"--vary: '{vary[0]}' and '{vary[1]}' make the same artifacts"):
        _check_different({item: planned(settings, item) for item in vary})
