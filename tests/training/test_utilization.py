"""How much of a GPU a training uses: what is counted, logged and shown."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import Place, train
from nvg.training.seeds import seeded
from nvg.training.tokenizer_task import TokenizerTask
from nvg.training.utilization import device_peak, peak_flops, shown, speed
from tests.support.recorders import Recorder, SilentBar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config
from tests.support.toy_streams import CLASSES, CPU, QUICK, autoencoder_of, image_stream, token_stream


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_or_unknown(name, tflops):
    assert peak_flops(name) == (tflops and pytest.approx(1e12 * tflops))


def test_a_cpu_has_no_peak():
    assert device_peak(CPU) is None


class Counted(ToyTask):
    def flops(self):
        return 2e12


@pytest.mark.parametrize("peak", [None, 4e15])
def test_a_worker_s_share_of_the_operations_is_logged_and_shown(tmp_path, monkeypatch, peak):
    monkeypatch.setattr("nvg.training.loop.device_peak", lambda device: peak)
    run, bars = Recorder(None), []

    def bar(total, description):
        bars.append(SilentBar(total, description))
        return bars[-1]

    settings = toy_settings(precision="bfloat16")
    train(Counted(), settings, toy_config(), str(tmp_path), place=Place(bar=bar), start_tracking=lambda _: run)
    for metrics, text in zip(run.points.values(), bars[0].descriptions[1:], strict=True):
        tflops = metrics["images_per_second"] * 2
        assert metrics["tflops_per_worker"] == pytest.approx(tflops)
        if peak is None:
            assert "model_flop_utilization" not in metrics and text.endswith(f", {tflops:.3g} TFLOP/s")
        else:
            assert metrics["model_flop_utilization"] == pytest.approx(tflops / 4e3)
            assert text.endswith(f", {tflops / 4e3:.0%} of the peak")


def test_in_float32_no_share_of_the_bfloat16_peak_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr("nvg.training.loop.device_peak", lambda device: 1e15)
    run = Recorder(None)
    settings = toy_settings(precision="float32")
    train(Counted(), settings, toy_config(), str(tmp_path), place=Place(bar=SilentBar), start_tracking=lambda _: run)
    assert all("tflops_per_worker" in one and "model_flop_utilization" not in one for one in run.points.values())


def test_nothing_is_logged_where_nobody_counted(tmp_path):
    run = Recorder(None)
    place = Place(bar=SilentBar)
    train(ToyTask(), toy_settings(), toy_config(), str(tmp_path), place=place, start_tracking=lambda _: run)
    assert not any("tflops_per_worker" in one for one in run.points.values()) and shown({}) == ""


def test_small_speeds_are_shown_as_gflops():
    assert shown(speed(2.5e9, None)) == ", 2.5 GFLOP/s"
    assert shown(speed(2.5e12, 10e12)) == ", 25% of the peak"


def generators(parts):
    config = toy_config(train=QUICK | {"parts": parts, "class_dropout": 0.1}, content={"depth": 2})
    autoencoder = autoencoder_of(config)
    return GeneratorTask(config, autoencoder, token_stream(autoencoder), 9, class_names=CLASSES, device=CPU)


TASKS = {
    "both": lambda: generators(["content", "structure"]),
    "content": lambda: generators(["content"]),
    "structure": lambda: generators(["structure"]),
    "tokenizer": lambda: TokenizerTask(
        toy_config(tokenizer_train={"index_backprop_epochs": 0}), image_stream(), 9, 3, device=CPU
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_operations_are_those_of_a_step(name):
    """Counted by torch over a real step; losses and the classifier of tokens come on top, and little else."""
    task = TASKS[name]()
    batch = next(task.batches(0))
    with FlopCounterMode(display=False) as counter:
        task.loss(task.draw(batch, seeded(0)), 0, seeded(0))[0].backward()
    images = len(next(iter(batch.values())))
    ratio = counter.get_total_flops() / images / task.flops()
    assert 0.9 < ratio < 1.25
    torch.manual_seed(0)
    before = torch.get_rng_state()
    task.flops()
    assert torch.equal(torch.get_rng_state(), before)
