"""Several nodes on one machine, raylets beside the session's head: one leaves after a notice, two make tokens."""

import time
from pathlib import Path

import pytest
import ray.data

from nvg.cluster import OWN_RAY, actors
from nvg.config import ClusterConfig
from tests.support.cluster import alive, announce_loss, look_again
from tests.support.processes import processes_named
from tests.support.smoke import smoke
from tests.support.waiting import in_thread, until

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores


def test_workers_hear_a_notice_and_a_training_goes_on_without_the_node_that_leaves(
    ray_cluster, add_node, images, tmp_path
):
    """Ray's part alone, with a body that looks out: what a training does at a notice and from a checkpoint of more
    workers is in tests/training. tests/campaigns/nodes.py trains while nodes go and come back."""
    from nvg.training import ray_train

    gone, marks = tmp_path / "gone", tmp_path / "marks"
    marks.mkdir()

    def look(place):
        """At every record, seldom enough for Ray Train to hear first; the worker that leaves comes last."""
        time.sleep(2 + place.rank / 2)
        return place.leaving()

    def body(config, place, wrap, *, folder):
        if place.world == 2:
            (marks / f"here-{place.rank}").touch()
            until(lambda: look(place), "the notice")
            (marks / f"told-{place.rank}").touch()
            until(gone.exists, "the loss")
            raise ConnectionError("the other worker is gone")  # as a collective would
        until(gone.exists, "the loss")  # where the training begins with one worker, until it is resized
        return {"workers": place.world}

    elastic = ["cluster.num_workers=2", "cluster.min_workers=1", "cluster.resize_interval=1"]
    elastic += ["cluster.cpus_per_worker=1.2"]  # a node fits one worker
    node = add_node()
    look_again(2)
    config = smoke(tmp_path / "out", images, *elastic)
    wait = in_thread(lambda: ray_train.fit(body, config, f"{tmp_path}/out/generators"))
    until(lambda: len(list(marks.glob("here-*"))) == 2, "two workers")
    announce_loss(ray_cluster, node)
    until(lambda: len(list(marks.glob("told-*"))) == 2, "both workers to hear the notice")
    ray_cluster.remove_node(node, allow_graceful=False)
    gone.touch()
    look_again(1)
    assert wait() == {"workers": 1}


def test_encoders_run_where_their_resource_is_and_two_nodes_make_the_tokens_of_one_though_one_is_killed(
    ray_cluster, add_node, images, tokenizer, tokens, tmp_path, monkeypatch
):
    """One encoder's process is killed; tests/campaigns/nodes.py kills a whole node."""
    import pipelines.build_tokens as job

    class SlowEncode(job.Encode):  # so that there is something left to do when one is killed
        def __call__(self, row):
            time.sleep(0.25)
            return super().__call__(row)

    monkeypatch.setattr(job, "Encode", SlowEncode)
    # No part is made before both encoders are there: the last one to start finds something to do.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 200)
    encoders = [add_node(resources={"encoder": 1}), add_node(resources={"encoder": 1, "reader": 2})]
    kinds = ["cluster.worker_resources={encoder: 1}", "cluster.reader_resources={reader: 1}", "cluster.encoders=2"]
    config = smoke(tmp_path, images, *kinds)
    wait = in_thread(lambda: job.build_tokens(config, tokenizer, f"{tmp_path}/tokens"))
    until(lambda: list(tmp_path.glob("tokens/part-*")), "the first part")
    processes_named("ray::MapWorker(Map(SlowEncode)")[0].kill()
    assert not (tmp_path / "tokens" / "metadata.json").exists()
    metadata = wait()
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

    assert [pool(count) for count in (2, 3)] == [2, 3] and "encoders" not in capsys.readouterr().out
    assert pool(5) == 5 and "unless the cluster grows" in capsys.readouterr().out  # three fit on two CPUs
    add_node(resources={OWN_RAY: 1})
    until(lambda: alive() == 2, "the node")
    assert [pool(count) for count in (7, 9)] == [7, 7]
    assert "cluster.encoders=9" in (said := capsys.readouterr().out) and "7 instead" in said
