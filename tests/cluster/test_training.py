"""Training on a real Ray: several workers, the loss of one, the loss of the whole job.

That any number of workers trains as one is shown without Ray, in tests/training/test_workers.py.
"""

import time
from pathlib import Path

import pytest
import torch

from nvg import storage
from nvg.data.tokens import read_metadata
from nvg.errors import DiskFull
from nvg.training.checkpoint import list_checkpoints
from tests.support.disk import small_disk
from tests.support.processes import processes_named
from tests.support.trainings import assert_bit_equal, curve, newest_checkpoint, train_in_process, train_on_ray
from tests.support.waiting import in_thread, until

pytestmark = pytest.mark.timeout(900)  # a job is a quarter of a minute; more under load


@pytest.fixture(scope="module")
def unbroken(tokens, tokenizer, images, tmp_path_factory):
    """Figures and folder of a training of the generators that nothing disturbs."""
    return train_in_process(tmp_path_factory.mktemp("unbroken"), images, tokenizer, tokens)


def test_the_generator_job_leaves_a_sampler_and_one_run(unbroken, images):
    import nvg

    figures, folder = unbroken
    assert figures["resumed_from"] == 0 and figures["workers"] == 1
    assert nvg.load(str(folder)).generate(["disc", "stripes"], seed=0).shape == (2, 16, 16, 3)
    assert [step for step, _ in curve(folder.parent, images)] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list(Path(images).parent.glob("mlartifacts/*/artifacts/previews/00000016-samples.png"))


def test_a_killed_worker_is_started_again_from_the_newest_checkpoint(images, tokenizer, tokens, tmp_path):
    """tests/campaigns/faults.py kills everything else too, at any moment and in every step."""
    length = ("train.steps=40", "train.checkpoint_every=8")
    wait = in_thread(lambda: train_on_ray(tmp_path / "killed", images, tokenizer, tokens, *length))
    folder = f"{tmp_path}/killed/generators"
    step = until(lambda: newest_checkpoint(folder, lambda found: True), "a checkpoint")
    (worker,) = processes_named("ray::RayTrainWorker")
    worker.kill()
    figures, _ = wait()
    assert figures["resumed_from"] >= step > 0
    _, unbroken = train_in_process(tmp_path / "unbroken", images, tokenizer, tokens, *length)
    assert_bit_equal(folder, unbroken)
    assert curve(tmp_path / "killed", images) == curve(tmp_path / "unbroken", images)


def test_a_loss_that_is_not_finite_ends_the_job_at_once(images, tokenizer, tokens, tmp_path):
    from nvg.errors import TrainingDiverged

    with pytest.raises(TrainingDiverged, match="train_generators stopped at step"):
        train_in_process(
            tmp_path, images, tokenizer, tokens, "train.lr=1e30", "train.clip_norm=1e30", "train.warmup_steps=0"
        )
    assert not (tmp_path / "generators" / "metadata.json").exists()


def test_an_error_of_one_worker_that_would_come_again_is_not_tried_again(ray_cluster, tmp_path):
    """Both are in one process group. The other one waits in a collective, and has an error of its own when it is
    ended."""
    from nvg.errors import DataError
    from nvg.training import ray_train
    from tests.support.smoke import smoke

    config = smoke(tmp_path / "out", tmp_path / "images", "cluster.num_workers=2", "cluster.max_failures=3")
    tries = str(tmp_path / "tries")

    def body(config, place, wrap, *, folder):
        Path(tries).mkdir(exist_ok=True)
        workers = torch.ones(1)
        torch.distributed.all_reduce(workers)
        Path(tries, f"{place.rank}-of-{workers.item():g}-{time.time_ns()}").touch()
        if place.rank == 1:
            raise DataError("data.train: one image is broken")
        torch.distributed.all_reduce(torch.ones(1))

    start = time.monotonic()
    with pytest.raises(DataError, match="data.train: one image is broken"):
        ray_train.fit(body, config, str(tmp_path / "out" / "tokenizer"))
    assert time.monotonic() - start < 120  # gloo alone waits for half an hour
    assert sorted(path.name[:6] for path in Path(tries).iterdir()) == ["0-of-2", "1-of-2"]


def test_the_parts_are_trained_one_after_the_other(images, tokenizer, tokens, tmp_path):
    import nvg
    from nvg.errors import CheckpointError

    quick = ("train.steps=2",)
    train_in_process(tmp_path, images, tokenizer, tokens, *quick, "train.parts=[content]")
    with pytest.raises(CheckpointError, match=r"train.parts=\[structure\]"):
        nvg.load(str(tmp_path / "generators"))
    train_in_process(tmp_path, images, tokenizer, tokens, *quick)  # both are needed, one is there
    assert nvg.load(str(tmp_path / "generators")).class_names == read_metadata(tokens)["class_names"]


def test_a_full_disk_ends_the_job_and_it_goes_on_after_space_is_made(unbroken, images, tokenizer, tokens, tmp_path):
    """In this process: that a worker's error ends a job on Ray as it is, the test on an error of one worker shows."""
    with small_disk(tmp_path / "disk", 5500) as grow:
        output = tmp_path / "disk" / "out"
        with pytest.raises(DiskFull, match=f"no space left to write {output}/generators/checkpoints-"):
            train_in_process(output, images, tokenizer, tokens)
        whole = list_checkpoints(f"{output}/generators/checkpoints-content-structure")
        left = {Path(path).parent for path in storage.list_files(str(output), (".safetensors",))}
        assert left == set(map(Path, whole)) and not list(output.rglob(".*.tmp"))  # nothing half written
        grow(20_000)
        figures, folder = train_in_process(output, images, tokenizer, tokens)
        assert figures["resumed_from"] == 4 * len(whole) > 0
        assert_bit_equal(folder, unbroken[1])
        assert curve(output, images) == curve(unbroken[1].parent, images)
