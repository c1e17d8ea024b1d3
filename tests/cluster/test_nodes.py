"""Several nodes on one machine, raylets beside the session's head: they are killed, leave after a notice, come back."""

import contextlib
import subprocess
import sys
import threading
import time

import httpx
import pyarrow.parquet as pq
import pytest

from nvg import storage
from nvg.cluster import OWN_RAY, actors
from nvg.config import ClusterConfig, ServeConfig
from nvg.data.tokens import part_files
from nvg.training.checkpoint import list_checkpoints
from pipelines.serve import deploy
from tests.cluster.conftest import smoke
from tests.cluster.test_training import assert_bit_equal, curve, here

pytestmark = pytest.mark.timeout(900)  # a group of workers starts five times

PATIENCE = 240  # seconds


@pytest.fixture
def add_node(ray_cluster):
    """add_node(**resources): one more raylet of two CPUs; those that are left go after the test."""
    added = []

    def add(**resources):
        added.append(ray_cluster.add_node(num_cpus=2, object_store_memory=150 * 10**6, **resources))
        return added[-1]

    yield add
    for node in added:
        if node in ray_cluster.worker_nodes:
            ray_cluster.remove_node(node)


def in_thread(job):
    """Start a job; returns a function that waits for its result."""
    result = {}

    def run():
        try:
            result["value"] = job()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the job does not end"
        if "error" in result:
            raise result["error"]
        return result["value"]

    return wait


def until(condition, what):
    """The first true answer of a condition; AssertionError naming `what` when there is none in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ValueError):  # of a checkpoint that is just going
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


def alive():
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def look_again(count):
    """Let Ray's coordinator of reservations, which looks at the nodes every 20 s, see now that there are so many."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    until(lambda: alive() == count, f"{count} nodes")
    actor = coordinator.get_or_create_autoscaling_coordinator()
    ray.get(actor.get_reserved_resources.remote("nobody", recompute=True))


def test_a_killed_raylet_loses_and_doubles_no_row(ray_cluster, add_node, images, tokenizer, tmp_path):
    from pipelines.build_tokens import build_tokens

    node = add_node()
    config = smoke(tmp_path, images, "data.unit_images=2", "data.views=2", "cluster.encoders=2")
    wait = in_thread(lambda: build_tokens(config, tokenizer, f"{tmp_path}/tokens"))
    until(lambda: len(list(tmp_path.glob("tokens/part-*"))) >= 4, "the first parts")
    ray_cluster.remove_node(node, allow_graceful=False)
    there = len(list(tmp_path.glob("tokens/part-*")))
    about = wait()
    assert 4 <= there < about["parts"] == 96 and alive() == 1
    for view in range(2):
        ids = [
            image_id
            for (_, which), paths in part_files(f"{tmp_path}/tokens").items()
            for path in paths
            if which == view
            for image_id in pq.read_table(path)["image_id"].to_pylist()
        ]
        assert len(ids) == len(set(ids)) == 96


def test_workers_are_lost_leave_and_come_back_and_the_training_is_the_unbroken_one(
    ray_cluster, add_node, images, tokenizer, tokens, tmp_path
):
    """Two workers on two nodes. One node is killed without a word, another comes, is announced to leave, and leaves."""
    from pipelines.train import train_generators

    length = ["train.steps=400", "train.checkpoint_every=20"]
    elastic = ["cluster.num_workers=2", "cluster.min_workers=1", "cluster.resize_interval=1"]
    elastic += ["cluster.cpus_per_worker=1.2"]  # a node fits one worker and a reader
    folder = f"{tmp_path}/elastic/generators"

    def newest(accept):
        for path in reversed(list_checkpoints(f"{folder}/checkpoints-content-structure")):
            about = storage.read_json(f"{path}/metadata.json")
            if accept(about):
                return about["step"]
        return None

    def checkpoint(what, workers, after=0):
        return until(lambda: newest(lambda about: about["workers"] == workers and about["step"] > after), what)

    node = add_node()
    config = smoke(tmp_path / "elastic", images, *length, *elastic)
    wait = in_thread(lambda: train_generators(config, tokenizer, tokens, folder))
    seen = [checkpoint("a checkpoint of two workers", 2)]
    ray_cluster.remove_node(node, allow_graceful=False)
    look_again(1)
    seen += [checkpoint("a checkpoint of the one that is left", 1, seen[-1])]
    node = add_node()
    look_again(2)
    seen += [checkpoint("two workers again", 2, seen[-1])]
    command = ["drain-node", "--address", ray_cluster.address, "--node-id", node.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", "60"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True, stdout=subprocess.DEVNULL)
    seen += [until(lambda: newest(lambda about: about["notice"]), "a checkpoint at the notice")]
    ray_cluster.remove_node(node, allow_graceful=False)
    look_again(1)
    seen += [checkpoint("a checkpoint of one worker", 1, seen[-1])]
    figures = wait()
    assert seen == sorted(seen) and figures["workers"] == 1, seen

    _, unbroken = here(tmp_path / "unbroken", images, tokenizer, tokens, *length, "train.accumulate=2")
    assert_bit_equal(folder, unbroken)
    points = curve(tmp_path / "elastic", images)  # one run, and each step once
    expected = curve(tmp_path / "unbroken", images)
    assert [step for step, _ in points] == [step for step, _ in expected] == list(range(2, 402, 2))
    for (_, value), (_, wanted) in zip(points, expected, strict=True):
        assert value == pytest.approx(wanted, rel=1e-5)  # a mean over slices, summed in another order


def test_one_two_and_four_nodes_make_the_same_tokens(ray_cluster, add_node, images, tokenizer, tmp_path, monkeypatch):
    import pipelines.build_tokens as job

    class SlowEncode(job.Encode):  # so that the last encoder to start finds something to do
        def __call__(self, row):
            time.sleep(0.25)
            return super().__call__(row)

    made = {}
    for count in (1, 2, 4):
        while alive() < count:
            add_node()
        if count > 1:
            monkeypatch.setattr(job, "Encode", SlowEncode)
        one_a_node = [f"cluster.encoders={count}", "cluster.cpus_per_worker=1.2", "cluster.cpus_per_reader=0.5"]
        config = smoke(tmp_path, images, "data.unit_images=4", "data.views=4", *one_a_node)
        about = job.build_tokens(config, tokenizer, f"{tmp_path}/{count}")
        assert sum(about["images_by_node"].values()) == 384
        assert len(about["images_by_node"]) == count
        made[count] = {path.name: path.read_bytes() for path in tmp_path.glob(f"{count}/*.parquet")}
    assert len(made[1]) == 97 and made[1] == made[2] == made[4]  # and quarantine.parquet


def test_encoders_run_where_their_resource_is(ray_cluster, add_node, images, tokenizer, tmp_path):
    from pipelines.build_tokens import build_tokens

    encoder = add_node(resources={"encoder": 2})
    add_node(resources={"reader": 2})
    kinds = ["cluster.worker_resources={encoder: 1}", "cluster.reader_resources={reader: 1}"]
    about = build_tokens(smoke(tmp_path, images, *kinds), tokenizer, f"{tmp_path}/tokens")
    assert about["images_by_node"] == {encoder.node_id: 96}


def test_encoders_leave_a_reader_room_in_a_ray_of_our_own_and_bring_nodes_elsewhere(ray_cluster, add_node, capsys):
    def pool(encoders):
        return actors(ClusterConfig(encoders=encoders, cpus_per_worker=0.5, cpus_per_reader=0.5)).max_size

    assert [pool(count) for count in (2, 3)] == [2, 3] and not capsys.readouterr().out
    assert pool(5) == 5 and "unless the cluster grows" in capsys.readouterr().out  # three fit on two CPUs
    add_node(resources={OWN_RAY: 1})
    until(lambda: alive() == 2, "the node")
    assert [pool(count) for count in (7, 9)] == [7, 7]
    assert "cluster.encoders=9" in (said := capsys.readouterr().out) and "7 instead" in said


def replica_nodes():
    """The node of each replica that is alive."""
    from ray._private.state import actors

    return [
        actor["Address"]["NodeID"]
        for actor in actors().values()
        if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith("ServeReplica:nvg:")
    ]


def test_a_lost_node_takes_one_of_two_replicas_and_it_comes_back_on_another(ray_cluster, add_node, port):
    from ray import serve

    # Proxies of nodes with one address would take each other's port.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    node = add_node()
    deploy(ServeConfig(port=port, min_replicas=2, max_replicas=2, cpus_per_replica=1.2))
    assert len(set(replica_nodes())) == 2
    answers, stop = [], threading.Event()

    def ask():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/images/generations", json={"prompt": "Bag"})
                    answers.append((time.monotonic(), answer.status_code))
                except httpx.TransportError as error:
                    answers.append((time.monotonic(), type(error).__name__))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    until(lambda: len(answers) > 10, "answers of both")
    lost = time.monotonic()
    ray_cluster.remove_node(node, allow_graceful=False)
    until(lambda: node.node_id not in replica_nodes(), "the loss to be seen")
    seen = time.monotonic()
    until(lambda: sum(when > seen + 5 for when, _ in answers) > 10, "answers of the one that is left")
    add_node()
    until(lambda: len(set(replica_nodes())) == 2, "a replica on another node")
    stop.set()
    for client in clients:
        client.join()
    failed = [(round(when - lost, 1), what) for when, what in answers if what != 200]
    print("failed, seconds after the loss:", failed)
    assert all(0 <= when <= seen + 5 - lost for when, _ in failed), failed
    assert len(failed) <= 4, failed  # what was in hand there, and what was sent before the loss was seen
