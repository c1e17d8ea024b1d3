"""Several nodes on one machine, raylets beside the session's head: they are killed, leave after a notice, come back."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray.data

from nvg.cluster import OWN_RAY, actors
from nvg.config import ClusterConfig
from nvg.data.tokens import part_files
from tests.support.cluster import alive, announce_loss, look_again
from tests.support.smoke import smoke
from tests.support.trainings import assert_bit_equal, curve, newest_checkpoint, train_in_process
from tests.support.waiting import in_thread, until

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores


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


def test_a_node_leaves_after_a_notice_and_the_training_is_the_unbroken_one(
    ray_cluster, add_node, images, tokenizer, tokens, tmp_path
):
    """Two workers on two nodes, of which one goes; tests/campaigns/nodes.py has nodes lost without a word and back."""
    from pipelines.train import train_generators

    length = ["train.steps=80", "train.checkpoint_every=20"]
    elastic = ["cluster.num_workers=2", "cluster.min_workers=1", "cluster.resize_interval=1"]
    elastic += ["cluster.cpus_per_worker=1.2"]  # a node fits one worker and a reader
    folder = f"{tmp_path}/elastic/generators"
    node = add_node()
    config = smoke(tmp_path / "elastic", images, *length, *elastic)
    wait = in_thread(lambda: train_generators(config, tokenizer, tokens, folder))
    until(lambda: newest_checkpoint(folder, lambda found: found["workers"] == 2), "a checkpoint of two workers")
    announce_loss(ray_cluster, node)
    until(lambda: newest_checkpoint(folder, lambda found: found["notice"]), "a checkpoint at the notice")
    ray_cluster.remove_node(node, allow_graceful=False)
    look_again(1)
    figures = wait()
    assert figures["workers"] == 1 and figures["resumed_from"] > 0

    _, unbroken = train_in_process(tmp_path / "unbroken", images, tokenizer, tokens, *length, "train.accumulate=2")
    assert_bit_equal(folder, unbroken)
    points = curve(tmp_path / "elastic", images)  # one run, and each step once
    expected = curve(tmp_path / "unbroken", images)
    assert [step for step, _ in points] == [step for step, _ in expected] == list(range(2, 82, 2))
    for (_, value), (_, expected_value) in zip(points, expected, strict=True):
        assert value == pytest.approx(expected_value, rel=1e-5)  # a mean over slices, summed in another order


def test_encoders_run_where_their_resource_is_and_two_nodes_make_the_tokens_of_one(
    ray_cluster, add_node, images, tokenizer, tokens, tmp_path, monkeypatch
):
    import pipelines.build_tokens as job

    # No part is made before both encoders are there: the last one to start finds something to do.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 200)
    encoders = [add_node(resources={"encoder": 1}), add_node(resources={"encoder": 1, "reader": 2})]
    kinds = ["cluster.worker_resources={encoder: 1}", "cluster.reader_resources={reader: 1}", "cluster.encoders=2"]
    metadata = job.build_tokens(smoke(tmp_path, images, *kinds), tokenizer, f"{tmp_path}/tokens")
    assert metadata["images_by_node"].keys() == {node.node_id for node in encoders}
    assert sum(metadata["images_by_node"].values()) == 96
    made, expected = (
        {path.name: path.read_bytes() for path in Path(folder).glob("*.parquet")}
        for folder in (tmp_path / "tokens", tokens)
    )
    assert len(made) > 2 and made == expected


def test_encoders_leave_a_reader_room_in_a_ray_of_our_own_and_bring_nodes_elsewhere(ray_cluster, add_node, capsys):
    def pool(encoders):
        return actors(ClusterConfig(encoders=encoders, cpus_per_worker=0.5, cpus_per_reader=0.5)).max_size

    assert [pool(count) for count in (2, 3)] == [2, 3] and not capsys.readouterr().out
    assert pool(5) == 5 and "unless the cluster grows" in capsys.readouterr().out  # three fit on two CPUs
    add_node(resources={OWN_RAY: 1})
    until(lambda: alive() == 2, "the node")
    assert [pool(count) for count in (7, 9)] == [7, 7]
    assert "cluster.encoders=9" in (said := capsys.readouterr().out) and "7 instead" in said
