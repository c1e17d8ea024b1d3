"""A job on a cluster that grows from no workers and shrinks again: Ray's own autoscaler, on this machine.

    python -m tests.campaigns.autoscaling                                   the test below
    python -m tests.campaigns.autoscaling [--idle 10] -- pipelines/run.py --config ... key=value

With a job it runs that on such a cluster (tests/support/autoscaler.py) and waits until the nodes have gone. It prints
the job's output, and at the end the autoscaler's decisions with their times. tests/cluster/alone/test_autoscaling.py is
the short form, in which encoders come for the tokens and go.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import pytest

from nvg import config as configuration
from nvg import storage
from pipelines.steps import plan
from tests.support import autoscaler
from tests.support.smoke import SMOKE
from tests.support.synthetic import write_images

pytestmark = pytest.mark.timeout(900)

IDLE = 5  # seconds after which a node without work goes


def test_nodes_come_for_readers_and_for_encoders_and_go_when_all_is_done(tmp_path):
    images = write_images(tmp_path / "images")
    settings = [
        *(f"output={tmp_path}/run", f"data.train={images}", "data.unit_images=2", "cluster.cpus_per_worker=1"),
        *("cluster.num_workers=2", "cluster.worker_resources={encoder: 1}"),
        *("cluster.encoders=2", "cluster.reader_resources={reader: 0.5}"),
    ]
    job = ["pipelines/run.py", "--until", "tokens", "--config", str(SMOKE), *settings]
    with autoscaler.growing(idle_seconds=IDLE) as cluster:
        assert cluster.nodes() == 0
        log = cluster.run(*job)
        patience = time.monotonic() + 120
        while cluster.nodes():
            assert time.monotonic() < patience, cluster.decisions()
            time.sleep(1)
        decisions = [what for _, what in cluster.decisions()]
    # No node has both resources: that each was asked for is what brought nodes of its kind. Two workers need two.
    assert "Adding 2 node(s) of type encoder." in decisions and "Adding 1 node(s) of type reader." in decisions
    assert "Adding 2 node(s) of type encoder" in log  # the job's own log says so
    removed = [what for what in decisions if what.startswith("Removing")]
    assert removed and all("(idle)" in what for what in removed)
    artifacts = plan(configuration.load(SMOKE, settings))
    tokens = storage.read_json(f"{artifacts['tokens'].folder}/metadata.json")
    assert tokens["rows"] == 96 and len(tokens["images_by_node"]) == 2
    assert storage.read_json(f"{artifacts['tokenizer'].folder}/metadata.json")["training"]["workers"] == 2


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--idle", type=float, default=10, help="seconds after which a node without work goes")
    parser.add_argument("job", nargs="*", help="the job's command, a script of pipelines/ and its arguments")
    arguments = parser.parse_args()
    if not arguments.job:
        sys.exit(pytest.main([__file__]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cluster is ended
    with autoscaler.growing(arguments.idle) as cluster:
        start = time.time()
        code = subprocess.run([sys.executable, *arguments.job], env=os.environ | cluster.environment)
        done = time.time()
        while cluster.nodes() and time.time() < done + arguments.idle + 60:
            time.sleep(1)
        left = cluster.nodes()
        print("\n| seconds | the autoscaler |\n| --- | --- |")
        for when, what in cluster.decisions():
            print(f"| {when - start:.0f} | {what} |")
        print(f"\nThe job took {done - start:.0f} s; nodes left: {left}.")
    sys.exit(code.returncode or bool(left))


if __name__ == "__main__":
    main()
