"""The programs of benchmarks/ that run alone: how they start, and the arithmetic of scale_estimate."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import compare_commits, load_test
from benchmarks.capacity.scale_estimate import Estimate, Measured
from nvg import config as configuration
from nvg.serving.deployment import ALLOCATOR

ROOT = Path(__file__).parents[2]


def test_the_load_test_starts_itself_again_with_the_allocators_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(Exception):
        pass

    def execve(program: str, command: list[str], environment: dict[str, str]) -> None:
        raise Replaced(program, command, environment)

    monkeypatch.setattr(os, "execve", execve)
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Replaced) as replaced:
        load_test.main(["--batch", "2"])
    program, command, environment = replaced.value.args
    assert command[-2:] == ["--batch", "2"] and ALLOCATOR.items() <= environment.items()
    done = subprocess.run([*command, "--help"], executable=program, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_commit_without_the_package_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not compared with the package that is installed."""
    (tmp_path / "README.md").touch()
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*name, "commit", "-q", "-m", "nothing yet"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(compare_commits, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["compare_commits", "HEAD"])
    with pytest.raises(SystemExit, match="commit HEAD cannot draw"):
        compare_commits.main()


def test_the_documents_estimate_follows_from_its_measured_figures() -> None:
    path = "conf/imagenet_d16.yaml"
    config = configuration.load(ROOT / path, ["data.views=10", "repa.weights=null"])
    measured = Measured(1173, 2.47e-3, 12.78e-3, 260.0e9, (1.33, 578, 40.7))
    options = argparse.Namespace(
        config=path,
        images=1_281_167,
        views=10,
        encoder_tflops=112,
        clustering_ms=0.16,
        image_kb=115.4,
        get_price=0.4,
        put_price=5.0,
        store_price=0.023,
        files=100_000,
    )
    document = (ROOT / "docs" / "reports" / "scale.md").read_text().splitlines()
    for line in Estimate(options, config, measured).lines():
        assert "| " + " | ".join(line) + " |" in document
