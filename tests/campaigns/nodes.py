"""Training while nodes are lost, leave after a notice and come back; tokens on one, two and four nodes.

    python -m tests.campaigns.nodes

Nodes are raylets on this machine. tests/cluster/test_nodes.py has the short forms: one node leaves after a notice, and
two nodes make tokens.
"""

import sys
import time

import pytest

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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
