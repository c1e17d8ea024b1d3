"""Checkpoints that are written while the training goes on: what is written, who waits for whom, what an error ends."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nvg import storage
from nvg.errors import DiskFull
from nvg.training import checkpoint
from nvg.training.checkpoint import latest_checkpoint, list_checkpoints, save_checkpoint
from nvg.training.loop import Place, train
from nvg.training.saver import Saver
from tests.support.recorders import Recorder, SilentBar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config
from tests.support.waiting import in_thread


def tensors(value):
    return {"model": {"weight": torch.full((3, 2), value), "count": torch.tensor(int(value))}}


class Gate:
    """A writer that begins, waits until it is let go, and keeps what it was given."""

    def __init__(self):
        self.started, self.open, self.found = threading.Event(), threading.Event(), []

    def __call__(self, sets):
        self.started.set()
        assert self.open.wait(60)
        self.found.append({key: value.clone() for key, value in sets["model"].items()})


def test_the_training_goes_on_while_it_is_written_and_what_it_changes_is_not_in_it():
    gate, live = Gate(), tensors(1.0)
    with Saver() as saver:
        saver.save(live, gate)  # returns before it is written
        assert gate.started.wait(60) and not gate.found
        for value in live["model"].values():
            value.fill_(9)
        gate.open.set()
    assert torch.equal(gate.found[0]["weight"], torch.ones(3, 2)) and int(gate.found[0]["count"]) == 1


def test_the_next_one_waits_for_the_one_before_and_takes_its_memory():
    gate, addresses = Gate(), []
    with Saver() as saver:
        saver.save(tensors(1.0), gate)
        finish = in_thread(lambda: saver.save(tensors(2.0), lambda sets: addresses.append(pointers(sets))))
        assert gate.started.wait(60)
        assert not addresses
        gate.open.set()
        finish()
        saver.save(tensors(3.0), lambda sets: addresses.append(pointers(sets)))
    assert torch.equal(gate.found[0]["weight"], torch.ones(3, 2))  # not the second one's
    assert addresses[0] == addresses[1] and len(set(addresses[0])) == 2


def pointers(sets):
    return [value.data_ptr() for value in sets["model"].values()]


@pytest.mark.parametrize("before", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float64)])
def test_a_tensor_that_has_changed_its_shape_or_type_gets_new_memory(before):
    found = []
    with Saver() as saver:
        saver.save({"model": {"weight": before}}, lambda sets: None)
        saver.save(tensors(2.0), lambda sets: found.append(sets["model"]["weight"].clone()))
    assert torch.equal(found[0], torch.full((3, 2), 2.0))


@pytest.mark.parametrize("way", ["wait", "save", "end"])
def test_an_error_of_writing_is_raised_once(way):
    def fail(sets):
        raise DiskFull("no space")

    saver = Saver()
    saver.save(tensors(1.0), fail)
    with pytest.raises(DiskFull, match="no space"):  # noqa: PT012
        if way == "wait":
            saver.wait()
        elif way == "save":
            saver.save(tensors(2.0), fail)
        else:
            with saver:
                pass
    assert not saver.failed
    saver.wait()


def test_the_error_of_the_training_comes_before_the_one_of_writing():
    def fail(sets):
        raise DiskFull("no space")

    with pytest.raises(InterruptedError), Saver() as saver:
        saver.save(tensors(1.0), fail)
        raise InterruptedError


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_copies_before_it_changes_a_weight():
    gate, weight = Gate(), torch.ones(2**24, device="cuda")
    with Saver() as saver:
        saver.save({"model": {"weight": weight}}, gate)
        weight.fill_(9.0)
        gate.open.set()
    assert gate.found[0]["weight"].is_pinned() is False  # a clone of the page-locked copy
    assert bool((gate.found[0]["weight"] == 1).all())


# ---- in a training ----


@contextmanager
def writing(monkeypatch, around):
    """around(url) is called in the midst of writing each checkpoint."""
    inner = storage.folder_writer

    @contextmanager
    def writer(url):
        with inner(url) as folder:
            yield folder
            around(url)

    monkeypatch.setattr(checkpoint.storage, "folder_writer", writer)
    yield


def run(task, folder, **changes):
    reports, recorder = [], Recorder(None)

    def report(metrics):
        newest = latest_checkpoint(str(folder))
        reports.append((metrics["step"], newest and checkpoint.checkpoint_step(newest)))

    try:
        train(
            task,
            toy_settings(**changes),
            toy_config(),
            str(folder),
            place=Place(report=report, bar=SilentBar),
            start_tracking=lambda _: recorder,
        )
    finally:
        run.status = recorder.status
    return reports


def assert_as_unbroken(folder, tmp_path, resumed_from):
    unbroken, task = ToyTask(), ToyTask()
    run(unbroken, tmp_path / "unbroken")
    figures = train(task, toy_settings(), toy_config(), str(folder), place=Place(bar=SilentBar))
    assert figures["resumed_from"] == resumed_from
    for name, value in unbroken.state().items():
        assert torch.equal(task.state()[name], value), name


def test_a_checkpoint_is_reported_when_it_is_written(monkeypatch, tmp_path):
    slow = threading.Event()
    with writing(monkeypatch, lambda url: slow.wait(0.3)):
        reports = run(ToyTask(), tmp_path)
    assert reports == [(4, 4), (8, 8), (12, 12)]


def test_the_training_s_own_thread_writes_nothing(monkeypatch, tmp_path):
    threads = {}
    for module, name in ((checkpoint, "write_safetensors"), (checkpoint, "checksum"), (storage, "remove")):
        function = getattr(module, name)

        def recorded(*arguments, function=function, name=name):
            threads.setdefault(name, set()).add(threading.current_thread().name.rpartition("_")[0])
            return function(*arguments)

        monkeypatch.setattr(module, name, recorded)
    run(ToyTask(), tmp_path)
    assert threads == dict.fromkeys(("write_safetensors", "checksum", "remove"), {"checkpoint"})


@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_checkpoint_that_cannot_be_written_ends_the_training_and_leaves_the_one_before(monkeypatch, tmp_path, step):
    def full(url):
        if url.endswith(f"step-{step:08d}"):
            raise OSError(28, "No space left on device")

    folder = tmp_path / "broken"
    with (
        monkeypatch.context() as patch,
        writing(patch, full),
        pytest.raises(DiskFull, match=f"no space left to write {folder}/step-{step:08d}"),
    ):
        run(ToyTask(), folder)
    assert run.status == "FAILED"
    assert [checkpoint.checkpoint_step(path) for path in list_checkpoints(str(folder))] == [*range(4, step, 4)]
    assert not list(folder.glob(".*"))  # nothing half written
    assert_as_unbroken(folder, tmp_path, step - 4)


def test_the_training_ends_at_once_and_not_at_the_next_checkpoint(monkeypatch, tmp_path):
    def full(url):
        raise DiskFull(f"no space left to write {url}")

    class Slow(ToyTask):
        def after_step(self, step, rng):
            steps.append(step)
            time.sleep(0.02 if step >= 10 else 0.0)
            return {}

    steps = []
    with writing(monkeypatch, full), pytest.raises(DiskFull):
        run(Slow(), tmp_path, total_steps=1000, checkpoint_every=10)
    assert 9 <= steps[-1] < 20  # the tenth step, after which it is written, or one of the next


@pytest.mark.parametrize("what", ["loss", "data"])
def test_a_training_that_ends_early_lets_the_checkpoint_in_hand_finish(monkeypatch, tmp_path, what):
    """A diverged one removes it afterwards where it is later than the last good record, which is at step 3 here."""

    class Exploding(ToyTask):
        def loss(self, batch, step, rng):
            loss, terms = super().loss(batch, step, rng)
            return loss * (1e3 if what == "loss" and step >= 3 else 1.0), terms

    slow = threading.Event()
    task = Exploding(stop_at=5 if what == "data" else None)
    with writing(monkeypatch, lambda url: slow.wait(0.3)), pytest.raises(Exception, match=r"exploded|killed|stopped"):
        run(task, tmp_path)
    left = [checkpoint.checkpoint_step(path) for path in list_checkpoints(str(tmp_path))]
    assert left == ([4] if what == "data" else []) and not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys, time
from nvg import storage
from nvg.training import checkpoint
from tests.training import test_saver
from tests.support.toy import ToyTask

started = []

class Killed(ToyTask):
    def after_step(self, step, rng):
        while step == 9 and not started:
            time.sleep(0.01)
        if started:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

def around(url):
    if url.endswith("step-00000008"):
        started.append(url)
        time.sleep(600)

class Patch:
    def setattr(self, module, name, value):
        setattr(module, name, value)

with test_saver.writing(Patch(), around):
    test_saver.run(Killed(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path):
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=environment, timeout=300, check=False)
    assert ended.returncode == -9
    assert list(folder.glob(".*.tmp"))  # half a checkpoint
    assert_as_unbroken(folder, tmp_path, 4)
    assert not list(folder.glob(".*.tmp"))  # the next writer of this path has removed it


def test_a_checkpoint_without_a_training_is_written_when_the_saver_ends(tmp_path):
    task = ToyTask()
    parts = {"modules": task.modules, "averages": task.averages, "optimizers": task.optimizers}
    with Saver() as saver:
        url = save_checkpoint(saver, str(tmp_path), 1, **parts, config=toy_config(), metadata={"identity": "toy"})
    assert checkpoint.checked_metadata(url)["step"] == 1
