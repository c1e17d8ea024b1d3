"""The whole pipeline on a real Ray: every step, its artifacts, what is skipped, and what is put into quarantine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import nvg
from nvg import config as configuration
from nvg import storage, tracking
from nvg.artifacts.lease import lease
from nvg.artifacts.models import load_tokenizer
from nvg.data import image_batches, open_source, token_batches
from nvg.data.images import to_float
from nvg.data.stream import read_view
from nvg.data.tokens import part_files, read_part, to_arrays
from nvg.errors import DataError
from nvg.evaluation.meaning import MEANINGS
from nvg.evaluation.work import cut_pixels
from nvg.training import jobs
from nvg.training.loop import Place
from pipelines import run, sweep
from pipelines.steps import plan
from tests.support.pictures import encode, pixels
from tests.support.smoke import SMOKE
from tests.support.synthetic import write_images

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores

EACH = 20  # images a class


@pytest.fixture(scope="module")
def arguments(ray_cluster, tmp_path_factory):
    """A command line of run.py on drawn images, one of which is broken, and on its own output."""
    root = tmp_path_factory.mktemp("pipeline")
    write_images(root / "images", each=EACH)
    (root / "images" / "disc" / "broken.png").write_bytes(encode(pixels(0))[:100])
    return [
        "--config",
        str(SMOKE),
        f"output={root}/out",
        f"data.train={root}/images",
        "data.views=2",
        "tokenizer_train.steps=8",
        "train.steps=8",
        "train.evaluate_every=4",
        "train.evaluate_samples=6",
    ]


@pytest.fixture(scope="module")
def output(ray_cluster, arguments):
    """All that a whole run shows, as a person starts it."""
    environment = os.environ | {"RAY_ADDRESS": ray_cluster.address}
    command = [sys.executable, "pipelines/run.py", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    shown = subprocess.run(command, cwd=SMOKE.parents[1], env=environment, text=True, **streams)
    assert shown.returncode == 0, shown.stdout
    return shown.stdout


@pytest.fixture(scope="module")
def done(output, arguments):
    """The artifacts of a whole run."""
    return plan(config(arguments))


def measured(sampler, label, seed):
    """A sample as an evaluation has it: cut down to whole numbers, not rounded as it is shown."""
    *_, last = sampler.stages([label], seed=seed)
    return cut_pixels(last.tokenizer.decode_canvas(last.canvas)).numpy()


def config(arguments):
    return configuration.load(arguments[1], arguments[2:])


def test_the_plan_is_printed_and_nothing_is_run(arguments, capsys, tmp_path):
    elsewhere = [*arguments, f"output={tmp_path}/never"]
    run.main([*elsewhere, "--dry-run", "--until", "tokens"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tokenizer", "tokens"] and all("to do" in line for line in lines)
    assert not (tmp_path / "never").exists()


KINDS = {  # of lines that a run shows
    "the plan": r"(tokenizer|tokens|generators|evaluation) +to do +/.*",
    "where it runs": r"Ray on [\w.:]+: 2 CPUs(, dashboard at .*)?",
    "a step begins": r"(tokenizer|tokens|generators|evaluation): [a-z ]+",
    "how far it is": r"\w+(  loss [\d.]+(, \S+ [GT]FLOP/s)?)?: [\d,]+ of [\d,]+ \w+s( \(\d+%\), .* a second, .* left)?",
    "what it made": r"train_\w+: 8 steps in .* images/s, .*|tokens: 60 images x 2 views in .*|evaluation: Fréchet .*",
    "where it stands": r"tokens: 0 units are there, \d+ to make",
    "a step ends": r"(tokenizer|tokens|generators|evaluation): done in [\d.]+ (s|min)",
    "memory": r"peak memory of this machine while it ran: .* GB above the start",
    "the steps": r"(step|tokenizer|tokens|generators|evaluation) +(seconds|[\d.]+)  .*",
    "the head of the figures": r"figure +value .*",
    "a figure": rf"(samples|reconstruction_images|{'|'.join(MEANINGS)}) +[\d.]+.*",
    "files": r"/.*\.(png|npz|json)",
    "tracking": r"compare runs:  mlflow ui --backend-store-uri .*",
    "nothing": r"",
}


def test_every_line_of_a_runs_output_is_of_a_kind_that_its_reader_needs(output):
    kinds = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
    of = {line: [kind for kind, pattern in kinds.items() if pattern.fullmatch(line)] for line in output.splitlines()}
    assert not [line for line, found in of.items() if not found], output
    for kind in ("the plan", "where it runs", "a step begins", "how far it is", "what it made", "a step ends", "files"):
        assert any(kind in found for found in of.values()), kind


def test_a_run_makes_every_artifact_and_a_sampler_that_loads(done, arguments):
    for artifact in done.values():
        assert artifact.complete and storage.exists(storage.join(artifact.folder, "timing.json"))
    for step in ("tokenizer", "generators"):  # what is on record is the configuration, not where this machine tracks
        assert configuration.read(f"{done[step].folder}/config.yaml")["tracking"]["uri"] is None
    evaluation = storage.read_json(storage.join(done["evaluation"].folder, "evaluation.json"))
    figures = evaluation["figures"]
    assert figures["samples"] == 12 and 0 <= figures["accuracy_on_samples"] <= 1
    assert figures["reconstruction_images"] == "12 train images" and figures["reconstruction_mse"] > 0
    for name in ("frechet_distance", "precision", "recall", "inception_score", "reconstruction_frechet_distance"):
        low, high = evaluation["intervals"][name]
        assert low <= figures[name] <= high, name
    assert evaluation["protocol"]["reference"] == "60 train images"  # no held-out images are configured, and it says so
    assert evaluation == storage.read_json(storage.join(done["generators"].folder, "evaluation.json"))
    for name in ("samples.png", "stages.png", "reconstruction.png"):
        assert storage.read_bytes(storage.join(done["evaluation"].folder, name))[:4] == b"\x89PNG"
    sampler = nvg.load(done["generators"].folder)
    assert sampler.generate(["disc", 2], seed=1).shape == (2, 16, 16, 3)
    # Image j of the file has class j mod classes and seed evaluate.seed + j, whoever drew it.
    samples = np.load(f"{done['evaluation'].folder}/samples.npz")["arr_0"]
    assert samples.shape == (12, 16, 16, 3) and np.array_equal(samples[7:8], measured(sampler, 1, 7))


def test_a_training_is_evaluated_while_it_goes_on(done, arguments):
    """Figures are curves of the training's own run; the last step's are the evaluation's."""
    from mlflow import MlflowClient

    folder = Path(done["generators"].folder)
    client = MlflowClient(tracking.tracking_uri(config(arguments)))
    run_id = storage.read_json(f"{folder}/metadata.json")["run_id"]
    for name in ("frechet_distance", "accuracy_on_samples", "precision", "recall"):
        (point,) = client.get_metric_history(run_id, f"evaluation/{name}")
        assert point.step == 4 and point.value >= 0, name
    assert not (folder / "snapshots").exists() and not (folder / "ray_train").exists()


def test_the_tokenizer_step_leaves_a_tokenizer_and_no_checkpoints(done):
    folder = Path(done["tokenizer"].folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"tokenizer.safetensors", "config.yaml", "metadata.json", "mlflow_run.json", "timing.json"}
    metadata = storage.read_json(f"{folder}/metadata.json")
    assert metadata["class_names"] == ["disc", "square", "stripes"] and metadata["images"] == 3 * EACH + 1
    assert metadata["training"]["steps"] == 8 and load_tokenizer(str(folder)).config.image_size == 16


def test_a_broken_image_is_in_quarantine_with_its_reason_and_counted(done):
    about = storage.read_json(storage.join(done["tokens"].folder, "metadata.json"))
    assert (about["images"], about["rows"], about["quarantined"]) == (3 * EACH, 6 * EACH, 1)
    (row,) = pq.read_table(f"{done['tokens'].folder}/quarantine.parquet").to_pylist()
    assert row["image_id"] == "disc/broken.png" and row["path"].endswith("disc/broken.png") and row["reason"]


def test_a_second_run_does_nothing_and_says_so(done, arguments, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path(config(arguments).output).rglob("*.safetensors")}
    run.main(arguments)
    assert "every step is complete: nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_artifact_without_its_metadata_is_to_do(done, arguments, capsys):
    """As an interrupted job leaves it; tests/cluster/test_build_tokens.py has one go on to the same bytes."""
    metadata = Path(done["tokens"].folder) / "metadata.json"
    metadata.rename(metadata.with_name("hidden"))
    run.main([*arguments, "--dry-run", "--until", "tokens"])
    metadata.with_name("hidden").rename(metadata)
    tokenizer, tokens = capsys.readouterr().out.splitlines()
    assert "complete, skipped" in tokenizer and "to do" in tokens


def test_a_job_on_an_artifact_that_another_one_makes_refuses(done, arguments, tmp_path):
    new = [*arguments, f"output={tmp_path}"]
    refusal = f"tokens-.* is being made by another job \\(process {os.getpid()} on "
    with lease(plan(config(new))["tokens"].folder), pytest.raises(SystemExit, match=refusal):
        run.main(new)
    assert not list(tmp_path.glob("*/")) and not list(tmp_path.glob("*.lease"))


def test_a_sweep_runs_what_combinations_do_not_share_below_one_parent(done, arguments, capsys):
    from mlflow import MlflowClient

    asked = [*arguments, "--vary", "sampler.flow_steps=2,1", "--"]
    for _ in range(2):  # the second one finds everything, its runs too
        sweep.main(asked)
        *_, head, one, other, _, last = capsys.readouterr().out.strip().splitlines()
        assert last.startswith("compare runs:  mlflow ui --backend-store-uri sqlite:///")
        assert head.split()[0] == "frechet_distance"
        figures = {name: float(distance) for name, distance, *_ in (one.split(), other.split())}
        assert figures.keys() == {"sampler.flow_steps=2", "sampler.flow_steps=1"}
        assert list(figures.values()) == sorted(figures.values())
    settings = config(arguments)
    client = MlflowClient(tracking.tracking_uri(settings))
    experiment = client.get_experiment_by_name(settings.name).experiment_id

    def below(run_id):
        found = client.search_runs([experiment], f"tags.`{tracking.PARENT}` = '{run_id}'")
        assert all(run.info.status == "FINISHED" for run in found)
        return {run.info.run_name: run for run in found}

    (parent,) = client.search_runs([experiment], "tags.job = 'sweep'")
    children = below(parent.info.run_id)
    assert children.keys() == figures.keys()
    for name, run_ in children.items():
        assert run_.data.metrics["frechet_distance"] == pytest.approx(figures[name], abs=1e-4)
        assert name == f"sampler.flow_steps={run_.data.params['sampler.flow_steps']}"
    shared, own = (below(children[f"sampler.flow_steps={steps}"].info.run_id) for steps in (2, 1))
    assert not shared and own.keys() == {"evaluate"}  # two steps were there already


@pytest.mark.parametrize("vary", ["train.steps", "train.steps=", "train.steps=[1"])
def test_a_sweep_without_values_says_how_they_are_written(arguments, vary, capsys):
    with pytest.raises(SystemExit, match="write key=value,value"):
        sweep.main([*arguments, "--vary", vary, "--"])


def test_a_changed_setting_redoes_its_step_and_those_after_it(done, arguments):
    def folders(*overrides):
        return [artifact.folder for artifact in plan(config([*arguments, *overrides])).values()]

    base = folders()
    for overrides, kept in (
        (["tokenizer_train.lr=1e-3"], 0),
        (["data.views=3"], 1),
        (["train.lr=1e-3"], 2),
        (["sampler.flow_steps=3"], 3),
        (["cluster.num_workers=2", "tracking.log_every=1", "train.preview_every=5"], 4),
    ):
        assert [a == b for a, b in zip(base, folders(*overrides), strict=True)] == [i < kept for i in range(4)], (
            overrides
        )


def test_generators_are_distilled_between_training_and_evaluation(done, arguments, capsys):
    few = [*arguments, "distill.steps=4", "distill.batch_size=8"]
    run.main(few)
    artifacts = plan(config(few))
    assert list(artifacts) == ["tokenizer", "tokens", "generators", "distilled", "evaluation"]
    others = plan(config([*few, "distill.parts=[content]"]))  # another result, and so another folder
    assert others["distilled"].folder != artifacts["distilled"].folder
    assert others["generators"] == artifacts["generators"]
    for step in ("tokenizer", "tokens", "generators"):
        assert artifacts[step].folder == done[step].folder
    assert artifacts["evaluation"].folder != done["evaluation"].folder
    folder = artifacts["distilled"].folder
    sampler, teacher = nvg.load(folder), nvg.load(done["generators"].folder)
    assert sampler.structure.config.few_step and sampler.settings.flow_steps == 1
    for name, value in teacher.content.state_dict().items():
        assert torch.equal(value, sampler.content.state_dict()[name])
    figures = storage.read_json(storage.join(folder, "evaluation.json"))["figures"]
    assert figures["samples"] == 12
    samples = np.load(f"{artifacts['evaluation'].folder}/samples.npz")["arr_0"]
    assert np.array_equal(samples[7:8], measured(sampler, 1, 7))  # drawn with the one step, not the two
    assert not storage.exists(storage.join(folder, "checkpoints"))
    from pipelines import distill

    capsys.readouterr()
    distill.main(few)
    assert "distilled: complete, nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="distill.steps=0: there is no such step; say how many"):
        distill.main(arguments)
    with pytest.raises(SystemExit, match="distill.steps=0: there is no such step"):
        run.main([*arguments, "--until", "distilled"])
    with pytest.raises(SystemExit, match="set distill.steps"):
        run.main([*arguments, "structure.few_step=true"])


def test_a_sampler_that_is_there_is_distilled_without_training_it(done, arguments, tmp_path, capsys):
    """Planned here, and distilled in this process: the test before this one distills on Ray."""
    teacher = done["generators"].folder
    new = [*arguments, f"output={tmp_path}", f"distill.teacher={teacher}", "distill.steps=4", "distill.batch_size=8"]
    new += ["distill.parts=[content]"]
    artifacts = plan(config(new))
    # The tokens of the teacher's tokenizer, which are there, stand where the plan looks for them.
    shutil.copytree(done["tokens"].folder, artifacts["tokens"].folder)
    run.main([*new, "--dry-run", "--until", "distilled", "--force", "tokenizer"])  # the teacher's is left alone
    states = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [step for step, state in states.items() if state.startswith("to do")] == ["tokens", "distilled"]
    folder = artifacts["distilled"].folder
    made_of = {"generators": artifacts["generators"].folder, "tokens": artifacts["tokens"].folder}
    jobs.distill_generators(config(new), Place(), **made_of, folder=folder)
    made = sorted(path.name.split("-")[0] for path in tmp_path.glob("*-*/"))
    assert made == ["distilled", "tokens"]
    sampler, whole = nvg.load(folder), nvg.load(teacher)
    assert sampler.content.config.guided and not sampler.structure.config.few_step
    for name, value in whole.structure.state_dict().items():
        assert torch.equal(value, sampler.structure.state_dict()[name])
    assert sampler.settings.flow_steps == whole.settings.flow_steps
    with pytest.raises(SystemExit, match="is itself distilled"):
        run.main([*new, "--until", "distilled", f"distill.teacher={folder}"])


def test_a_forced_step_is_done_again(done, arguments, capsys):
    run_id = storage.read_json(storage.join(done["evaluation"].folder, "metadata.json"))["run_id"]
    (reference,) = Path(config(arguments).output).glob("reference-*.safetensors")
    made = reference.stat().st_mtime_ns
    run.main([*arguments, "--force", "evaluation"])
    assert reference.stat().st_mtime_ns == made  # features of the real images are taken once
    assert storage.read_json(storage.join(done["evaluation"].folder, "metadata.json"))["run_id"] != run_id
    assert "classifier accuracy" not in capsys.readouterr().err


def test_any_sampler_is_evaluated_under_the_settings_of_another_file(done, arguments, tmp_path, capsys):
    """The published protocol in small: Inception-v3 (random weights), a reference batch with its own moments."""
    from safetensors.torch import save_file

    from nvg.frozen.inception import Inception
    from pipelines import evaluate

    torch.manual_seed(0)
    state = Inception().state_dict()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "inception.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", images, mu=np.zeros(2048), sigma=np.eye(2048))
    (tmp_path / "protocol.yaml").write_text(
        f"""
        output: {tmp_path}/out
        evaluate:
          samples_per_class: 2
          reference: {tmp_path}/reference.npz
          inception_weights: {tmp_path}/inception.safetensors
          train_distance: false
          reconstructions: 0
          bootstrap: 2
        sampler: {{flow_steps: 1}}
        cluster: {{cpus_per_worker: 1.0, cpus_per_reader: 0.5, threads_per_worker: 1}}
        """
    )
    (test,) = [item.removeprefix("data.train=") for item in arguments if item.startswith("data.train=")]
    command = ["--config", f"{tmp_path}/protocol.yaml", "--sampler", done["generators"].folder]
    command += ["--given", "other:1", f"data.test={test}"]
    evaluate.main(command)
    (folder,) = (tmp_path / "out").glob("evaluation-*")
    result = storage.read_json(f"{folder}/evaluation.json")
    assert result["protocol"]["samples"] == 6 and result["protocol"]["settings"]["flow_steps"] == 1
    assert result["protocol"]["network"].startswith("inception ") and result["protocol"]["reference_images"] == 8
    assert result["figures"]["frechet_distance"] > 0 and "accuracy_on_samples" not in result["figures"]
    assert not (folder / "reconstruction.png").exists()
    evaluate.main(command)
    assert "evaluation: complete, nothing to do" in capsys.readouterr().out
    assert result["protocol"]["given"] == "other:1"
    beside = storage.read_json(storage.join(done["generators"].folder, "evaluation.json"))
    assert beside["protocol"]["given"] is None  # what stands beside the sampler is of samples with nothing given
    with pytest.raises(SystemExit, match="evaluate.reference=.*none.npz: no such file"):
        evaluate.main([*command, f"evaluate.reference={tmp_path}/none.npz"])
    with pytest.raises(SystemExit, match="evaluate.inception_weights"):
        evaluate.main([*command, f"evaluate.inception_weights={tmp_path}/none.safetensors"])


def test_a_job_without_its_input_names_the_command_that_makes_it(arguments, tmp_path):
    from pipelines import build_tokens, evaluate, train

    elsewhere = [*arguments, f"output={tmp_path}"]
    for job, script in ((build_tokens, "train_tokenizer.py"), (train, "train_tokenizer.py"), (evaluate, "train.py")):
        with pytest.raises(SystemExit, match=f"Make it with: python pipelines/{script}"):
            job.main(elsewhere)


def test_a_submitted_job_refuses_a_relative_output(arguments, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit, match="output=runs/x is relative"):
        run.main([*arguments, "output=runs/x", "--dry-run"])
    run.main([*arguments, "--dry-run"])


def test_what_evaluation_lacks_is_told_before_the_training(arguments, tmp_path):
    (tmp_path / "images" / "only").mkdir(parents=True)
    (tmp_path / "images" / "only" / "a.png").write_bytes(encode(pixels(0)))
    one = [*arguments, f"data.train={tmp_path}/images", "data.num_classes=1", f"output={tmp_path}/out", "--dry-run"]
    with pytest.raises(SystemExit, match="data.num_classes=1: .*evaluate.inception_weights"):
        run.main(one)
    with pytest.raises(SystemExit, match="evaluate.reference=/nowhere.npz: no such file"):
        run.main([*arguments, "evaluate.reference=/nowhere.npz", "--dry-run"])
    run.main([*one, "--until", "generators"])
    with pytest.raises(SystemExit, match="error: .*nowhere"):  # one line, no traceback
        run.main([*arguments, "data.train=/nowhere", "--dry-run"])


def test_token_rows_are_what_the_tokenizer_makes_of_the_images(done, arguments):
    settings = config(arguments)
    tokenizer = nvg.load(done["generators"].folder).tokenizer
    source = open_source(settings.data, "train")
    for unit, view in ((0, 0), (1, 1)):
        table = read_part(part_files(done["tokens"].folder)[unit, view][0])
        images, ids, labels, _ = read_view(source, source.units[unit], settings.data, view, settings.seed)
        sequence = tokenizer.encode(to_float(images))
        arrays = to_arrays(table)
        assert table["image_id"].to_pylist() == ids and arrays["labels"].tolist() == labels
        assert set(table["view"].to_pylist()) == {view}
        assert np.array_equal(arrays["codes"], sequence.codes.numpy())
        assert np.array_equal(arrays["content"], sequence.flat_content().numpy())


def test_tokens_of_another_tokenizer_are_refused(done):
    path = part_files(done["tokens"].folder)[0, 0][0]
    with pytest.raises(DataError, match="not of abc"):
        read_part(path, "abc")


def batches(folder, **changes):
    settings = dict(epoch=0, batch_size=8, seed=0, shuffle_rows=16)
    return list(token_batches(folder, **(settings | changes)))


def test_workers_share_one_exact_order_of_tokens(done):
    folder = done["tokens"].folder
    whole = batches(folder)
    assert len(whole) == 3 * EACH // 8 and whole[0]["codes"].shape == (8, 16)
    halves = [batches(folder, rows=rows) for rows in (slice(0, 6), slice(6, 8))]  # shares may differ
    for one, first, second in zip(whole, *halves, strict=True):
        for name in one:
            assert torch.equal(one[name], torch.cat((first[name], second[name])))
    for late, full in zip(batches(folder, skip=3), whole[3:], strict=True):
        assert all(torch.equal(late[name], full[name]) for name in full)
    other = batches(folder, epoch=2)  # the same view in another order
    assert not torch.equal(other[0]["content"], whole[0]["content"])
    rows = [sorted(map(tuple, torch.cat([b["content"] for b in some]).tolist())) for some in (whole, other)]
    assert len(set(rows[0]) & set(rows[1])) > len(set(rows[0])) // 2


def test_workers_read_images_of_their_own_in_an_exact_order(done, arguments):
    settings = config(arguments)
    source = open_source(settings.data, "train")

    def take(count, **changes):
        options = dict(epoch=0, rank=0, world=1, batch_size=8, seed=0) | changes
        stream = image_batches(settings, source, **options)
        return [next(stream) for _ in range(count)]

    first, again = take(5), take(5)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a["images"], b["images"]) and torch.equal(a["labels"], b["labels"])
    assert torch.equal(take(2, skip=3)[0]["images"], first[3]["images"])
    assert not torch.equal(take(1, epoch=1)[0]["images"], first[0]["images"])
    two = [torch.cat([b["images"] for b in take(6, rank=rank, world=2, batch_size=4)]) for rank in range(2)]
    seen = [{image.numpy().tobytes() for image in images} for images in two]
    assert two[0].shape == (24, 16, 16, 3) and not seen[0] & seen[1]
