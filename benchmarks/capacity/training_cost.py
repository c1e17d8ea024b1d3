"""Hours and dollars of training d16, d20 and d24 on 8 to 256 GPUs: a model set by what one H200 did.

    python -m benchmarks.capacity.training_cost [--gpus 8 32 64 256] [--utilization 0.36] [--network-gb-s 200] ...

Counted (counts.py): operations of a training step, how many the host starts for it, parameters, bytes. Everything else
is a field of `Assumptions`: an option, with its default and where that comes from in --help and in the table that is
printed. Prints the tables of docs/reports/training_cost.md.

A step: busy = max(compute + update, launches); total = max(busy + exposed all-reduce, reading). Functions give seconds,
bytes or dollars, as their docstrings say; a GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from benchmarks.capacity.counts import Counts, encoding_flops, generator_counts, tokenizer_counts
from benchmarks.schedules import FORMS
from nvg import config as configuration
from nvg.config import Config
from nvg.data.features import FETCHERS

CONFIGS = [f"conf/imagenet_d{depth}.yaml" for depth in (16, 20, 24)]
# As conf/imagenet_d16_released.yaml has it.
RELEASED = (*FORMS["positions"], "content.residual=false", "train.canvas_weight=1")
CHECKPOINT_BYTES = 16  # a parameter: weights, their average, two moments, float32
GRADIENT_BYTES = {"ddp": 4, "fsdp": 2}  # a parameter: float32, or bfloat16 (nvg/training/parallel.py)
GATHERED_BYTES = 2  # a parameter of a block that is split: bfloat16
UPDATE_BYTES = 48  # a parameter of GPU memory a step, of one that clips: norm 4, AdamW 32, average 12
MOST_GPUS = 10_000  # up to which the bound of reading is looked for


def assumed(default: float, meaning: str) -> Any:
    """A field of Assumptions: a number that was neither counted nor follows from others."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """A node is eight H200 with NVSwitch, 192 virtual CPUs and a 3,200 Gbit/s network (as AWS p5en.48xlarge)."""

    images: int = assumed(1_281_167, "training images: ILSVRC 2012")
    matmul_tflops: float = assumed(792, "of a GPU in bfloat16: measured on one H200")
    utilization: float = assumed(0.36, "share of it in a generators' step: measured there, compiled blocks; 0.2 before")
    tokenizer_tflops: float = assumed(120, "of a tokenizer's step, TF32: measured there, 124 images/s")
    encoder_tflops: float = assumed(112, "of the encoder, TF32: measured there, 822 images/s")
    clustering_ms: float = assumed(0.16, "clustering and quantization of an image: measured there, 16,500 and 9,950/s")
    memory_gb_s: float = assumed(4000, "of a GPU's memory: assumed, 83% of the data sheet's 4,800")
    op_us: float = assumed(5, "host's time to start an operation, views included: assumed, without compile")
    gpus_per_node: int = assumed(8, "GPUs of a node")
    cpus_per_node: int = assumed(192, "virtual CPUs of a node")
    nvlink_gb_s: float = assumed(450, "bus bandwidth of all-reduce in a node: assumed, half of NVLink's 900")
    network_gb_s: float = assumed(200, "bus bandwidth of all-reduce over nodes: assumed, half of 3,200 Gbit/s")
    overlap: float = assumed(0.8, "share of the backward pass that hides all-reduce: assumed")
    storage_gb_s: float = assumed(12.5, "of a node from the object store: assumed, 100 Gbit/s")
    stream_rows_s: float = assumed(
        51285, "token rows a second of a worker's stream: measured, docs/reports/benchmarks_parts.md"
    )
    fetch_gb_s: float = assumed(0.6, "features that a worker fetches and checks: measured, capacity.store_rates")
    request_ms: float = assumed(50, "a request to the object store, of a row's features: assumed")
    decode_ms: float = assumed(15.25, "a core's time for a view of a JPEG, lanczos8: measured, docs/reports/scale.md")
    image_kb: float = assumed(115.4, "bytes of a JPEG: the training archive over its images")
    host_gb_s: float = assumed(25, "of a GPU into the host's memory, for a checkpoint: assumed, half of PCIe 5's 50")
    checkpoint_gb_s: float = assumed(0.3, "a checkpoint to the object store, or back: assumed")
    group_s: float = assumed(8, "Ray Train's stop and start of a group: measured here with two workers on CPUs")
    preemptions: float = assumed(0.02, "of a spot node an hour: assumed, one in 50 hours")
    notice_s: float = assumed(120, "between a spot node's notice and its end: AWS")
    price: float = assumed(5.0, "dollars a GPU hour on demand: assumed")
    spot_price: float = assumed(2.5, "dollars a GPU hour, spot: assumed")


# ---- a step, a term a function ----


def compute_seconds(counts: Counts, images: float, a: Assumptions) -> float:
    """Seconds of a GPU for the operations of a number of images."""
    rate = a.tokenizer_tflops if counts.convolutions else a.matmul_tflops * a.utilization
    return images * counts.flops / (rate * 1e12)


def update_seconds(counts: Counts, a: Assumptions) -> float:
    """Seconds of a GPU a step for clipping, AdamW and averages: its memory's."""
    return counts.parameters * UPDATE_BYTES / (a.memory_gb_s * 1e9)


def launch_seconds(counts: Counts, slices: int, a: Assumptions) -> float:
    """Seconds of the host a step, to start the operations of its slices."""
    return slices * counts.ops * a.op_us * 1e-6


def all_reduce_bytes(counts: Counts, gpus: int) -> float:
    """Bytes that a GPU sends, in a ring. train.parallel=ddp, a step: each of n GPUs passes on 2 (n - 1) / n of the
    gradients. fsdp, a slice: (n - 1) / n of the weights before each half of the pass, and of the gradients."""
    sent = 2 * GATHERED_BYTES + GRADIENT_BYTES["fsdp"] if counts.split else 2 * GRADIENT_BYTES["ddp"]
    return (gpus - 1) / gpus * counts.parameters * sent


def all_reduce_seconds(counts: Counts, gpus: int, a: Assumptions) -> float:
    """Seconds of it: the ring's slowest link is NVLink in one node, the network between several."""
    bandwidth = a.nvlink_gb_s if gpus <= a.gpus_per_node else a.network_gb_s
    return all_reduce_bytes(counts, gpus) / (bandwidth * 1e9)


def exposed_seconds(all_reduce: float, beside: float, a: Assumptions) -> float:
    """Seconds of all-reduce that the work beside it does not hide: the backward pass of a step's last slice or, with
    fsdp, all passes."""
    return max(0.0, all_reduce - a.overlap * beside)


def token_reading_seconds(counts: Counts, batch: int, gpus: int, a: Assumptions) -> float:
    """Seconds a step until a worker has its tokens. Every worker streams the tokens of the whole batch
    (nvg/data/stream.py) and fetches the features of its own rows (nvg/data/features.py), one beside the other: the
    workers of a node share its network."""
    together, own = min(gpus, a.gpus_per_node), batch / gpus
    network = together * (batch * counts.item_bytes + own * counts.feature_bytes) / (a.storage_gb_s * 1e9)
    requests = own * a.request_ms * 1e-3 / FETCHERS if counts.feature_bytes else 0.0
    features = max(requests, own * counts.feature_bytes / (a.fetch_gb_s * 1e9))
    return max(network, batch / a.stream_rows_s, features)


def image_reading_seconds(counts: Counts, batch: int, gpus: int, cpus_per_worker: float, a: Assumptions) -> float:
    """Seconds a step until a worker has its images, of which it reads its own alone, on the CPUs that workers leave."""
    together = min(gpus, a.gpus_per_node)
    network = counts.item_bytes * together / (a.storage_gb_s * 1e9)
    return batch / gpus * max(network, a.decode_ms * 1e-3 / readers_per_gpu(cpus_per_worker, a))


def readers_per_gpu(cpus_per_worker: float, a: Assumptions) -> float:
    """CPUs that read for a GPU."""
    return a.cpus_per_node / a.gpus_per_node - cpus_per_worker


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by term."""

    compute: float
    update: float
    launches: float
    all_reduce: float
    exposed: float  # of all_reduce
    reading: float

    @property
    def busy(self) -> float:
        return max(self.compute + self.update, self.launches)

    @property
    def total(self) -> float:
        return max(self.busy + self.exposed, self.reading)

    @property
    def bound(self) -> str:
        """The term that says how long it takes."""
        if self.reading > self.busy + self.exposed:
            return "reading"
        if self.exposed > self.busy:
            return "all-reduce"
        return "launches" if self.launches > self.compute + self.update else "compute"


def step(counts: Counts, batch: int, gpus: int, reading: float, a: Assumptions, slices: int | None = None) -> StepTime:
    """A step of `batch` images on a number of workers of one GPU. slices: what the batch is cut into (default: one a
    worker). A worker that is lost leaves its slices to others: the step takes as long as the most that one has."""
    slices = slices or gpus
    most = math.ceil(slices / gpus)  # of one worker
    compute = compute_seconds(counts, most * batch / slices, a)
    launches = launch_seconds(counts, most, a)
    all_reduce = all_reduce_seconds(counts, gpus, a) * (most if counts.split else 1)
    busy = max(compute, launches)
    exposed = exposed_seconds(all_reduce, busy if counts.split else counts.backward * busy / most, a)
    return StepTime(compute, update_seconds(counts, a), launches, all_reduce, exposed, reading)


# ---- a training ----


def checkpoint_seconds(counts: Counts, a: Assumptions) -> float:
    """Seconds until the first worker's checkpoint is written; reading it back takes as long."""
    return counts.parameters * CHECKPOINT_BYTES / (a.checkpoint_gb_s * 1e9)


def stopped_seconds(counts: Counts, between: float, a: Assumptions) -> float:
    """Seconds for which a checkpoint stops the training: a copy into the host's memory, which a thread writes while the
    training goes on (nvg/training/saver.py), and the rest of the checkpoint before, if it is still written. between:
    seconds of the steps from one to the next."""
    copy = counts.parameters * CHECKPOINT_BYTES / (a.host_gb_s * 1e9)
    return copy + max(0.0, checkpoint_seconds(counts, a) - between)


def restart_seconds(counts: Counts, replayed: float, reading: float, a: Assumptions) -> float:
    """Seconds until a new group makes its first step: the start, the checkpoint, and the `replayed` batches of the
    epoch that are read again to come to where it was, `reading` seconds each at most (without their features)."""
    return a.group_s + checkpoint_seconds(counts, a) + replayed * reading


@dataclass(frozen=True)
class Training:
    """One training on a number of GPUs."""

    gpus: int
    step: StepTime
    steps: int
    batch: int
    checkpoint: float  # seconds a step for which checkpoints stop it; most steps make none

    @property
    def hours(self) -> float:
        """The hours without interruptions."""
        return self.steps * (self.step.total + self.checkpoint) / 3600


def training(
    counts: Counts, section: Any, gpus: int, reading: float, a: Assumptions, slices: int | None = None
) -> Training:
    """section: tokenizer_train or train of a configuration."""
    batch, steps_per_epoch = section.batch_size, a.images // section.batch_size
    steps = section.steps if section.steps is not None else math.ceil(section.epochs * steps_per_epoch)
    one = step(counts, batch, gpus, reading, a, slices)
    every = section.checkpoint_every
    return Training(gpus, one, steps, batch, stopped_seconds(counts, every * one.total, a) / every)


def train_generators(config: Config, counts: Counts, gpus: int, a: Assumptions) -> Training:
    """The training of both generators."""
    reading = token_reading_seconds(counts, config.train.batch_size, gpus, a)
    return training(counts, config.train, gpus, reading, a)


def train_tokenizer(config: Config, counts: Counts, gpus: int, a: Assumptions) -> Training:
    """The training of the tokenizer."""
    batch, cpus = config.tokenizer_train.batch_size, config.cluster.cpus_per_worker
    return training(counts, config.tokenizer_train, gpus, image_reading_seconds(counts, batch, gpus, cpus, a), a)


def encoding_seconds(encoder: float, features: float, a: Assumptions) -> float:
    """Seconds of a GPU an image whose tokens are built: operations of the encoder and of DINOv2, and clustering."""
    dino = features / (a.matmul_tflops * 1e12 * a.utilization)
    return encoder / (a.encoder_tflops * 1e12) + a.clustering_ms * 1e-3 + dino


def token_hours(images: float, encoding: float, cpus_per_worker: float, gpus: int, a: Assumptions) -> float:
    """Hours to build tokens of all images and views: encoders, or the CPUs that read for them."""
    reading = a.decode_ms * 1e-3 / readers_per_gpu(cpus_per_worker, a)
    return images * max(encoding, reading) / gpus / 3600


# ---- tables ----


def table(columns: str, rows: list[list[str]]) -> str:
    """A Markdown table. columns: their names, separated by bars."""
    lines = [f"| {columns} |", "|" + " --- |" * (columns.count("|") + 1), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def assumptions_table(a: Any) -> str:
    """Every assumption of a dataclass, its value and where it comes from."""
    fields = dataclasses.fields(a)
    rows = [[f"`--{f.name.replace('_', '-')}`", f"{getattr(a, f.name):,}", f.metadata["meaning"]] for f in fields]
    return table("assumption | value | what it is, and whose", rows)


@dataclass(frozen=True)
class Plan:
    """All three jobs of a configuration on a number of GPUs."""

    tokenizer: Training
    token_hours: float
    generators: Training

    @property
    def hours(self) -> float:
        """The hours of all jobs, one after the other."""
        return self.tokenizer.hours + self.token_hours + self.generators.hours


def plan(path: str, gpus: int, a: Assumptions, *settings: str) -> Plan:
    """The plan of a configuration with key=value settings on a number of GPUs."""
    config = configuration.load(path, settings)
    tokenizer = train_tokenizer(config, tokenizer_counts(path, a.image_kb), gpus, a)
    encoding = encoding_seconds(*encoding_flops(path), a)
    hours = token_hours(a.images * config.data.views, encoding, config.cluster.cpus_per_worker, gpus, a)
    return Plan(tokenizer, hours, train_generators(config, generator_counts(path, *settings), gpus, a))


def reading_bounds_from(counts: Counts, batch: int, a: Assumptions) -> int | None:
    """The least number of GPUs, of whole nodes, on which reading takes as long as compute; None above MOST_GPUS."""
    for gpus in range(a.gpus_per_node, MOST_GPUS + 1, a.gpus_per_node):
        if token_reading_seconds(counts, batch, gpus, a) >= compute_seconds(counts, batch / gpus, a):
            return gpus
    return None


def counted_cells(counts: Counts, batch: int, a: Assumptions) -> list[str]:
    """What is counted of a training, and where its tokens bound it."""
    bound = reading_bounds_from(counts, batch, a)
    return [
        f"{counts.flops / 1e9:,.0f}",
        f"{counts.ops:,.0f}",
        f"{counts.parameters / 1e6:,.1f}",
        f"{counts.parameters * CHECKPOINT_BYTES / 1e9:.1f}",
        "" if counts.convolutions else f"{bound:,}" if bound else f"more than {MOST_GPUS:,}",
    ]


def step_cells(one: Training, smallest: Training) -> list[str]:
    """A training on a number of GPUs: the terms of its step, what bounds it, its hours."""
    s = one.step
    used, least = one.hours * one.gpus, smallest.hours * smallest.gpus
    return [
        str(one.gpus),
        f"{one.batch / one.gpus:.3g}",
        *(f"{1e3 * value:,.0f}" for value in (s.compute, s.launches, s.exposed, s.reading, s.total)),
        s.bound,
        f"{one.batch / s.total:,.0f}",
        f"{one.hours:,.1f}",
        f"{used:,.0f}",
        f"{least / used:.0%}",
    ]


def report(paths: list[str], gpus: list[int], a: Assumptions) -> str:
    """All tables as Markdown."""
    cases: dict[str, tuple[str, ...]] = {}
    for path in paths:
        name = configuration.load(path).name.removeprefix("imagenet_")
        cases |= {f"{name}, as released": (path, *RELEASED), f"{name}, cluster tokens": (path,)}
    plans = {name: [plan(path, n, a, *settings) for n in gpus] for name, (path, *settings) in cases.items()}
    first = next(iter(plans.values()))
    trainings = {"tokenizer": [one.tokenizer for one in first]}
    trainings |= {name: [one.generators for one in row] for name, row in plans.items()}
    counted = {"tokenizer": tokenizer_counts(paths[0], a.image_kb)}
    counted |= {name: generator_counts(path, *settings) for name, (path, *settings) in cases.items()}
    return "\n\n".join(
        [
            assumptions_table(a),
            table(
                "counted | training GFLOP an image | operations started | parameters, M | checkpoint, GB | "
                "reading bounds from, GPUs",
                [[name, *counted_cells(c, trainings[name][0].batch, a)] for name, c in counted.items()],
            ),
            table(
                "training | GPUs | images of a GPU | compute, ms | launches, ms | all-reduce shown, ms | reading, ms | "
                "step, ms | bound by | images a second | hours | GPU hours | efficiency",
                [[name, *step_cells(one, row[0])] for name, row in trainings.items() for one in row],
            ),
            table(
                "all three jobs, hours | " + " | ".join(f"{n} GPUs" for n in gpus) + " | $ on " + f"{gpus[0]} GPUs",
                [
                    [
                        name,
                        *(f"{one.hours:,.0f}" for one in row),
                        f"{row[0].hours * gpus[0] * a.price:,.0f}",
                    ]
                    for name, row in plans.items()
                ],
            ),
        ]
    )


# ---- the command line ----


def add_assumptions(parser: argparse.ArgumentParser, defaults: Any) -> None:
    """An option for every field of a dataclass."""
    kinds: dict[Any, type] = {"int": int, "float": float}
    for f in dataclasses.fields(defaults):
        meaning = f.metadata["meaning"].replace("%", "%%") + " (%(default)s)"
        option = f"--{f.name.replace('_', '-')}"
        parser.add_argument(option, type=kinds[f.type], default=getattr(defaults, f.name), help=meaning)


def from_arguments(kind: Any, arguments: argparse.Namespace) -> Any:
    """A dataclass of assumptions from the command line."""
    return kind(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(kind)})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="FILE")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64, 256])
    add_assumptions(parser, Assumptions())
    arguments = parser.parse_args()
    print(report(arguments.configs, arguments.gpus, from_arguments(Assumptions, arguments)))


if __name__ == "__main__":
    main()
