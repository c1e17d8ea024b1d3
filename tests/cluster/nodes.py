"""Jobs on several nodes that come and go: raylets of `ray.cluster_utils.Cluster`, in a process of their own.

    python -m tests.cluster.nodes JOB OUTPUT IMAGES TOKENIZER TOKENS

A process can be connected to one Ray, and that of the tests has another. Prints what happened as JSON on its last line.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from nvg import storage
from nvg.training.checkpoint import list_checkpoints
from tests.cluster.test_training import smoke

STORE = 150 * 10**6
PATIENCE = 240  # seconds


def until(condition, what):
    """The first true answer of a condition; AssertionError naming `what` when there is none in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ValueError):  # of a checkpoint that is just going
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


def in_thread(job):
    """Start a job; returns a function that waits for its result."""
    result = {}

    def run():
        try:
            result["value"] = job()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()

    def wait():
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the job does not end"
        if "error" in result:
            raise result["error"]
        return result["value"]

    return wait


def tokens(cluster, output, images, tokenizer, _):
    """The raylet of the second node is killed while it tokenizes."""
    from pipelines.build_tokens import build_tokens

    node = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    config = smoke(output, images, "data.unit_images=2", "data.views=2", "cluster.encoders=2")
    wait = in_thread(lambda: build_tokens(config, tokenizer, f"{output}/tokens"))
    until(lambda: len(list(Path(output).glob("tokens/part-*"))) >= 4, "the first parts")
    cluster.remove_node(node, allow_graceful=False)
    there = len(list(Path(output).glob("tokens/part-*")))
    about = wait()
    return {"killed_at": there, "parts": about["parts"], "nodes": sum(node["Alive"] for node in ray.nodes())}


def elastic(cluster, output, images, tokenizer, tokens):
    """Two workers on two nodes; the second node is announced to leave, leaves, and comes back."""
    from pipelines.train import train_generators

    node = cluster.add_node(num_cpus=2, object_store_memory=STORE)  # each node fits one worker and a reader
    settings = ["cluster.cpus_per_worker=1.2", "cluster.num_workers=2", "cluster.min_workers=1"]
    settings += ["cluster.resize_interval=1", "train.steps=300", "train.checkpoint_every=25"]
    config = smoke(output, images, *settings)
    folder = f"{output}/generators"
    wait = in_thread(lambda: train_generators(config, tokenizer, tokens, folder))

    def newest(accept):
        for path in reversed(list_checkpoints(f"{folder}/checkpoints-content-structure")):
            about = storage.read_json(f"{path}/metadata.json")
            if accept(about):
                return about["step"]
        return None

    first = until(lambda: newest(lambda about: about["workers"] == 2), "a checkpoint of two workers")
    command = ["drain-node", "--address", cluster.address, "--node-id", node.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", "60"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True, stdout=subprocess.DEVNULL)
    notice = until(lambda: newest(lambda about: about["step"] % 25), "a checkpoint at the notice")
    cluster.remove_node(node, allow_graceful=False)
    alone = until(lambda: newest(lambda about: about["workers"] == 1), "a checkpoint of one worker")
    cluster.add_node(num_cpus=2, object_store_memory=STORE)
    again = until(lambda: newest(lambda about: about["workers"] == 2 and about["step"] > alone), "two workers again")
    return {"first": first, "notice": notice, "alone": alone, "again": again, "figures": wait()}


def main():
    """Run a job on a head node of two CPUs and what nodes it adds."""
    job, *arguments = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE})
    try:
        variables = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": cluster.address}  # of this Ray, where others run too
        ray.init(address=cluster.address, runtime_env={"env_vars": variables})
        print(json.dumps({"tokens": tokens, "elastic": elastic}[job](cluster, *arguments)), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
