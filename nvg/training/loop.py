"""The training loop, one for the tokenizer and the generators. It knows neither Ray nor any model.

A `Task` says what is trained: modules, optimizers, batches, the loss. A `Place` says where: which worker of how many,
on what device, how to report. Exact resumption is by construction: every random draw is a function of (seed, step,
slice of the batch) and the data position is the step, so weights, averages, moments and the step are the whole state.
A slice's number does not depend on who computes it: 2 workers draw what 1 worker with 2 accumulated slices draws. And
a step has the same slices for any number of workers, so losing some costs time, and changes neither memory nor result.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nvg import storage
from nvg.config import Config
from nvg.console import Bar, progress, say
from nvg.errors import TrainingDiverged
from nvg.precision import set_precision
from nvg.tracking import Run
from nvg.training.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    list_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from nvg.training.clipping import EPSILON, divisor, gradient_norm, step_divided
from nvg.training.micro_batch import missing_moments, most_rows, parts_of
from nvg.training.parallel import exchange_gradients, shards
from nvg.training.prefetch import Feed
from nvg.training.saver import Saver
from nvg.training.seeds import draw_seed, seed_dropout, seeded
from nvg.training.task import Batch, Task
from nvg.training.utilization import device_peak, shown, speed
from nvg.training.window import Window

EXPLODED = 5.0  # times the loss of the first record, that of a network which knows nothing: no training gets there


@dataclass
class Place:
    """Where a loop runs: which worker of how many, on what device, and whom it reports to."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, float]], None] = lambda metrics: None  # a barrier: every worker calls it equally often
    # The same barrier, with the folder of a sampler of the present weights (on the first worker) to be evaluated.
    evaluate: Callable[[dict[str, float], str | None], None] = lambda metrics, sampler: None
    leaving: Callable[[], bool] = lambda: False  # whether a worker's machine is about to be taken away; a barrier too
    bar: Callable[[int, str], Bar] = progress

    def share(self, slices: int) -> range:
        """The numbers of this worker's slices, of a step that has `slices`: as even as can be, at least one."""
        return range(self.rank * slices // self.world, (self.rank + 1) * slices // self.world)


@dataclass(frozen=True)
class LoopSettings:
    """How long a loop trains, and in what portions."""

    job: str
    total_steps: int
    batch_size: int  # over all workers
    slices: int  # of a step, over all workers: random numbers are drawn for a slice
    micro_batch: int | None  # rows of a slice that are computed at once; None = as many as fit into a GPU, else all
    clip_norm: float
    checkpoint_every: int
    log_every: int
    preview_every: int
    evaluate_every: int  # 0 = never
    precision: str
    seed: int
    identity: str  # of the configuration: checkpoints of another one are refused


@dataclass(frozen=True)
class Start:
    """Where a training goes on from: its beginning, or a checkpoint."""

    step: int = 0
    run_id: str | None = None
    first_loss: float | None = None  # of the first record of the training


def train(
    task: Task,
    settings: LoopSettings,
    config: Config,
    checkpoints: str,
    *,
    place: Place | None = None,
    start_tracking: Callable[[str | None], Run] | None = None,
    snapshot: Callable[[int], str | None] = lambda done: None,
) -> dict[str, Any]:
    """Train to the last step, going on from the newest checkpoint of folder `checkpoints`; returns figures.

    start_tracking: called on the first worker with the run id of the checkpoint (or None); returns a run. On success
    the run is left open, for the caller to add the job's results and to end it.
    snapshot: called on every worker with the number of steps done, writes a sampler of the present averages for an
    evaluation while it trains; returns its folder on the first worker.
    Raises TrainingDiverged for a loss that is not finite, or EXPLODED times what it was at first; the newest checkpoint
    is then of a step at which the loss was still good.
    """
    place = place or Place()
    if settings.batch_size % settings.slices or place.world > settings.slices:
        raise ValueError(
            f"batch_size={settings.batch_size} in {settings.slices} slices for {place.world} workers: slices must be "
            "equal, and every worker needs one"
        )
    start = restore(task, checkpoints, settings.identity)
    # The stream is opened first: it and MLflow take seconds to start, side by side.
    batches = task.batches(start.step) if start.step < settings.total_steps else iter(())
    stream = Feed(batches, place.device)
    run = None
    try:
        if start_tracking is not None and place.rank == 0:
            run = start_tracking(start.run_id)
        loop = Loop(
            task,
            settings,
            config=config,
            checkpoints=checkpoints,
            place=place,
            run=run,
            start=start,
            snapshot=snapshot,
        )
        return loop.train(stream)
    except BaseException:
        if run is not None:
            run.end("FAILED")
        raise
    finally:
        stream.close()


def restore(task: Task, checkpoints: str, identity: str) -> Start:
    """Put the newest checkpoint of a folder into a task; returns where the training goes on."""
    newest = latest_checkpoint(checkpoints)
    if newest is None:
        return Start()
    metadata = restore_checkpoint(
        newest, modules=task.modules, averages=task.averages, optimizers=task.optimizers, identity=identity
    )
    return Start(int(metadata["step"]), metadata["run_id"], metadata.get("first_loss"))


class Loop:
    """A training from where it starts to its last step. benchmarks/step_profile.py times the methods of a step."""

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        *,
        config: Config,
        checkpoints: str,
        place: Place,
        run: Run | None = None,
        start: Start,
        snapshot: Callable[[int], str | None] = lambda done: None,
    ) -> None:
        """config: written into checkpoints. run: of the first worker, where the job is tracked. snapshot: as `train`
        has it."""
        self.task, self.settings, self.config, self.place, self.run = task, settings, config, place, run
        self.snapshot = snapshot
        self.checkpoints = checkpoints
        self.first_step = start.step
        self.first_loss = start.first_loss
        self.good_step = start.step  # the last step at which the loss was looked at and found good
        self.dtype = set_precision(settings.precision, place.device, training=True)
        self.share = place.share(settings.slices)
        # Of a slice in a worker's sum: gradients and records are means over the workers, whose shares may differ.
        self.weights = [place.world / settings.slices] * len(self.share)
        self.shards = max(map(shards, task.modules.values()))
        if self.shards > 1:  # a pass gathers weights from all, so all make as many: some do their last slice in vain
            self.weights += [0.0] * (math.ceil(settings.slices / place.world) - len(self.share))
        self.saver = Saver(place.rank, self.shards)
        self.unreported: dict[str, float] | None = None  # of the checkpoint in hand
        self.parts: int | None = None  # of a slice, one of which is computed at once; known from the first step on
        self.divisors: dict[str, Tensor] = {}  # of the gradients of this step that are clipped
        self.flops = task.flops() if place.rank == 0 else None  # of an image
        self.peak = device_peak(place.device) if self.dtype == torch.bfloat16 else None
        self.waited = 0.0  # seconds for data, in this process
        self.window = Window()
        self.warned = False  # that a machine is leaving

    # ---- from the first step to the last ----

    def train(self, stream: Iterator[Batch]) -> dict[str, Any]:
        """Train from the first step to the last one; returns figures."""
        task, settings, place = self.task, self.settings, self.place
        for module in task.modules.values():
            module.train()
        start = time.perf_counter()
        steps = range(self.first_step, settings.total_steps)
        bar = None
        if place.rank == 0 and len(steps):
            where = f" from step {self.first_step}" if self.first_step else ""
            bar = place.bar(len(steps), settings.job + where)
        try:
            with self.saver:
                metrics = self.steps(steps, stream, bar)
        finally:
            if bar is not None:
                bar.close()
        seconds = time.perf_counter() - start
        self.preview(settings.total_steps)
        return self.summary(len(steps), seconds, metrics)

    def steps(self, steps: range, stream: Iterator[Batch], bar: Bar | None = None) -> dict[str, float]:
        """Make some steps, each with what is due after it; returns the last record."""
        settings = self.settings
        metrics: dict[str, float] = {}
        for step in steps:
            self.step(step, stream)
            done, notice = step + 1, False
            ended = done == settings.total_steps
            if ended or done % settings.log_every == 0:
                metrics = self.log(done, bar)
                notice = self.notice()
            if settings.preview_every and done % settings.preview_every == 0 and not ended:
                self.preview(done)
            if ended or done % settings.checkpoint_every == 0 or notice:
                self.checkpoint(done, metrics.get("loss", math.nan), notice=notice)
            if ended or notice or self.saver.failed:
                self.written()
            if settings.evaluate_every and done % settings.evaluate_every == 0 and not ended:
                self.place.evaluate({"step": done}, self.snapshot(done))
            if bar is not None:
                bar.update(1)
        return metrics

    # ---- a step ----

    def step(self, step: int, stream: Iterator[Batch]) -> None:
        """Optimizer step number `step`."""
        task, seed = self.task, self.settings.seed
        batch = self.fetch(stream)
        if step == 0:
            # One slice: the same images for any number of workers.
            task.begin(slice_of(batch, 0, len(self.share)), seeded(seed, "begin"))
        rates = self.set_rates(step)
        for done, weight in enumerate(self.weights, start=1):
            position = min(done, len(self.share)) - 1
            rng = self.seed_slice(step, self.share[position])
            rows = task.draw(slice_of(batch, position, len(self.share)), rng)
            if self.parts is None:
                self.parts = self.choose_parts(rows, step, rng)
            for part in range(self.parts):
                last = done == len(self.weights) and part == self.parts - 1
                for module in task.parallel:
                    exchange_gradients(module, last)
                loss, terms = self.forward(slice_of(rows, part, self.parts), step, rng)
                self.backward(loss * (weight / self.parts))
                self.window.add({"loss": loss, **terms}, weight / self.parts)
        norms = self.clip(step, loss)
        self.optimize()
        self.average()
        self.record(step, rates, norms)

    def choose_parts(self, rows: Batch, step: int, rng: torch.Generator) -> int:
        """The parts in which a slice is computed, the same on every worker. rows: a slice."""
        count, device = len(next(iter(rows.values()))), self.place.device
        if not self.task.divisible or count == 1:
            return 1
        most = self.settings.micro_batch
        if most is None and device.type == "cuda":

            def run(number: int) -> None:
                loss, _ = self.forward({name: value[:number] for name, value in rows.items()}, step, rng)
                self.backward(loss)

            reserved = missing_moments(self.task.optimizers.values())
            with torch.compiler.set_stance("force_eager"):  # compiled, a pass holds less, and is of one number of rows
                most = most_rows(run, count, device, reserved)
            for optimizer in self.task.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
        parts = parts_of(count, most or count)
        if parts > 1 and self.place.rank == 0:
            say(f"{self.settings.job}: {count // parts} of the {count} images of a slice are computed at once")
        return parts

    def fetch(self, stream: Iterator[Batch]) -> Batch:
        """The next batch, on the device."""
        start = time.perf_counter()
        batch = next(stream)
        seconds = time.perf_counter() - start
        self.waited += seconds
        self.window.waited += seconds
        return batch

    def set_rates(self, step: int) -> dict[str, float]:
        """Set and return the learning rates of a step, and forget the gradients of the step before."""
        rates = self.task.lr(step)
        for name, optimizer in self.task.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            optimizer.zero_grad(set_to_none=True)
        return rates

    def seed_slice(self, step: int, number: int) -> torch.Generator:
        """The random generator of a slice of a step; torch's global ones are seeded too."""
        seed_dropout(draw_seed(self.settings.seed, step, number, "dropout"), self.place.device)
        return seeded(self.settings.seed, step, number)

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a slice, and its terms."""
        with torch.autocast(self.place.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.task.loss(batch, step, rng)

    def backward(self, loss: Tensor) -> None:
        """Add a slice's gradients."""
        loss.backward()

    def clip(self, step: int, loss: Tensor) -> dict[str, Tensor]:
        """Have each optimizer clip its gradients; returns their norms before. Raises TrainingDiverged where one is not
        finite."""
        self.task.before_optimizers()
        norms = {name: gradient_norm(parameters) for name, parameters in self.task.clip.items()}
        # Gradients are summed over the workers, so all of them see the same and stop together, weights unhurt.
        # This is the one moment of a step in which the host waits for the device.
        found = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
        if not all(map(math.isfinite, found.values())):
            values = ", ".join(f"{name} {norm:.3g}" for name, norm in found.items())
            raise self.diverged(step, f"loss {float(loss.detach()):.3g}, gradient norms {values}")
        largest = self.settings.clip_norm or math.inf  # 0 = off
        self.divisors = {
            name: divisor(norms[name], largest) for name, norm in found.items() if norm + EPSILON > largest
        }
        return norms

    def optimize(self) -> None:
        """Change the weights."""
        for name, optimizer in self.task.optimizers.items():
            step_divided(optimizer, self.divisors.get(name))

    def average(self) -> None:
        """Take the new weights into their averages."""
        for average in self.task.averages.values():
            average.update()

    def record(self, step: int, rates: dict[str, float], norms: dict[str, Tensor]) -> None:
        """Add a step to the window of the next record."""
        window = self.window
        window.last |= self.task.after_step(step, seeded(self.settings.seed, step, "after"))
        window.last |= {f"lr/{name}": rate for name, rate in rates.items()}
        window.add({f"gradient_norm/{name}": norm for name, norm in norms.items()}, 1.0)
        window.steps += 1

    # ---- what is due after a step ----

    def log(self, done: int, bar: Bar | None) -> dict[str, float]:
        """Record the means since the last record, and look at the loss. Raises TrainingDiverged.

        done: how many steps are done.
        """
        metrics = self.window.close()
        metrics["images_per_second"] = rate = metrics.pop("steps_per_second") * self.settings.batch_size
        if self.flops is not None:
            metrics |= speed(rate * self.flops / self.place.world, self.peak)
        self.check_loss(metrics["loss"], done)
        if bar is not None:
            bar.set_description(f"{self.settings.job}  loss {metrics['loss']:.4g}{shown(metrics)}")
        if self.run is not None:
            self.run.log_metrics(metrics, done)
        return metrics

    def notice(self) -> bool:
        """Whether it is announced, and was not at the last look, that a worker's machine is about to be taken away."""
        leaving = self.place.leaving()
        new = leaving and not self.warned
        self.warned = leaving
        return new

    def check_loss(self, loss: float, done: int) -> None:
        """Look at the mean loss since the last record, which is the same on all workers. Raises TrainingDiverged."""
        if self.first_loss is None:
            self.first_loss = loss
        if abs(loss) > EXPLODED * abs(self.first_loss):
            raise self.diverged(done, f"loss {loss:.3g}, which was {self.first_loss:.3g} at first")
        self.good_step = done

    def diverged(self, step: int, reason: str) -> TrainingDiverged:
        """The error to raise. Checkpoints since the loss was good are removed, so that the newest one is good."""
        newest = None
        if self.place.rank == 0:
            self.saver.wait()
            for checkpoint in list_checkpoints(self.checkpoints):
                if checkpoint_step(checkpoint) > self.good_step:
                    storage.remove(checkpoint)
            newest = latest_checkpoint(self.checkpoints)
        return TrainingDiverged(
            f"{self.settings.job} stopped at step {step}: {reason}. The last good state is "
            f"{newest or 'the beginning'}. Lower lr or raise warmup_steps"
        )

    def checkpoint(self, done: int, loss: float, *, notice: bool = False) -> None:
        """Begin a checkpoint, on the first worker or, where weights are split, on all: it is written while the training
        goes on. Waits for the one before.

        done: how many steps are done. loss: of the last record, for the report. notice: whether it was announced that a
        machine is about to be taken away.
        """
        self.written()
        self.unreported = {"step": done, "loss": loss}
        if self.place.rank < self.shards:
            save_checkpoint(
                self.saver,
                self.checkpoints,
                done,
                modules=self.task.modules,
                averages=self.task.averages,
                optimizers=self.task.optimizers,
                config=self.config,
                metadata={
                    "identity": self.settings.identity,
                    "seed": self.settings.seed,
                    "total_steps": self.settings.total_steps,
                    "workers": self.place.world,
                    "notice": notice,
                    "run_id": self.run.id if self.run is not None else None,
                    "first_loss": self.first_loss,
                },
            )

    def written(self) -> None:
        """Wait until the checkpoint in hand is written, and report it. Raises the error of writing it."""
        self.saver.wait()
        if self.unreported is not None:
            report, self.unreported = self.unreported, None
            self.place.report(report)

    def preview(self, done: int) -> None:
        """Log pictures of the present state, on the first worker."""
        averaged = self.task.averaged()
        if self.run is not None:
            for name, image in self.task.preview(averaged).items():
                self.run.log_image(image, f"previews/{done:08d}-{name}")

    def summary(self, steps: int, seconds: float, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The figures of a finished training, of which the first worker prints a line."""
        figures: dict[str, Any] = {
            "steps": self.settings.total_steps,
            "steps_now": steps,
            "resumed_from": self.first_step,
            "seconds": round(seconds, 2),
            "images_per_second": round(steps * self.settings.batch_size / max(seconds, 1e-9), 1),
            "data_wait_share": round(self.waited / max(seconds, 1e-9), 4),
            "peak_memory_gb": round(peak_memory(self.place.device), 3),
            "workers": self.place.world,
            "loss": metrics.get("loss"),
        }
        if self.place.rank == 0:
            loss = f", loss {figures['loss']:.4g}" if figures["loss"] is not None else ""
            since = f" (went on from step {self.first_step})" if self.first_step else ""
            say(
                f"{self.settings.job}: {steps} steps in {seconds:.1f} s{since}, {figures['images_per_second']:g} "
                f"images/s, {100 * figures['data_wait_share']:.1f}% waiting for data, peak memory "
                f"{figures['peak_memory_gb']:.2f} GB{loss}",
            )
        return figures


def slice_of(batch: Batch, number: int, count: int) -> Batch:
    """Slice `number` of `count` equal ones of a batch, by rows."""
    size = next(iter(batch.values())).shape[0] // count
    return {name: value[number * size : (number + 1) * size] for name, value in batch.items()}


def peak_memory(device: torch.device) -> float:
    """The peak of memory in use so far, in GB: of the device when it is a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
