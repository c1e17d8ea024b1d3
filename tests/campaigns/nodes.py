"""Training and serving while nodes are lost and come back; tokens on one, two and four nodes.

    python -m tests.campaigns.nodes

Nodes are raylets on this machine. tests/cluster/test_nodes.py has the short forms: workers hear that a node leaves, and
two nodes make tokens while an encoder is killed. tests/cluster/test_serving.py kills a replica.
"""

import sys
import threading
import time

import httpx
import pyarrow.parquet as pq
import pytest

from nvg.config import ServeConfig
from nvg.data.tokens import part_files
from pipelines.serve import deploy
from tests.support.cluster import alive, announce_loss, look_again
from tests.support.smoke import smoke
from tests.support.trainings import assert_bit_equal, curve, newest_checkpoint, train_in_process
from tests.support.waiting import in_thread, until

pytestmark = pytest.mark.timeout(900)  # a group of workers starts five times


def test_workers_are_lost_leave_and_come_back_and_the_training_is_the_unbroken_one(
    ray_cluster, add_node, images, tokenizer, tokens, tmp_path
):
    """Two workers on two nodes. One node is killed without a word, another comes, is announced to leave, and leaves."""
    from pipelines.train import train_generators

    length = ["train.steps=400", "train.checkpoint_every=20"]
    elastic = ["cluster.num_workers=2", "cluster.min_workers=1", "cluster.resize_interval=1"]
    elastic += ["cluster.cpus_per_worker=1.2"]  # a node fits one worker and a reader
    folder = f"{tmp_path}/elastic/generators"

    def checkpoint(what, workers, after=0):
        def accept(metadata):
            return metadata["workers"] == workers and metadata["step"] > after

        return until(lambda: newest_checkpoint(folder, accept), what)

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
    announce_loss(ray_cluster, node)
    seen += [until(lambda: newest_checkpoint(folder, lambda found: found["notice"]), "a checkpoint at the notice")]
    ray_cluster.remove_node(node, allow_graceful=False)
    look_again(1)
    seen += [checkpoint("a checkpoint of one worker", 1, seen[-1])]
    figures = wait()
    assert seen == sorted(seen) and figures["workers"] == 1, seen

    _, unbroken = train_in_process(tmp_path / "unbroken", images, tokenizer, tokens, *length, "train.accumulate=2")
    assert_bit_equal(folder, unbroken)
    points = curve(tmp_path / "elastic", images)  # one run, and each step once
    expected = curve(tmp_path / "unbroken", images)
    assert [step for step, _ in points] == [step for step, _ in expected] == list(range(2, 402, 2))
    for (_, value), (_, expected_value) in zip(points, expected, strict=True):
        assert value == pytest.approx(expected_value, rel=1e-5)  # a mean over slices, summed in another order


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
        metadata = job.build_tokens(config, tokenizer, f"{tmp_path}/{count}")
        assert sum(metadata["images_by_node"].values()) == 384
        assert len(metadata["images_by_node"]) == count
        made[count] = {path.name: path.read_bytes() for path in tmp_path.glob(f"{count}/*.parquet")}
    assert len(made[1]) == 97 and made[1] == made[2] == made[4]  # and quarantine.parquet


def test_a_killed_raylet_loses_and_doubles_no_row(ray_cluster, add_node, images, tokenizer, tmp_path):
    from pipelines.build_tokens import build_tokens

    node = add_node()
    config = smoke(tmp_path, images, "data.unit_images=8", "data.views=2", "cluster.encoders=2")
    wait = in_thread(lambda: build_tokens(config, tokenizer, f"{tmp_path}/tokens"))
    until(lambda: len(list(tmp_path.glob("tokens/part-*"))) >= 3, "the first parts")
    ray_cluster.remove_node(node, allow_graceful=False)
    before = len(list(tmp_path.glob("tokens/part-*")))
    metadata = wait()
    assert 3 <= before < metadata["parts"] == 24 and alive() == 1
    for view in range(2):
        ids = [
            image_id
            for (_, which), paths in part_files(f"{tmp_path}/tokens").items()
            for path in paths
            if which == view
            for image_id in pq.read_table(path)["image_id"].to_pylist()
        ]
        assert len(ids) == len(set(ids)) == 96


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
    answers: list[tuple[float, int | str]] = []
    stop = threading.Event()

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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
