"""The table of steps: what it says is there, and a plan follows it."""

import inspect
from pathlib import Path

import pytest

from nvg import config as configuration
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
