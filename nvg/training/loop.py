"""The training loop, one for the tokenizer and the generators. It knows neither Ray nor any model.

A `Task` says what is trained: modules, optimizers, batches, the loss. A `Place` says where: which worker of how many,
on what device, how to report. Exact resumption is by construction: every random draw is a function of (seed, step,
slice of the batch) and the data position is the step, so weights, averages, moments and the step are the whole state.
A slice's number does not depend on who computes it: 2 workers draw what 1 worker with 2 accumulated slices draws. And
a step has the same slices however many workers are left, so losing some costs time and neither memory nor the result.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.profiler import record_function as part_of_step  # names that benchmarks/step_profile.py reads

from nvg import storage
from nvg.config import Config
from nvg.errors import TrainingDiverged
from nvg.training.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    list_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from nvg.training.ema import EMA
from nvg.training.parallel import exchange_gradients, shards, whole
from nvg.training.prefetch import Prefetch

Batch = dict[str, Tensor]


EXPLODED = 5.0  # times the loss of the first record, that of a network which knows nothing: no training is there


class Task:
    """What is trained. Subclasses fill the attributes and override what they need."""

    modules: dict[str, nn.Module]  # whatever has state to keep, without any wrapper
    averages: dict[str, EMA]  # of some of the modules
    optimizers: dict[str, torch.optim.Optimizer]
    clip: dict[str, list[nn.Parameter]]  # groups of parameters, each clipped to its own norm
    parallel: list[nn.Module]  # modules as they are called, by whichever data parallelism (nvg/training/parallel.py)

    def lr(self, step: int) -> dict[str, float]:
        """The learning rate of each optimizer."""
        raise NotImplementedError

    def batches(self, step: int) -> Iterator[Batch]:
        """This worker's share of every batch from number `step` on, without end."""
        raise NotImplementedError

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a slice and what to record of it. `generator` (CPU) and torch's own are seeded for this slice."""
        raise NotImplementedError

    def begin(self, batch: Batch, generator: torch.Generator) -> None:
        """Called once, with the first batch, before step 0."""

    def before_optimizers(self) -> None:
        """Called when the gradients of a step are complete."""

    def after_step(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Called after a step and its averaging; returns more to record."""
        return {}

    def averaged(self) -> dict[str, dict[str, Tensor]]:
        """The averaged weights of each part, whole: every worker must call it."""
        return {name: {key: whole(value) for key, value in ema.shadow.items()} for name, ema in self.averages.items()}

    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Pictures of the present state by file name (PIL). Called on the first worker alone."""
        return {}


class Bar(Protocol):
    """The part of tqdm that is used."""

    def update(self, n: int = 1) -> Any: ...
    def set_description(self, desc: str) -> Any: ...
    def close(self) -> Any: ...


def terminal_bar(total: int, description: str) -> Bar:
    """A tqdm bar on this process's standard error."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="step", dynamic_ncols=True, file=sys.stderr)


@dataclass
class Place:
    """Where a loop runs."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, float]], None] = lambda metrics: None  # a barrier: every worker calls it equally often
    leaving: Callable[[], bool] = lambda: False  # whether a worker's machine is about to be taken away; a barrier too
    bar: Callable[[int, str], Bar] = terminal_bar

    def own(self, slices: int) -> range:
        """The numbers of this worker's slices of a step that has so many; as even as can be, at least one."""
        return range(self.rank * slices // self.world, (self.rank + 1) * slices // self.world)


@dataclass(frozen=True)
class Settings:
    """How long and in what portions."""

    job: str
    total_steps: int
    batch_size: int  # over all workers
    slices: int  # micro-batches a step, over all workers: what is computed at once
    clip_norm: float
    checkpoint_every: int
    log_every: int
    preview_every: int
    precision: str
    seed: int
    identity: str  # of the configuration: checkpoints of another one are refused


def train(
    task: Task,
    settings: Settings,
    config: Config,
    checkpoints: str,
    *,
    place: Place | None = None,
    start_tracking: Callable[[str | None], Any] | None = None,
) -> dict[str, Any]:
    """Train to the last step, going on from the newest checkpoint of folder `checkpoints`; returns figures.

    start_tracking: called on the first worker with the run id of the checkpoint (or None); returns an
    nvg.tracking.Run. On success it is left open, for the caller to add what the job makes and to end it.
    Raises TrainingDiverged on a loss that is not finite, or EXPLODED times what it was at first; the newest checkpoint
    is then of a step at which it was still well.
    """
    place = place or Place()
    if settings.batch_size % settings.slices or place.world > settings.slices:
        raise ValueError(
            f"batch_size={settings.batch_size} in {settings.slices} slices for {place.world} workers: slices must be "
            "equal, and every worker needs one"
        )
    newest = latest_checkpoint(checkpoints)
    first, run_id, first_loss = 0, None, None
    if newest is not None:
        metadata = restore_checkpoint(
            newest, modules=task.modules, averages=task.averages, optimizers=task.optimizers, identity=settings.identity
        )
        first, run_id, first_loss = int(metadata["step"]), metadata["run_id"], metadata.get("first_loss")
    # The stream is opened first: it and MLflow take seconds to start, side by side.
    batches = task.batches(first) if first < settings.total_steps else iter(())
    stream = Prefetch(map(pinned, batches) if place.device.type == "cuda" else batches)
    run = None
    try:
        run = start_tracking(run_id) if start_tracking is not None and place.rank == 0 else None
        return Loop(task, settings, config, checkpoints, place, run, first, first_loss).go(stream)
    except BaseException:
        if run is not None:
            run.end("FAILED")
        raise
    finally:
        stream.close()


class Loop:
    """`train` from where it starts to where it ends."""

    def __init__(
        self,
        task: Task,
        settings: Settings,
        config: Config,
        checkpoints: str,
        place: Place,
        run: Any,
        first: int,
        first_loss: float | None,
    ) -> None:
        self.task, self.settings, self.config, self.place, self.run = task, settings, config, place, run
        self.checkpoints = checkpoints
        self.first = first
        self.first_loss = first_loss  # of the first record of the training
        self.well = first  # the last step at which the loss was looked at and found well
        self.autocast = autocast(settings.precision, place.device)
        self.own = place.own(settings.slices)
        # Of a slice in a worker's sum: gradients and records are means over the workers, whose shares may differ.
        self.weights = [place.world / settings.slices] * len(self.own)
        self.shards = max(map(shards, task.modules.values()))
        if self.shards > 1:  # a pass gathers weights from all, so all make as many: some do their last slice in vain
            self.weights += [0.0] * (math.ceil(settings.slices / place.world) - len(self.own))
        self.waited = 0.0  # seconds for data, in this process
        self.window = Window()
        self.warned = False  # that a machine is leaving

    def go(self, stream: Iterator[Batch]) -> dict[str, Any]:
        """Train from the first step to the last one; returns figures."""
        task, settings, place = self.task, self.settings, self.place
        for module in task.modules.values():
            module.train()
        started = time.perf_counter()
        steps = range(self.first, settings.total_steps)
        bar = None
        if place.rank == 0 and len(steps):
            where = f" from step {self.first}" if self.first else ""
            bar = place.bar(len(steps), settings.job + where)
        try:
            metrics = self.steps(steps, stream, bar)
        finally:
            if bar is not None:
                bar.close()
        seconds = time.perf_counter() - started
        self.preview(settings.total_steps)
        return self.summary(len(steps), seconds, metrics)

    def steps(self, steps: range, stream: Iterator[Batch], bar: Bar | None) -> dict[str, float]:
        """All steps, with what is due after them; returns the last record."""
        settings, place = self.settings, self.place
        metrics: dict[str, float] = {}
        for step in steps:
            self.step(step, stream)
            done, notice = step + 1, False
            due = done % settings.checkpoint_every == 0 or done == settings.total_steps
            if done % settings.log_every == 0 or done == settings.total_steps:
                with part_of_step("record"):
                    metrics = self.window.close(place)
                    metrics["images_per_second"] = metrics.pop("steps_per_second") * settings.batch_size
                    self.watch(metrics["loss"], done)
                    if bar is not None:
                        bar.set_description(f"{settings.job}  loss {metrics['loss']:.4g}")
                    if self.run is not None:
                        self.run.log_metrics(metrics, done)
                    leaving = place.leaving()
                    notice = leaving and not self.warned
                    self.warned = leaving
            if settings.preview_every and done % settings.preview_every == 0 and done < settings.total_steps:
                self.preview(done)
            if due or notice:
                with part_of_step("checkpoint"):
                    self.checkpoint(done, notice)
                place.report({"step": done, "loss": metrics.get("loss", math.nan)})
            if bar is not None:
                bar.update(1)
        return metrics

    def step(self, step: int, stream: Iterator[Batch]) -> None:
        """Optimizer step number `step`."""
        task, settings, place = self.task, self.settings, self.place
        began = time.perf_counter()
        with part_of_step("data"):
            batch = next(stream)
        with part_of_step("move"):
            batch = {name: value.to(place.device, non_blocking=True) for name, value in batch.items()}
        waited = time.perf_counter() - began
        self.waited += waited
        if step == 0:
            # One slice: the same images, however many workers there are.
            task.begin(slice_of(batch, 0, len(self.own)), seeded(settings.seed, "begin"))
        with part_of_step("rates"):
            rates = task.lr(step)
            for name, optimizer in task.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = rates[name]
                optimizer.zero_grad(set_to_none=True)
        for done, weight in enumerate(self.weights, start=1):
            part = min(done, len(self.own)) - 1
            with part_of_step("seeds"):
                number = self.own[part]
                generator = seeded(settings.seed, step, number)
                seed_dropout(draw_seed(settings.seed, step, number, "dropout"), place.device)
            for module in task.parallel:
                exchange_gradients(module, done == len(self.weights))
            with part_of_step("forward"), self.autocast():
                loss, terms = task.loss(slice_of(batch, part, len(self.own)), step, generator)
            with part_of_step("backward"):
                (loss * weight).backward()
            with part_of_step("record"):
                self.window.add({"loss": loss, **terms}, weight)
        with part_of_step("clip"):
            task.before_optimizers()
            norms = {
                name: whole(nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True))
                for name, parameters in task.clip.items()
            }
            # Gradients are summed over the workers, so all of them see the same and stop together, weights unhurt.
            # This is the one moment of a step in which the host waits for the device.
            if not all(map(math.isfinite, torch.stack(list(norms.values())).tolist())):
                values = ", ".join(f"{name} {float(norm):.3g}" for name, norm in norms.items())
                raise self.diverged(step, f"loss {float(loss.detach()):.3g}, gradient norms {values}")
        with part_of_step("optimizer"):
            for optimizer in task.optimizers.values():
                optimizer.step()
        with part_of_step("average"):
            for average in task.averages.values():
                average.update()
        with part_of_step("record"):
            self.window.last |= task.after_step(step, seeded(settings.seed, step, "after"))
            self.window.last |= {f"lr/{name}": rate for name, rate in rates.items()}
            self.window.add({f"gradient_norm/{name}": norm for name, norm in norms.items()}, 1.0)
            self.window.count(waited)

    def watch(self, loss: float, done: int) -> None:
        """Look at the mean loss since the last record, which is the same on all workers. Raises TrainingDiverged."""
        if self.first_loss is None:
            self.first_loss = loss
        if abs(loss) > EXPLODED * abs(self.first_loss):
            raise self.diverged(done, f"loss {loss:.3g}, which was {self.first_loss:.3g} at first")
        self.well = done

    def diverged(self, step: int, what: str) -> TrainingDiverged:
        """The error to raise; checkpoints since the loss was well go, so that the newest one is good."""
        newest = None
        if self.place.rank == 0:
            for checkpoint in list_checkpoints(self.checkpoints):
                if checkpoint_step(checkpoint) > self.well:
                    storage.remove(checkpoint)
            newest = latest_checkpoint(self.checkpoints)
        return TrainingDiverged(
            f"{self.settings.job} stopped at step {step}: {what}. The last good state is "
            f"{newest or 'the beginning'}. Lower lr or raise warmup_steps"
        )

    def checkpoint(self, done: int, notice: bool) -> None:
        """Write a checkpoint, on the first worker or, of split weights, on all.

        done: how many steps are. notice: whether it was announced that a machine is about to be taken away.
        """
        if self.place.rank < self.shards:
            save_checkpoint(
                self.checkpoints,
                done,
                modules=self.task.modules,
                averages=self.task.averages,
                optimizers=self.task.optimizers,
                config=self.config,
                shard=self.place.rank,
                shards=self.shards,
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
            "resumed_from": self.first,
            "seconds": round(seconds, 2),
            "images_per_second": round(steps * self.settings.batch_size / max(seconds, 1e-9), 1),
            "data_wait_share": round(self.waited / max(seconds, 1e-9), 4),
            "peak_memory_gb": round(peak_memory(self.place.device), 3),
            "workers": self.place.world,
            "loss": metrics.get("loss"),
        }
        if self.place.rank == 0:
            loss = f", loss {figures['loss']:.4g}" if figures["loss"] is not None else ""
            since = f" (went on from step {self.first})" if self.first else ""
            print(
                f"{self.settings.job}: {steps} steps in {seconds:.1f} s{since}, {figures['images_per_second']:g} "
                f"images/s, {100 * figures['data_wait_share']:.1f}% waiting for data, peak memory "
                f"{figures['peak_memory_gb']:.2f} GB{loss}",
                flush=True,
            )
        return figures


class Window:
    """Means over the steps since the last record, kept on the device until they are read."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}  # values of which the newest counts
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add a step's values, or the part `weight` of them."""
        for name, value in values.items():
            value = value.detach().float() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def count(self, waited: float) -> None:
        """One more step, which waited so many seconds for data."""
        self.steps += 1
        self.waited += waited

    def close(self, place: Place) -> dict[str, float]:
        """The means, over all workers too, and a fresh window. Every worker calls it."""
        stacked = torch.stack(list(self.sums.values())) / self.steps
        if place.world > 1:
            distributed.all_reduce(stacked)
            stacked /= place.world
        seconds = max(time.perf_counter() - self.began, 1e-9)
        metrics = dict(zip(self.sums, stacked.tolist(), strict=True)) | self.last
        metrics |= {"steps_per_second": self.steps / seconds, "data_wait_share": self.waited / seconds}
        self._reset()
        return metrics


def slice_of(batch: Batch, part: int, parts: int) -> Batch:
    """Slice number `part` of `parts` equal ones, by rows."""
    size = next(iter(batch.values())).shape[0] // parts
    return {name: value[part * size : (part + 1) * size] for name, value in batch.items()}


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies while the host goes on."""
    return {name: value.pin_memory() for name, value in batch.items()}


def workers() -> int:
    """How many workers train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def draw_seed(*parts: int | str) -> int:
    """A seed that is a function of its parts and of nothing else, 63 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(*parts))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed torch's own generators that a step draws from. torch.manual_seed asks every kind of device there is, which
    takes fifty times as long."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """The autocast context of a precision: auto is bfloat16 on a CUDA device that has it, else float32."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def peak_memory(device: torch.device) -> float:
    """The most that was in use so far, in GB: of the device when it is a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
