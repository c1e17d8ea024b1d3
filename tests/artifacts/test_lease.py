"""One job an artifact: who is refused, who takes over."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from nvg import storage
from nvg.artifacts import lease as leases
from nvg.artifacts.lease import lease
from nvg.errors import OutputBusy


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "tokens-1")
    else:
        yield f"memory://nvg-{tmp_path.name}/tokens-1"
        storage.remove(f"memory://nvg-{tmp_path.name}")


@pytest.fixture
def interruptible():
    """SIGINT as a terminal's programs have it: tests that a script put into the background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def holder(folder, before=""):
    """A process of its own that holds a lease until it is killed; `before` is run in it first."""
    code = f"with nvg.artifacts.lease.lease({folder!r}):\n print('held', flush=True); time.sleep(99)"
    code = f"import signal, time, nvg.artifacts.lease\n{before}\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def elsewhere(folder):
    """Write the lease of a job on another machine; returns a function that renews it."""
    own = {"id": "x", "machine": "other", "host": "node-7", "pid": 1, "born": 0.0, "since": "2026-11-25T08:00:00"}
    storage.write_json(f"{folder}.lease", own)
    return lambda beat: storage.write_json(f"{folder}.lease", own | {"beat": beat})


def test_a_second_job_refuses_and_names_the_first(folder):
    with lease(folder):
        own = storage.read_json(f"{folder}.lease")
        refusal = f"tokens-1 is being made by another job \\(process {own['pid']} on "
        with pytest.raises(OutputBusy, match=refusal), lease(folder):
            pass
        with lease(folder + "-b"):
            assert storage.exists(f"{folder}-b.lease")
        assert storage.read_json(f"{folder}.lease")["id"] == own["id"]
    assert not storage.exists(f"{folder}.lease") and not storage.exists(f"{folder}-b.lease")


def test_a_living_process_keeps_it_and_a_killed_ones_is_taken_over_at_once(tmp_path):
    folder = str(tmp_path / "tokens-1")
    process = holder(folder)
    try:
        with pytest.raises(OutputBusy, match=f"process {process.pid} on"), lease(folder):
            pass
    finally:
        process.kill()
        process.wait()
    assert storage.exists(f"{folder}.lease")
    start = time.monotonic()
    with lease(folder):
        assert storage.read_json(f"{folder}.lease")["pid"] != process.pid
    assert time.monotonic() - start < 5


def test_a_job_on_another_machine_is_watched_until_it_beats_or_is_silent(folder, monkeypatch, capsys):
    monkeypatch.setattr(leases, "SILENCE", 1.0)
    beat = elsewhere(folder)
    timer = threading.Timer(0.5, beat, [1])
    timer.start()
    with pytest.raises(OutputBusy, match="process 1 on node-7, since 2026-11-25"), lease(folder):
        pass
    timer.join()
    with lease(folder):  # no beat any more
        assert storage.read_json(f"{folder}.lease")["machine"] != "other"
    assert "does the job on node-7" in capsys.readouterr().out


def test_it_is_renewed_while_it_is_held_and_ends_a_job_that_lost_it(folder, interruptible, monkeypatch, capsys):
    monkeypatch.setattr(leases, "BEAT", 0.05)
    with lease(folder):
        end = time.monotonic() + 20
        while storage.read_json(f"{folder}.lease").get("beat", 0) < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not storage.exists(f"{folder}.lease")
    with pytest.raises(KeyboardInterrupt), lease(folder):
        elsewhere(folder)
        time.sleep(20)
    assert "was taken over by process 1 on node-7" in capsys.readouterr().err
    assert storage.read_json(f"{folder}.lease")["id"] == "x"  # the other job's is left alone


def test_a_job_in_the_background_of_a_script_ends_too_when_it_lost_its_lease(tmp_path):
    folder = str(tmp_path / "tokens-1")
    process = holder(folder, "signal.signal(signal.SIGINT, signal.SIG_IGN); nvg.artifacts.lease.BEAT = 0.05")
    elsewhere(folder)
    assert process.wait(20) == -signal.SIGTERM
    assert b"was taken over by process 1 on node-7" in process.stderr.read()


def test_a_lease_that_a_full_disk_cut_off_is_made_anew(tmp_path):
    folder = str(tmp_path / "tokens-1")
    (tmp_path / "tokens-1.lease").write_text(json.dumps({"id": "x"})[:5])
    with lease(folder):
        assert "pid" in storage.read_json(f"{folder}.lease")
