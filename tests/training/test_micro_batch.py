"""A slice computed in parts: the same training, in as many parts as memory asks for, on every worker alike."""

import pytest
import torch

from nvg.config import TrainConfig
from nvg.generator.block import Block
from nvg.training import loop as training_loop
from nvg.training import micro_batch
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import Place, train
from nvg.training.micro_batch import missing_moments, most_rows, parts_of
from nvg.training.seeds import seed_dropout, seeded
from tests.support.generators import awake, every_form
from tests.support.recorders import Recorder, SilentBar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config
from tests.support.toy_streams import CLASSES, CPU, QUICK, autoencoder_of, token_stream

REPA = {"weights": "somewhere", "feature_width": 6, "block": 1}


def task_of(form="positions", stop_at=None, repa=None, **changes):
    """Both generators, no longer at their beginning, whose blocks are skipped by three of ten rows. repa: alignment,
    which has 4 million weights of its own."""
    tokens = "clusters" if form == "clusters" else "positions"
    forms = {"content": {"depth": 2, "tokens": tokens, "position_network": form != "positions"}}
    forms["structure"] = {"depth": 2, "canvas_tokens": tokens}
    config = toy_config(train=QUICK | changes, repa=repa or {}, **forms)
    autoencoder = autoencoder_of(config)
    stream = token_stream(autoencoder, stop_at, features=6 if repa else None)
    task = GeneratorTask(config, autoencoder, stream, 4, class_names=CLASSES, device=CPU)
    for module in task.modules.values():
        awake(module).train()
        for block in module.modules():
            if isinstance(block, Block):
                block.drop_rate = 0.3
    return task


def trained(task, folder, **changes):
    run = Recorder(None)
    settings = toy_settings(**{"total_steps": 4, "log_every": 1} | changes)
    train(task, settings, toy_config(), str(folder), place=Place(bar=SilentBar), start_tracking=lambda _: run)
    return task.averaged(), {step: metrics["loss"] for step, metrics in run.points.items()}


@every_form
def test_gradients_and_loss_are_those_of_the_whole_slice_whatever_the_parts(form):
    """Dropped classes, noise, times and skipped blocks too are those of the image, wherever it is computed."""
    found = {}
    for parts in (1, 2, 8):
        task = task_of(form, repa=REPA)
        rows = task.draw(next(task.batches(0)), seeded(1))
        total = 0.0
        for part in range(parts):
            seed_dropout(part, CPU)  # torch's own draws are not asked
            loss, _ = task.loss(training_loop.slice_of(rows, part, parts), 0, seeded(part))
            (loss / parts).backward()
            total += float(loss.detach()) / parts
        gradients = {name: value.grad for name, value in task.bare.named_parameters()}
        found[parts] = {"loss": torch.tensor(total), **gradients}
    assert all(value is not None for value in found[1].values())
    for parts in (2, 8):
        torch.testing.assert_close(found[parts], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_a_training_in_parts_is_the_training(tmp_path, slices):
    (whole, losses), (parts, found) = (
        trained(task_of(), tmp_path / str(most), slices=slices, micro_batch=most) for most in (None, 3)
    )
    assert found == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_training_goes_on_in_other_parts_from_where_it_was(tmp_path):
    whole, _ = trained(task_of(), tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(task_of(stop_at=3), tmp_path / "parts", micro_batch=3, checkpoint_every=2)
    parts, _ = trained(task_of(), tmp_path / "parts", micro_batch=2)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [8]), (8, [8]), (100, [8]), (7, [4, 4]), (3, [2, 2, 2, 2]), (1, [1] * 8)]
)
def test_parts_are_equal_and_no_larger_than_asked(tmp_path, monkeypatch, most, sizes):
    task, seen = task_of(), []
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda batch, *rest: seen.append(len(batch["labels"])) or loss(batch, *rest))
    trained(task, tmp_path, micro_batch=most, total_steps=1)
    assert seen == sizes


def test_a_task_that_draws_for_the_whole_slice_is_never_divided(tmp_path):
    found = []

    class Whole(ToyTask):
        def loss(self, batch, step, rng):
            found.append(len(batch["x"]))
            return super().loss(batch, step, rng)

    train(Whole(), toy_settings(micro_batch=2), toy_config(), str(tmp_path), place=Place(bar=SilentBar))
    assert set(found) == {8} and not Whole.divisible and GeneratorTask.divisible


def test_the_least_number_of_equal_parts():
    assert [parts_of(12, most) for most in (12, 11, 6, 5, 4, 3, 2, 1)] == [1, 2, 2, 3, 3, 4, 6, 12]
    assert parts_of(7, 6) == 7 and parts_of(1, 1) == 1


# ---- a GPU's memory ----


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for the allocator of a GPU: bytes of a pass are a constant and so much a row."""

    class Memory:
        fixed, each, free, passes = 100, 30, 1000, []

        def peak(self, run, rows, device):
            run(rows)
            return self.fixed + self.each * rows

    memory = Memory()
    memory.passes = []
    monkeypatch.setattr(micro_batch, "peak_bytes", memory.peak)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: memory.free)
    return memory


@pytest.mark.parametrize(
    ("free", "reserved", "most"),
    [(1000, 0, 26), (1000, 500, 11), (10**6, 0, 64), (200, 0, 2), (100, 0, 1), (0, 10**9, 1)],
)
def test_as_many_rows_as_fit_into_nine_tenths_of_what_is_free(gpu, free, reserved, most):
    gpu.free = free
    assert most_rows(gpu.passes.append, 64, CPU, reserved) == most
    assert gpu.passes == [1, 1, 2]  # the first one makes what stays
    held = gpu.fixed + gpu.each * most
    assert held <= 0.9 * (free - reserved) or most == 1
    assert most == 64 or held + gpu.each > 0.9 * (free - reserved)


def test_memory_that_does_not_grow_takes_all_rows(gpu):
    gpu.each = 0
    assert most_rows(gpu.passes.append, 64, CPU, 0) == 64


@every_form
def test_each_image_holds_as_much_as_the_one_before(form):
    """Which is why two passes tell what a larger one needs: bytes that autograd keeps, counted."""
    task, held = task_of(form), {}
    rows = task.draw(next(task.batches(0)), seeded(1))
    weights = {value.untyped_storage().data_ptr() for value in task.bare.state_dict(keep_vars=True).values()}
    for count in (1, 2, 8):
        kept = {}

        def keep(value, kept=kept):
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss, _ = task.loss({name: value[:count] for name, value in rows.items()}, 0, seeded(0))
        held[count] = sum(kept.values())
        del loss
    each = held[2] - held[1]
    assert each > 0 and held[8] == pytest.approx(held[1] + 7 * each, rel=0.05)


def test_moments_are_two_numbers_a_weight_until_they_are_there():
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    assert missing_moments([optimizer, optimizer]) == 2 * 2 * 4 * 8
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert missing_moments([optimizer]) == 0


def test_on_a_gpu_the_first_step_chooses_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """On a device that is called a GPU and computes on the CPU."""
    seen, measured = [], []
    task = task_of()
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda batch, *rest: seen.append(len(batch["labels"])) or loss(batch, *rest))
    monkeypatch.setattr(training_loop, "most_rows", lambda run, rows, device, reserved: chosen(run, rows, reserved))

    def chosen(run, rows, reserved):
        run(2)
        measured.append((rows, reserved))
        return 4

    settings = toy_settings(total_steps=4, log_every=1)
    arguments = {"config": toy_config(), "checkpoints": str(tmp_path), "place": Place(bar=SilentBar)}
    loop = training_loop.Loop(task, settings, start=training_loop.Start(), **arguments)
    rows = task.draw(next(task.batches(0)), seeded(1))

    class Named:
        type = "cuda"

    monkeypatch.setattr(loop.place, "device", Named())
    monkeypatch.setattr(loop, "forward", lambda batch, step, rng: task.loss(batch, step, rng))
    assert loop.choose_parts(rows, 0, seeded(1)) == 2
    numbers = sum(value.numel() for value in task.bare.parameters())
    assert seen == [2] and measured == [(8, 8 * numbers)]
    assert all(value.grad is None for value in task.bare.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_chosen_on_a_gpu_fits():
    device = torch.device("cuda")
    weight = torch.nn.Linear(4096, 4096, device=device)

    def run(rows):
        torch.nn.functional.gelu(weight(torch.ones(rows * 2**14, 4096, device=device))).square().sum().backward()

    most = most_rows(run, 10**6, device, 0)
    assert 1 < most < 10**6
    run(most)


def test_the_default_is_as_many_as_fit():
    assert TrainConfig().micro_batch is None
