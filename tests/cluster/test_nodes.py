"""Several nodes on one machine: one is lost, one leaves after a notice and comes back.

    NVG_NODES=1 pytest tests/cluster/test_nodes.py      5 minutes: too long for every run of the suite
"""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from nvg.data.tokens import parts
from tests.cluster.test_training import ROOT, curve, images, tokenizer, tokens  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("NVG_NODES" not in os.environ, reason="takes 5 minutes: set NVG_NODES=1"),
]


@pytest.fixture
def on_nodes(images, tokenizer, tokens, tmp_path):  # noqa: F811
    """on_nodes(job): what tests/cluster/nodes.py says of it; its output is tmp_path."""

    def run(job):
        command = [sys.executable, "-m", "tests.cluster.nodes", job, str(tmp_path), images, tokenizer, tokens]
        environment = {**os.environ, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5", "RAY_ADDRESS": ""}
        with open(tmp_path / "log.txt", "w") as log:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, timeout=600
            )
        assert done.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_killed_raylet_loses_and_doubles_no_row(on_nodes, images, tmp_path):  # noqa: F811
    said = on_nodes("tokens")
    assert 4 <= said["killed_at"] < said["parts"] == 96 and said["nodes"] == 1
    for view in range(2):
        ids = [
            image_id
            for (_, which), paths in parts(f"{tmp_path}/tokens").items()
            for path in paths
            if which == view
            for image_id in pq.read_table(path)["image_id"].to_pylist()
        ]
        assert len(ids) == len(set(ids)) == 96


def test_workers_leave_after_a_notice_and_come_back(on_nodes, images, tmp_path):  # noqa: F811
    said = on_nodes("elastic")
    assert said["first"] <= said["notice"] < said["alone"] < said["again"] <= 300
    assert said["notice"] % 25 and said["figures"]["workers"] == 2
    points = curve(tmp_path, images)  # one run, and each step once
    assert [step for step, _ in points] == list(range(2, 302, 2))
    assert points[-1][1] < points[0][1]
