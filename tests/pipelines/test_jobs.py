"""What a job says and does before it needs a Ray: what is complete, what is missing, what is wrong."""

import importlib
import re
from pathlib import Path

import pytest

from nvg import config as configuration
from nvg import storage
from nvg.artifacts.lease import lease
from nvg.errors import ConfigError, DataError, StorageError
from pipelines import run, sweep
from pipelines.command_line import one_line_errors
from pipelines.steps import STEPS, inputs, plan
from tests.support.synthetic import write_images

SMOKE = Path(__file__).parents[2] / "conf" / "smoke.yaml"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("jobs") / "images", each=4)


@pytest.fixture
def arguments(images, tmp_path):
    """A command line with every step, on an empty output."""
    return ["--config", str(SMOKE), f"data.train={images}", f"output={tmp_path}", "distill.steps=4"]


def artifacts(arguments):
    return plan(configuration.load(arguments[1], arguments[2:]))


def job(step):
    """The `main` of the file that runs a step."""
    return importlib.import_module(STEPS[step].script.removesuffix(".py").replace("/", ".")).main


def finish(artifact):
    """Make an artifact complete, as a job's last write does."""
    storage.write_json(storage.join(artifact.folder, "metadata.json"), {})
    if artifact.step == "evaluation":
        measured = {"figures": {"recall": 0.5}, "intervals": {"recall": [0.4, 0.6]}, "protocol": {"network": "a net"}}
        storage.write_json(storage.join(artifact.folder, "evaluation.json"), measured)


def finish_before(step, arguments):
    made = artifacts(arguments)
    for name in list(STEPS)[: list(STEPS).index(step)]:
        finish(made[name])


@pytest.mark.parametrize("step", STEPS)
def test_a_complete_step_is_not_made_again(step, arguments, capsys):
    artifact = artifacts(arguments)[step]
    finish(artifact)
    job(step)(arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning: ")]
    assert lines[0] == f"{step}: complete, nothing to do ({artifact.folder})"
    if step == "evaluation":  # says what was measured
        head, figure, *_, path = lines[2:]
        assert head.endswith("meaning, by a net") and path == f"{artifact.folder}/evaluation.json"
        assert re.fullmatch(r"recall +0\.5  0\.4 \.\.\. 0\.6 +share of real images .*", figure)
    else:
        assert lines[1:] == []


@pytest.mark.parametrize("step", [name for name, step in STEPS.items() if step.needs])
def test_a_missing_input_is_named_with_the_command_that_makes_it(step, arguments):
    made = artifacts(arguments)
    for missing in inputs(step, made):
        with pytest.raises(SystemExit) as stop:
            job(step)(arguments)
        message = str(stop.value)
        assert message.startswith(f"error: this job needs the result of step {missing.step}, and {missing.folder} is")
        assert message.endswith(f"Make it with: python {STEPS[missing.step].script} {' '.join(arguments)}")
        finish(missing)


def test_a_job_says_what_its_step_lacks_before_it_starts_a_ray(arguments):
    finish_before("evaluation", arguments)
    with pytest.raises(SystemExit, match="^error: evaluate.reference=/nowhere.npz: no such file"):
        job("evaluation")([*arguments, "evaluate.reference=/nowhere.npz"])
    with pytest.raises(SystemExit, match="^error: distill.steps=0: there is no such step"):
        job("distilled")([*arguments, "distill.steps=0"])


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_another_job_makes_is_left_to_it(step, arguments):
    finish_before(step, arguments)
    with (
        lease(artifacts(arguments)[step].folder),
        pytest.raises(SystemExit, match=f"^error: .*{step}-.* is being made by another job"),
    ):
        job(step)(arguments)


@pytest.mark.parametrize("main", [*map(job, STEPS), run.main], ids=[*STEPS, "run"])
def test_a_configuration_that_cannot_be_used_ends_a_job_with_one_line(main, arguments):
    for wrong, message in ((["train.lrr=1"], "error: .*unknown key"), (["data.train=/nowhere"], "error: .*/nowhere")):
        with pytest.raises(SystemExit, match=message) as stop:
            main([*arguments, *wrong])
        assert "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match="error: no configuration file at /no.yaml"):
        main(["--config", "/no.yaml"])


def test_a_plan_names_what_is_to_do_and_what_a_forced_step_takes_along(arguments, capsys):
    finish_before("generators", arguments)

    def todo(*more):
        run.main([*arguments, "--dry-run", *more])
        return [line.split()[0] for line in capsys.readouterr().out.splitlines() if " to do " in line]

    assert todo() == ["generators", "distilled", "evaluation"]
    assert todo("--until", "generators") == ["generators"]
    assert todo("--force", "tokens", "--until", "generators") == ["tokens", "generators"]
    with pytest.raises(SystemExit, match="error: distill.steps=0: there is no such step"):
        todo("distill.steps=0", "--force", "distilled")


def test_a_complete_pipeline_is_reported_and_nothing_is_run(arguments, capsys):
    made = artifacts(arguments)
    finish_before("evaluation", arguments)
    storage.write_json(storage.join(made["tokens"].folder, "timing.json"), {"seconds": 2.5})
    run.main([*arguments, "--until", "distilled"])
    lines = capsys.readouterr().out.splitlines()
    assert "every step is complete: nothing to do" in lines
    assert f"tokens{'2.5':>14}  {made['tokens'].folder}" in lines
    assert f"generators{'-':>10}  {made['generators'].folder}" in lines


def test_a_sweep_refuses_what_it_cannot_vary(arguments):
    for vary, message in (("train.lr", "write key=value,value"), ("train.lrr=1,2", "unknown key")):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            sweep.main([*arguments, "--vary", vary, "--"])


@pytest.mark.parametrize("error", [ConfigError, DataError, StorageError, FileNotFoundError])
def test_an_error_that_a_person_can_mend_ends_a_command_with_one_line(error):
    with pytest.raises(SystemExit, match="^error: the reason$"), one_line_errors():
        raise error("the reason")


def test_other_errors_keep_their_traceback_unless_a_command_names_them():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
    with pytest.raises(SystemExit, match="^error: the reason$"), one_line_errors(ZeroDivisionError):
        raise ZeroDivisionError("the reason")


def test_a_sweeps_table_says_which_end_is_good_and_begins_with_the_best():
    shares = {"accuracy_on_samples": 0.5, "precision": 0.5, "recall": 0.5}
    text = sweep.table({"seed=0": {"frechet_distance": 2.0} | shares, "seed=1": {"frechet_distance": 1.0} | shares})
    first, _, head, best, worst = text.splitlines()
    assert first == "The best come first: a lower frechet_distance is better, of the others a higher value."
    assert head.split()[0] == "frechet_distance" and best.split()[:2] == ["seed=1", "1.0000"]
    assert worst.startswith("seed=0")


@pytest.mark.parametrize("name", ["run", "sweep", "serve", "evaluate", "verify", "push"])
def test_help_ends_with_commands_to_try(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"pipelines.{name}").main(["--help"])
    _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert examples and all(line.startswith(f"    nvg {name} ") for line in examples.splitlines())
