"""Which error of which worker ends a training, and which are tried again."""

import threading

import pytest

from nvg.errors import ConfigError, DataError, StorageError, TrainingDiverged, Unexpected
from nvg.training.verdict import Verdict, settled


def failing(error):
    def work():
        raise error

    return work


def never():
    raise AssertionError("no work is done after an error that ends the job")


def test_the_result_of_work_that_ends_well():
    assert settled(lambda: 7, Verdict(), rank=0, world=2) == {"value": 7}


@pytest.mark.parametrize("error", [TrainingDiverged("a"), ConfigError("b"), DataError("c")], ids=repr)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_that_would_come_again_of_one_worker_ends_the_job_for_all(error, rank):
    """The worker raises, which ends those that wait for it in a collective; started again, none does any work."""
    verdict = Verdict()
    with pytest.raises(type(error)):
        settled(failing(error), verdict, rank=rank, world=2, seconds=0.0)
    for one in (0, 1):
        assert settled(never, verdict, rank=one, world=2) == {"error": error}


def test_a_fault_of_ours_is_told_by_its_type():
    verdict = Verdict()
    with pytest.raises(KeyError):
        settled(failing(KeyError("depth")), verdict, rank=1, world=2, seconds=0.0)
    answer = settled(never, verdict, rank=0, world=2)
    assert isinstance(answer["error"], Unexpected) and str(answer["error"]).startswith("KeyError: ")


def test_workers_that_come_to_the_same_end_return_the_first_one_s_error_without_a_restart():
    verdict, answers, together = Verdict(), {}, threading.Barrier(3)

    def worker(rank):
        def work():
            together.wait()
            raise TrainingDiverged(f"rank {rank}")

        answers[rank] = settled(work, verdict, rank=rank, world=3, seconds=30.0)

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3 and all(answer == {"error": verdict.error} for answer in answers.values())


@pytest.mark.parametrize("error", [StorageError("gone"), RuntimeError("Connection closed by peer"), OSError("cut")])
def test_an_error_that_may_pass_is_raised_and_stops_nobody(error):
    verdict = Verdict()
    with pytest.raises(type(error)):
        settled(failing(error), verdict, rank=0, world=2)
    assert settled(lambda: 1, verdict, rank=0, world=2) == {"value": 1}


def test_one_worker_alone_returns_its_error_at_once():
    error = TrainingDiverged("alone")
    assert settled(failing(error), Verdict(), rank=0, world=1) == {"error": error}


class Trainer:
    """Ray Train's end, as `fit` sees it."""

    def __init__(self, raised):
        self.raised = raised

    def fit(self):
        raise self.raised


def test_the_job_ends_with_the_worker_s_error_whatever_ray_train_makes_of_it():
    from nvg.training.ray_train import _answer

    verdict, error = Verdict(), DataError("one image is broken")
    with pytest.raises(RuntimeError, match="two workers failed"):
        _answer(Trainer(RuntimeError("two workers failed")), verdict)
    verdict.add(1, error)
    assert _answer(Trainer(RuntimeError("two workers failed")), verdict) == {"error": error}
