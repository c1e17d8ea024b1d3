"""Hours and dollars of training d16, d20 and d24 on 8, 32 and 64 GPUs: a model, not a measurement.

    python -m benchmarks.capacity.training_cost [--gpus 8 32 64] [--utilization 0.4] [--network-gb-s 30] ...

Counted, on torch's meta device: operations of a training step (the real losses, forward and backward) and how
many the host starts for it, parameters, bytes of a token row and of its features. Everything else is a field of
`Assumptions`: an option, with its default and where that comes from in --help and in the table that is printed. Prints
the tables of docs/reports/training_cost.md; --measure prints what this machine can measure of the assumptions.

A step: busy = max(compute + update, launches); total = max(busy + exposed all-reduce, reading). Functions give seconds,
bytes or dollars, as their docstrings say; a GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.common import Counter
from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.data.features import CHECKSUM, FETCHERS, checksums, with_features, write_features
from nvg.describe import feature_bytes, forward_flops, parameters, row_bytes
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.training.checkpoint import save_checkpoint
from nvg.training.ema import EMA
from nvg.training.generator_loss import Generators
from nvg.training.saver import Saver
from nvg.training.tokenizer_loss import tokenizer_loss
from nvg.training.tokenizer_task import TokenizerTask

CONFIGS = [f"conf/imagenet_d{depth}.yaml" for depth in (16, 20, 24)]
CHECKPOINT_BYTES = 16  # a parameter: weights, their average, two moments, float32
GRADIENT_BYTES = 4  # a parameter: float32, whatever the autocast
UPDATE_BYTES = 52  # a parameter of GPU memory a step: clip 12, AdamW 28, average 12


def assumed(default: float, meaning: str) -> Any:
    """A field of Assumptions: a number that was neither counted nor follows from others."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """A node is eight A100 of 40 GB with NVSwitch, 96 virtual CPUs and a 400 Gbit/s network (AWS p4d.24xlarge)."""

    images: int = assumed(1_281_167, "training images: ILSVRC 2012")
    peak_tflops: float = assumed(312, "of a GPU in bfloat16: A100's data sheet")
    tf32_tflops: float = assumed(156, "of a GPU in TF32, for the tokenizer and its tokens: A100's data sheet")
    utilization: float = assumed(0.4, "share of the peak that compute reaches: assumed, as in conf/*.yaml")
    memory_gb_s: float = assumed(1300, "of a GPU's memory: 84% of the data sheet's 1,555")
    op_us: float = assumed(5, "host's time to start an operation, views included: assumed, PyTorch without compile")
    gpus_per_node: int = assumed(8, "GPUs of a node")
    cpus_per_node: int = assumed(96, "virtual CPUs of a node")
    nvlink_gb_s: float = assumed(230, "bus bandwidth of all-reduce in a node: nccl-tests on p4d, NVIDIA/nccl#527")
    network_gb_s: float = assumed(30, "bus bandwidth of all-reduce over 4 nodes: nccl-tests on p4d, NVIDIA/nccl#527")
    overlap: float = assumed(0.8, "share of the backward pass that hides all-reduce: assumed")
    storage_gb_s: float = assumed(12.5, "of a node from the object store: assumed, 100 Gbit/s")
    stream_rows_s: float = assumed(
        51285, "token rows a second of a worker's stream: measured, docs/reports/benchmarks_parts.md"
    )
    fetch_gb_s: float = assumed(0.6, "features that a worker fetches, checks and copies: measured, --measure")
    request_ms: float = assumed(50, "a request to the object store, of a row's features: assumed")
    decode_ms: float = assumed(
        4.06, "a core's time for an antialiased view of a JPEG: measured, benchmarks/capacity/scale_estimate.py"
    )
    image_kb: float = assumed(115.4, "bytes of a JPEG: the training archive over its images")
    clustering: float = assumed(0.006, "clustering and quantization over the encoder: measured, scale_estimate.py")
    checkpoint_gb_s: float = assumed(0.3, "a checkpoint to the object store, or back: assumed")
    group_s: float = assumed(8, "Ray Train's stop and start of a group: measured here with two workers on CPUs")
    preemptions: float = assumed(0.02, "of a spot node an hour: assumed, one in 50 hours")
    notice_s: float = assumed(120, "between a spot node's notice and its end: AWS")
    price: float = assumed(2.75, "dollars a GPU hour on demand: assumed, p4d's list price of 2025 over 8")
    spot_price: float = assumed(1.25, "dollars a GPU hour, spot: assumed")


# ---- what is counted ----


@dataclass(frozen=True)
class Counts:
    """The operations, parameters and bytes of a training, per image where not said otherwise."""

    flops: float  # forward and backward
    backward: float  # the share of them that is backward
    ops: float  # operations that the host starts for a slice, whatever its images
    parameters: int  # whose gradients are exchanged
    item_bytes: int  # of an image or token row as it is read
    feature_bytes: int = 0  # of the alignment features of a row
    tf32: bool = False  # computed in TF32 (precision: tf32), not in bfloat16


def _count(images: int, loss: Callable[[], torch.Tensor]) -> tuple[float, float, int]:
    """Operations of forward and backward an image, of forward alone, and operations started."""
    no_autocast = mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    with no_autocast, Counter() as counter:
        value = loss()
        forward = counter.flops
        value.backward()
    return counter.flops / images, forward / images, counter.ops


@functools.cache
def generator_counts(path: str, *settings: str) -> Counts:
    """The counts of both generators, of all stages of an image."""
    config, images = configuration.load(path, settings), 2
    positions, repa = config.tokenizer.positions, config.repa
    with torch.device("meta"):
        quantizer = Autoencoder(config.tokenizer).quantizer.requires_grad_(False)
        content, structure = ContentGenerator(config.content), StructureGenerator(config.structure)
        both = Generators(content, structure, quantizer, config.train, repa.weight)
        sequence = GranularitySequence.from_flat(
            torch.empty(images, positions, dtype=torch.int64), torch.empty(images, 2 * positions - 1, dtype=torch.int64)
        )
        labels = torch.empty(images, dtype=torch.int64)
        features = torch.empty(images, positions, repa.feature_width) if repa.weights is not None else None
    for part in (content, structure):
        part.backbone.gradient_checkpointing = config.train.gradient_checkpointing
    draws = torch.Generator().manual_seed(0)
    total, forward, ops = _count(images, lambda: both(sequence, labels, both.draw(images, draws), features)[0])
    return Counts(total, 1 - forward / total, ops, parameters(both), row_bytes(config), feature_bytes(config))


@functools.cache
def tokenizer_counts(path: str, image_kb: float) -> Counts:
    """The counts of the tokenizer with LPIPS and, from discriminator_start on, the adversarial loss, as a mean.
    Clustering is left out (it holds no matrix product), and so is the first epoch's soft assignment."""
    from transformers import ViTConfig, ViTModel

    from nvg.frozen.dino import DinoBackbone
    from nvg.frozen.lpips import LPIPS
    from nvg.training.discriminator import Discriminator, LogitAverages

    config = configuration.load(path)
    settings, size = config.tokenizer_train, config.tokenizer.image_size
    with torch.device("meta"):
        autoencoder, lpips = Autoencoder(config.tokenizer), LPIPS()
        small = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)  # dino-vits16
        discriminator = Discriminator(DinoBackbone(ViTModel(small, add_pooling_layer=False)))
        images = torch.empty(1, config.tokenizer.channels, size, size)
    codes = torch.empty(1, config.tokenizer.positions, dtype=torch.int64, device="meta")
    logits = LogitAverages().to("meta")
    sums = torch.zeros(3, device="meta")
    task: Any = SimpleNamespace(discriminator=discriminator, settings=settings, logits=logits, _logits=sums)
    draws = torch.Generator().manual_seed(0)

    def loss(adversarial: bool) -> torch.Tensor:
        value, _, output = tokenizer_loss(autoencoder, images, settings, warm_up=False, lpips=lpips)
        return value + TokenizerTask._adversarial(task, images, output.reconstruction, draws)[0] * adversarial

    # Clusters follow from the values of latents, which a meta tensor has not.
    with mock.patch.object(autoencoder.quantizer, "structure_codes", lambda latents: codes):
        plain = _count(1, lambda: tokenizer_loss(autoencoder, images, settings, warm_up=False, lpips=lpips)[0])
        whole = _count(1, lambda: loss(True))
    share = settings.discriminator_start
    total, forward, ops = (share * a + (1 - share) * b for a, b in zip(plain, whole, strict=True))
    learned = parameters(autoencoder) + parameters(discriminator.heads)
    tf32 = settings.precision == "tf32"
    return Counts(total, 1 - forward / total, ops, learned, round(image_kb * 1e3), tf32=tf32)


@functools.cache
def encoding_flops(path: str, *settings: str) -> tuple[float, float]:
    """The operations of building an image's tokens: the encoder's, and DINOv2's where alignment features are made."""
    from transformers import Dinov2Config, Dinov2Model

    from nvg.frozen.dinov2 import DinoFeatures

    config = configuration.load(path, settings)
    if config.repa.weights is None:
        return forward_flops(config)["encoder"], 0.0
    with torch.device("meta"):  # dinov2-base
        dino = DinoFeatures(Dinov2Model(Dinov2Config(hidden_size=768, num_attention_heads=12, patch_size=14)))
        image = torch.empty(1, 3, config.tokenizer.image_size, config.tokenizer.image_size)
    with Counter() as counter:
        dino(image, config.tokenizer.grid)
    return forward_flops(config)["encoder"], float(counter.flops)


# ---- a step, a term a function ----


def compute_seconds(counts: Counts, images: float, a: Assumptions) -> float:
    """Seconds of a GPU for the operations of a number of images."""
    peak = a.tf32_tflops if counts.tf32 else a.peak_tflops
    return images * counts.flops / (peak * 1e12 * a.utilization)


def update_seconds(counts: Counts, a: Assumptions) -> float:
    """Seconds of a GPU a step for clipping, AdamW and averages: its memory's."""
    return counts.parameters * UPDATE_BYTES / (a.memory_gb_s * 1e9)


def launch_seconds(counts: Counts, slices: int, a: Assumptions) -> float:
    """Seconds of the host a step, to start the operations of its slices."""
    return slices * counts.ops * a.op_us * 1e-6


def all_reduce_bytes(counts: Counts, gpus: int) -> float:
    """Bytes that a GPU sends a step, in a ring: each of n GPUs passes on 2 (n - 1) / n of the gradients."""
    return 2 * (gpus - 1) / gpus * counts.parameters * GRADIENT_BYTES


def all_reduce_seconds(counts: Counts, gpus: int, a: Assumptions) -> float:
    """Seconds of all-reduce a step: the ring's slowest link is NVLink in one node, the network between several."""
    bandwidth = a.nvlink_gb_s if gpus <= a.gpus_per_node else a.network_gb_s
    return all_reduce_bytes(counts, gpus) / (bandwidth * 1e9)


def exposed_seconds(all_reduce: float, last_backward: float, a: Assumptions) -> float:
    """Seconds of all-reduce that the backward pass of a step's last slice does not hide."""
    return max(0.0, all_reduce - a.overlap * last_backward)


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
    all_reduce = all_reduce_seconds(counts, gpus, a)
    backward = counts.backward * max(compute, launches) / most
    exposed = exposed_seconds(all_reduce, backward, a)
    return StepTime(compute, update_seconds(counts, a), launches, all_reduce, exposed, reading)


# ---- a training ----


def checkpoint_seconds(counts: Counts, a: Assumptions) -> float:
    """Seconds until the first worker's checkpoint is written; reading it back takes as long. The model lets all workers
    wait for it, an upper bound: they wait for a copy into the host's memory (nvg/training/saver.py)."""
    return counts.parameters * CHECKPOINT_BYTES / (a.checkpoint_gb_s * 1e9)


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
    checkpoint: float  # seconds a step, of which most make none
    restart: float  # seconds, in the middle of an epoch
    lost: float  # seconds of work that a preemption undoes

    @property
    def hours(self) -> float:
        """The hours without preemptions."""
        return self.steps * (self.step.total + self.checkpoint) / 3600

    def spot_hours(self, a: Assumptions) -> float:
        """The hours with a restart and lost work for every node that is taken; another one joins at once."""
        rate = a.preemptions * math.ceil(self.gpus / a.gpus_per_node) / 3600  # preemptions a second
        share = rate * (self.restart + self.lost)
        return self.hours / (1 - share) if share < 1 else math.inf


def training(
    counts: Counts, section: Any, gpus: int, reading: float, a: Assumptions, slices: int | None = None
) -> Training:
    """section: tokenizer_train or train of a configuration."""
    batch, steps_per_epoch = section.batch_size, a.images // section.batch_size
    steps = section.steps if section.steps is not None else math.ceil(section.epochs * steps_per_epoch)
    one = step(counts, batch, gpus, reading, a, slices)
    checkpoint = checkpoint_seconds(counts, a) / section.checkpoint_every
    # A notice brings a checkpoint at once (nvg/training/loop.py): what is lost is what comes between it and the end.
    lost = min(a.notice_s, section.checkpoint_every * (one.total + checkpoint) / 2)
    restart = restart_seconds(counts, steps_per_epoch / 2, reading, a)
    return Training(gpus, one, steps, batch, checkpoint, restart, lost)


def train_generators(config: Config, counts: Counts, gpus: int, a: Assumptions) -> Training:
    """The training of both generators."""
    reading = token_reading_seconds(counts, config.train.batch_size, gpus, a)
    return training(counts, config.train, gpus, reading, a)


def train_tokenizer(config: Config, counts: Counts, gpus: int, a: Assumptions) -> Training:
    """The training of the tokenizer."""
    batch, cpus = config.tokenizer_train.batch_size, config.cluster.cpus_per_worker
    return training(counts, config.tokenizer_train, gpus, image_reading_seconds(counts, batch, gpus, cpus, a), a)


def encoding_seconds(encoder: float, features: float, a: Assumptions) -> float:
    """Seconds of a GPU an image whose tokens are built."""
    return (encoder * (1 + a.clustering) + features) / (a.tf32_tflops * 1e12 * a.utilization)


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


def _step_cells(one: Training) -> list[str]:
    s = one.step
    terms = (s.compute, s.update, s.launches, s.all_reduce, s.exposed, s.reading, s.total)
    return [str(one.gpus), *(f"{1e3 * value:,.0f}" for value in terms), s.bound, f"{one.batch / s.total:,.0f}"]


@dataclass(frozen=True)
class Plan:
    """All three jobs of a configuration on a number of GPUs."""

    gpus: int
    tokenizer: Training
    token_hours: float
    generators: Training

    @property
    def hours(self) -> float:
        return self.tokenizer.hours + self.token_hours + self.generators.hours

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    def spot_hours(self, a: Assumptions) -> float:
        """The hours with preemptions, but for the tokens, which lose a part or two."""
        return self.tokenizer.spot_hours(a) + self.token_hours + self.generators.spot_hours(a)

    def cells(self, smallest: Plan, a: Assumptions) -> list[str]:
        spot = self.spot_hours(a)
        hours = (self.tokenizer.hours, self.token_hours, self.generators.hours, self.hours)
        return [
            str(self.gpus),
            *(f"{value:,.1f}" for value in hours),
            f"{self.gpu_hours:,.0f}",
            f"{smallest.gpu_hours / self.gpu_hours:.0%}",
            f"{self.gpu_hours * a.price:,.0f}",
            f"{spot:,.1f}",
            f"{spot * self.gpus * a.spot_price:,.0f}",
        ]


def plan(path: str, gpus: int, a: Assumptions, *settings: str) -> Plan:
    """The plan of a configuration with key=value settings on a number of GPUs."""
    config = configuration.load(path, settings)
    tokenizer = train_tokenizer(config, tokenizer_counts(path, a.image_kb), gpus, a)
    encoding = encoding_seconds(*encoding_flops(path, *settings), a)
    hours = token_hours(a.images * config.data.views, encoding, config.cluster.cpus_per_worker, gpus, a)
    return Plan(gpus, tokenizer, hours, train_generators(config, generator_counts(path, *settings), gpus, a))


MOST_GPUS = 10_000  # up to which the bound of reading is looked for


def reading_bounds_from(counts: Counts, batch: int, a: Assumptions) -> int | None:
    """The least number of GPUs, of whole nodes, on which reading takes as long as compute; None above MOST_GPUS."""
    for gpus in range(a.gpus_per_node, MOST_GPUS + 1, a.gpus_per_node):
        if token_reading_seconds(counts, batch, gpus, a) >= compute_seconds(counts, batch / gpus, a):
            return gpus
    return None


def _reading_cells(counts: Counts, one: Training, a: Assumptions) -> list[str]:
    """The cells of what reading alone allows. one: on GPUs that fill their node."""
    reading, bound = one.step.reading, reading_bounds_from(counts, one.batch, a)
    return [
        str(one.gpus),
        f"{counts.item_bytes:,}",
        f"{counts.feature_bytes:,}",
        f"{one.steps * one.batch * (counts.item_bytes + counts.feature_bytes / one.gpus) / 1e12:,.1f}",
        f"{1e3 * reading:,.0f}",
        f"{one.batch / reading:,.0f}",
        f"{one.steps * reading / 3600:,.1f}",
        f"{bound:,}" if bound else f"more than {MOST_GPUS:,}",
    ]


PLAIN = "repa.weights=null"  # tokens without alignment features


def report(paths: list[str], gpus: list[int], a: Assumptions) -> str:
    """All tables as Markdown."""
    cases = {
        configuration.load(path).name + (", plain" if settings else ""): (path, *settings)
        for path in paths
        for settings in ((), (PLAIN,))
    }
    plans = {name: [plan(path, n, a, *settings) for n in gpus] for name, (path, *settings) in cases.items()}
    counted = {name: generator_counts(path, *settings) for name, (path, *settings) in cases.items()}
    first = next(iter(plans.values()))
    return "\n\n".join(
        [
            assumptions_table(a),
            table(
                "counted | training GFLOP an image | of it backward | operations started | parameters, M | "
                "gradients, GB | checkpoint, GB",
                [
                    [
                        name,
                        f"{c.flops / 1e9:,.0f}",
                        f"{c.backward:.0%}",
                        f"{c.ops:,.0f}",
                        f"{c.parameters / 1e6:,.1f}",
                        f"{c.parameters * GRADIENT_BYTES / 1e9:.2f}",
                        f"{c.parameters * CHECKPOINT_BYTES / 1e9:.1f}",
                    ]
                    for name, c in {"tokenizer": tokenizer_counts(paths[0], a.image_kb), **counted}.items()
                ],
            ),
            table(
                "a step, ms | GPUs | compute | update | launches | all-reduce | exposed | reading | step | bound by | "
                "images a second",
                [["tokenizer", *_step_cells(one.tokenizer)] for one in first]
                + [[name, *_step_cells(one.generators)] for name, row in plans.items() for one in row],
            ),
            table(
                "reading alone | GPUs | bytes of every row | and of its own rows | a worker reads, TB | ms a step | "
                "images a second at most | hours at least | bounds from, GPUs",
                [[name, *_reading_cells(counted[name], row[-1].generators, a)] for name, row in plans.items()],
            ),
            table(
                "all | GPUs | tokenizer, h | tokens, h | generators, h | hours | GPU hours | efficiency | $ | "
                "hours, spot | $, spot",
                [[name, *one.cells(row[0], a)] for name, row in plans.items() for one in row],
            ),
        ]
    )


# ---- what this machine can measure ----


def measured_fetch_gb_s(config: Config, batches: int = 4, rows: int = 64) -> float:
    """GB a second of CPU time in which a worker fetches features from the local disk (nvg/data/features.py)."""
    shape = (config.tokenizer.positions, config.repa.feature_width)
    features = np.random.default_rng(0).standard_normal((rows, *shape), np.float32).astype(np.float16)
    batch = {"part": np.zeros(rows, np.int64), "row": np.arange(rows), CHECKSUM: checksums(features)}
    with tempfile.TemporaryDirectory() as folder:
        part = f"{folder}/part.parquet"
        write_features(part, features, shape)
        start = time.process_time()
        given = sum(one["features"].nbytes for one in with_features([batch] * batches, [part], shape))
        return given / (time.process_time() - start) / 1e9


def measured_checkpoint_gb_s(parameters: int = 2**24) -> float:
    """GB a second of a checkpoint on the local disk: copies, files and checksums, no upload."""
    module = nn.Linear(2**12, parameters // 2**12, bias=False)
    optimizer = torch.optim.AdamW(module.parameters())
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Saver() as saver:
            save_checkpoint(
                saver,
                folder,
                1,
                modules={"m": module},
                averages={"m": EMA(module, 0.9)},
                optimizers={"o": optimizer},
                config=configuration.load(CONFIGS[0]),
                metadata={},
            )
        return parameters * CHECKPOINT_BYTES / (time.perf_counter() - start) / 1e9


def measure() -> None:
    """Print what can be measured without a GPU, as options, sorted."""
    config, rounds = configuration.load(CONFIGS[0]), 5
    for option, call in {
        "--fetch-gb-s": lambda: measured_fetch_gb_s(config),
        "--checkpoint-gb-s": measured_checkpoint_gb_s,
    }.items():
        print(option, *(f"{value:.2f}" for value in sorted(call() for _ in range(rounds))))


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
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--measure", action="store_true", help="print what this machine can measure, and nothing else")
    add_assumptions(parser, Assumptions())
    arguments = parser.parse_args()
    if arguments.measure:
        return measure()
    print(report(arguments.configs, arguments.gpus, from_arguments(Assumptions, arguments)))


if __name__ == "__main__":
    main()
