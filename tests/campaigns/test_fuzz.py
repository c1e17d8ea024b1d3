"""tests/campaigns/fuzz.py: some seconds of it, and that it sees what it is there to see."""

import os
import signal
import time

import numpy as np
import pytest

from tests.campaigns import fuzz
from tests.campaigns.fuzz import Target
from tests.support.threads import one_thread

__all__ = ["one_thread"]


@pytest.mark.slow
def test_no_reader_fails_otherwise_than_by_its_own_errors(tmp_path, one_thread):
    every = fuzz.targets(tmp_path / "targets")
    for name, target in every.items():
        refused = 0
        for data in target.seeds:
            try:
                target.run(data)
            except target.errors:
                refused += 1
        assert refused == (name in ("image", "upload", "drawing")), name  # one TIFF, of floating-point numbers
    counts = fuzz.fuzz(every, 1, tmp_path / "out", seed=11, turn=0.1, most=50)
    findings = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert findings == {} and all(count["executions"] for count in counts.values())


def kill(data):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(data):
    while True:
        pass


def hoard(data):
    np.ones(12 * 2**20)  # 96 MB


def fail(data):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "reason"), [(kill, "died: SIGSEGV"), (hang, "more than 1 s"), (hoard, "2 GB of memory"), (fail, "KeyError")]
)
def test_deaths_hangs_memory_and_foreign_errors_are_findings_with_their_bytes(tmp_path, monkeypatch, run, reason):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "MEMORY", 64 * 2**20)
    target = Target([b"seed"], run, (ValueError,))
    counts = fuzz.fuzz({"x": target}, 1, tmp_path, turn=5, most=3)
    assert counts["x"]["findings"] == 1
    (text,) = tmp_path.glob("x-*.txt")
    key, _, rest = text.read_text().partition("\n")
    assert reason in rest and text.with_suffix(".bin").read_bytes() == fuzz.make_input(target, key)


@pytest.mark.parametrize(("waits", "findings"), [(1, 0), (2, 1)])
def test_an_input_that_waits_is_a_finding_if_it_does_so_twice(tmp_path, monkeypatch, waits, findings):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def wait(data):
        tries = len(list(tmp_path.glob("try-*")))
        (tmp_path / f"try-{tries}").touch()
        if tries < waits:
            time.sleep(60)

    counts = fuzz.fuzz({"x": Target([b"seed"], wait, ())}, 1, tmp_path / "out", turn=0.1, most=1)
    assert counts == {"x": {"executions": 1, "findings": findings}}


def test_an_input_follows_from_its_key():
    target = Target([b"some bytes to change", b"others"], fail, ())
    inputs = [fuzz.make_input(target, f"0/x/0/{number}") for number in range(50)]
    assert inputs == [fuzz.make_input(target, f"0/x/0/{number}") for number in range(50)] and len(set(inputs)) > 40
