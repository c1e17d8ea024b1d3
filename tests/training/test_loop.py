"""The loop's promises, in one process: accumulation, clipping, exact resumption, the end on NaN."""

import pytest
import torch

from nvg import storage
from nvg.errors import TrainingDiverged
from nvg.training.checkpoint import latest_checkpoint, list_checkpoints
from nvg.training.loop import Place, train
from nvg.training.seeds import draw_seed, seed_dropout, seeded
from tests.support.recorders import Recorder, SilentBar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config


def run(task, folder, settings=None, **changes):
    reports, runs = [], []

    def start(run_id):
        runs.append(Recorder(run_id))
        return runs[-1]

    place = Place(report=reports.append, bar=SilentBar)
    settings = settings or toy_settings(**changes)
    try:
        figures = train(task, settings, toy_config(), str(folder), place=place, start_tracking=start)
    finally:
        run.last = runs[-1] if runs else None
    return figures, reports, runs[-1]


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_no_clipping_changes_no_gradient_and_records_the_same_norms(tmp_path):
    off, wide = ToyTask(dropout=0.0, scale=100.0), ToyTask(dropout=0.0, scale=100.0)
    recorders = [
        run(task, tmp_path / str(clip_norm), total_steps=3, clip_norm=clip_norm, log_every=1)[2]
        for task, clip_norm in ((off, 0.0), (wide, 1e30))
    ]
    assert_equal_states(off.state(), wide.state())
    (_, first), (_, second) = (sorted(recorder.points.items())[0] for recorder in recorders)
    assert first["gradient_norm/first"] == second["gradient_norm/first"] > 0


def test_accumulating_two_halves_equals_one_whole(tmp_path):
    whole, halves = ToyTask(dropout=0.0), ToyTask(dropout=0.0)
    run(whole, tmp_path / "whole", slices=1)
    run(halves, tmp_path / "halves", slices=2)
    for name, value in whole.state().items():
        torch.testing.assert_close(halves.state()[name], value, rtol=1e-4, atol=1e-5)


def test_each_part_is_clipped_to_its_own_norm(tmp_path):
    task = ToyTask(scale=100.0)
    seen = {}
    task.after_step = lambda step, rng: (
        seen.update(
            {
                name: float(torch.stack([p.grad.norm() for p in parameters]).norm())
                for name, parameters in task.clip.items()
            }
        )
        or {}
    )
    _, _, recorder = run(task, tmp_path, total_steps=1, clip_norm=0.25, log_every=1)
    assert seen == pytest.approx({"first": 0.25, "second": 0.25}, rel=1e-3)
    assert recorder.points[1]["gradient_norm/first"] > 0.25  # what is recorded is the norm before


@pytest.mark.parametrize("stop_at", [5, 9, 11])
def test_resumption_equals_an_unbroken_run_bit_by_bit(tmp_path, stop_at):
    unbroken = ToyTask()
    _, _, unbroken_run = run(unbroken, tmp_path / "unbroken", slices=2)
    with pytest.raises(InterruptedError):
        run(ToyTask(stop_at=stop_at), tmp_path / "broken", slices=2)
    assert run.last.status == "FAILED"
    torch.manual_seed(999)  # a new process begins with other global random numbers
    resumed = ToyTask()
    figures, _, recorder = run(resumed, tmp_path / "broken", slices=2)
    assert figures["resumed_from"] == stop_at // 4 * 4
    assert resumed.begin_calls == 0
    assert_equal_states(resumed.state(), unbroken.state())
    assert recorder.id == "run-1"
    assert recorder.points[12]["loss"] == unbroken_run.points[12]["loss"]


def test_a_finished_training_does_no_step_again(tmp_path):
    first, again = ToyTask(), ToyTask()
    run(first, tmp_path)
    figures, reports, _ = run(again, tmp_path)
    assert figures["steps_now"] == 0 and reports == []
    assert_equal_states(again.state(), first.state())


def test_the_last_two_checkpoints_stay(tmp_path):
    run(ToyTask(), tmp_path, total_steps=11)
    assert [path.rsplit("/", 1)[1] for path in list_checkpoints(str(tmp_path))] == ["step-00000008", "step-00000011"]


def test_a_notice_makes_one_checkpoint_at_the_next_record(tmp_path):
    """Records are at steps 3, 6, 9 and 12; the notice stays from then on."""
    place = Place(leaving=lambda: True, bar=SilentBar)
    train(ToyTask(), toy_settings(checkpoint_every=100), toy_config(), str(tmp_path), place=place)
    found = [storage.read_json(f"{path}/metadata.json") for path in list_checkpoints(str(tmp_path))]
    assert [(one["step"], one["notice"]) for one in found] == [(3, True), (12, False)]


def test_workers_report_at_every_checkpoint(tmp_path):
    _, reports, recorder = run(ToyTask(), tmp_path)
    assert [report["step"] for report in reports] == [4, 8, 12]
    assert sorted(recorder.points) == [3, 6, 9, 12]
    assert {"loss", "first", "second", "lr/first", "images_per_second", "data_wait_share"} <= recorder.points[3].keys()
    assert recorder.status is None  # left open for the caller


def test_nan_stops_with_weights_unhurt_and_names_the_last_good_checkpoint(tmp_path):
    task = ToyTask(nan_at=6)
    with pytest.raises(TrainingDiverged, match=r"stopped at step 6: loss nan.*step-00000004") as error:
        run(task, tmp_path)
    assert "Lower lr" in str(error.value)
    assert latest_checkpoint(str(tmp_path)).endswith("step-00000004")
    assert all(value.isfinite().all() for value in task.state().values())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_loss_that_explodes_stops_at_the_last_checkpoint_at_which_it_was_well(tmp_path, resumed):
    class Exploding(ToyTask):
        def loss(self, batch, step, rng):
            loss, terms = super().loss(batch, step, rng)
            return loss * (1.0 if step < 7 else 1e3), terms  # finite

    if resumed:  # what the loss was at first is in the checkpoint
        with pytest.raises(InterruptedError):
            run(ToyTask(stop_at=5), tmp_path)
    with pytest.raises(TrainingDiverged, match=r"stopped at step 9: loss .*, which was .* at first.*step-00000004\."):
        run(Exploding(), tmp_path)
    assert run.last.status == "FAILED"
    assert [path[-8:] for path in list_checkpoints(str(tmp_path))] == ["00000004"]  # 8, between two records, is gone


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size=8 in 3 slices for 1 workers"):
        run(ToyTask(), tmp_path, slices=3)


def test_previews_come_at_their_steps_and_at_the_end(tmp_path):
    task = ToyTask()
    task.preview = lambda averaged: {"samples.png": object()}
    _, _, recorder = run(task, tmp_path, preview_every=5)
    assert recorder.images == [f"previews/{step:08d}-samples.png" for step in (5, 10, 12)]


def test_a_sampler_is_left_for_evaluation_at_its_steps_but_the_last(tmp_path):
    """The last step's is the artifact itself. A training that goes on leaves those that it had not come to."""
    left = []
    place = Place(evaluate=lambda metrics, sampler: left.append((metrics["step"], sampler)), bar=SilentBar)
    for steps, expected in ((8, [3, 6]), (12, [9])):
        train(
            ToyTask(),
            toy_settings(evaluate_every=3, total_steps=steps),
            toy_config(),
            str(tmp_path),
            place=place,
            snapshot=lambda done: f"sampler of {done}",
        )
        assert left == [(step, f"sampler of {step}") for step in expected]
        left.clear()


def test_draws_are_a_function_of_seed_step_and_slice():
    assert draw_seed(0, 1, 2) == draw_seed(0, 1, 2)
    assert len({draw_seed(seed, step, part) for seed in range(3) for step in range(3) for part in range(3)}) == 27
    assert torch.equal(torch.rand(4, generator=seeded(1, 2)), torch.rand(4, generator=seeded(1, 2)))


def test_dropout_draws_what_torch_manual_seed_lets_it_draw():
    torch.manual_seed(7)
    expected = torch.nn.functional.dropout(torch.ones(50))
    seed_dropout(7, torch.device("cpu"))
    assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), expected)
