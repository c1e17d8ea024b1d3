"""Typed configuration: dataclasses here, one YAML an experiment over them, `key=value` over that.

The dataclasses import nothing, so that the science (granularity, autoencoder, generator) can take them as plain
arguments; OmegaConf is imported by `load` alone. An unknown key or a wrong type stops with the key's name.

Every number has its range here, `number(default, least=..., ...)`, and every path says that it is one (`path`,
nvg/config/fields.py). docs/reference/configuration is made of this file: `python -m scripts.docs`.

Fields that follow from others (`content.code_width` is the tokenizer's) are listed in `DERIVED` and filled by `load`.
Fields marked OPERATIONAL say how a result is computed, not which result: how often a checkpoint is written, in how many
slices a batch is computed. Keys of artifacts and identities of checkpoints leave them out (nvg/artifacts/keys.py), so
they may change at any time, between a stop and going on too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from nvg.config.fields import OPERATIONAL, REQUIRED, SEEDS, number, operational, path
from nvg.errors import ConfigError


@dataclass
class DataConfig:
    """Where the images are and how they become square pixel arrays."""

    source: str = REQUIRED  # idx | folder | ilsvrc | parquet | webdataset  (nvg/data/sources)
    train: str = path()  # path or URL of the training images
    test: str | None = path(None)  # the held-out images; without them evaluation uses training images and says so
    image_size: int = number(least=4, most=8192)  # pixels a side, after resize and crop
    channels: int = number(3, least=1, most=3)  # 3 = RGB, 1 = grey
    num_classes: int = number(least=1, most=2**15)  # checked against what the source holds; a label is an int16
    class_names: list[str] | None = None  # for a source that has none; else the source's own
    views: int = number(1, least=1, most=127)  # tokens per image: view 0 is the centre crop, the others are random
    # random views resize the shorter side to image_size * U(1, crop_scale), then crop
    crop_scale: float = number(1.0, least=1)
    # antialiased | lanczos8: the kernel of the released system's images, for figures that are compared with its own.
    resize: str = "antialiased"
    flip: bool = True  # random views are mirrored with probability 1/2
    # images per read unit: the size of a token part, and what a restart repeats
    unit_images: int = number(512, least=1)
    image_column: str = "image"  # parquet: a struct {bytes, path} or plain bytes
    label_column: str = "label"  # parquet
    limit: int | None = number(None, least=1)  # at most this number of training images, for a trial


@dataclass
class TokenizerConfig:
    """The multi-granularity quantized autoencoder (docs/method.md, tokenizer)."""

    image_size: int = number(least=4, most=8192)  # derived from data
    channels: int = number(least=1, most=3)  # derived from data
    # space-to-depth factor of the stem: 1 = the VQGAN's 3x3 convolution at full resolution
    patch: int = number(1, least=1, most=64)
    widths: list[int] = number([128, 128, 256, 256, 512], least=16, most=8192)  # one per resolution, fine to coarse
    blocks: int = number(2, least=1, most=64)  # residual blocks per resolution
    decoder_blocks: int | None = number(None, least=1, most=64)  # of the decoder; None = blocks
    attention: bool = True  # self-attention at the lowest resolution
    code_width: int = number(32, least=1, most=4096)  # e, the width of a latent and of a codebook entry
    codebook_size: int = number(4096, least=2, most=65536)  # V
    # Which child of a split gets bit 0: raster (the one with the first position, as drawings need it) | merge (the one
    # whose own halves are closer, as in the released weights).
    child_order: str = "raster"

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, on a side."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Latent positions on a side, h = w."""
        return self.image_size // self.downsampling

    @property
    def positions(self) -> int:
        """L = h * w."""
        return self.grid**2

    @property
    def last_stage(self) -> int:
        """K = log2 L; the stages are 0 ... K."""
        return int(math.log2(self.positions))


@dataclass
class TrainingConfig:
    """What the three trainings (tokenizer, generators, distillation) share. The defaults are the generators'."""

    batch_size: int = number(768, least=1)  # over all workers
    # Slices of a worker's share of a batch, with all num_workers: random numbers are drawn for a slice, and a slice is
    # computed at once or, of `train`, in parts (train.micro_batch)
    accumulate: int = number(1, least=1, operational=True)
    # of the generators and in distillation: at batch 256, scaled linearly with the batch size
    lr: float = number(1e-4, above=0)
    betas: list[float] = number([0.9, 0.95], least=0, below=1)  # of AdamW
    weight_decay: float = number(0.0, least=0)  # of AdamW
    warmup_steps: int = number(100, least=0)  # in which lr rises linearly from 0; fewer than the training has
    clip_norm: float = number(1.0, least=0)  # of the gradients, network by network; 0 = they are not clipped
    ema_decay: float = number(0.999, least=0, below=1)  # of the averaged weights, which the sampler has
    checkpoint_every: int = number(1000, least=1, operational=True)  # steps
    preview_every: int = number(0, least=0, operational=True)  # steps between pictures in MLflow; 0 = only at the end
    # auto | float32 | tf32 | bfloat16 (nvg/precision.py); auto = the experiment's `precision` and, where that is auto
    # too, bfloat16 on a GPU that has it, else float32
    precision: str = "auto"


@dataclass
class GeneratorTrainingConfig(TrainingConfig):
    """What the two trainings of generators share beyond that."""

    decay_share: float = number(0.2, least=0, most=1)  # the last share of training, in which lr falls linearly ...
    final_lr: float = number(0.1, least=0, most=1)  # ... to this share of its value
    shuffle_rows: int = number(16384, least=0)  # rows of the shuffle buffer
    # Steps between evaluations of the averaged weights while it trains; 0 = none.
    evaluate_every: int = number(0, least=0, operational=True)
    evaluate_samples: int = number(2000, least=2, operational=True)  # images that such an evaluation draws


@dataclass
class TokenizerTrainConfig(TrainingConfig):
    """Training of the tokenizer (docs/method.md, tokenizer)."""

    epochs: float = number(100.0, above=0)  # passes over the images
    steps: int | None = number(None, least=1)  # optimizer steps, in place of epochs: give one of the two
    batch_size: int = 256
    warmup_steps: int = 500
    l1_weight: float = number(1.0, least=0)  # of |x - x_hat|
    l2_weight: float = number(1.0, least=0)  # of (x - x_hat)^2
    commitment_weight: float = number(0.25, least=0)  # pulls latents to their entries
    codebook_weight: float = number(1.0, least=0)  # pulls entries to their latents
    entropy_weight: float = number(0.0, least=0)  # reward for an even use of the codebook
    # codebook warm-up: gradient to every entry through a soft assignment
    index_backprop_epochs: float = number(1.0, least=0)
    revive_every: int = number(50, least=0)  # steps between re-seeding of unused entries from residuals; 0 = never
    revive_until: float = number(0.8, least=0, most=1)  # share of the training after which entries are left alone
    lpips_weights: str | None = path(None)  # VGG16 + LPIPS heads, path or URL of a .safetensors; None = loss off
    lpips_weight: float = number(1.0, least=0)  # of the perceptual loss
    discriminator_weights: str | None = path(None)  # DINO ViT-S folder, path or URL; None = adversarial loss off
    discriminator_weight: float = number(0.1, least=0)  # of the adversarial loss
    lecam_weight: float = number(0.001, least=0)  # of the LeCam regularisation of the discriminator
    discriminator_lr: float = number(1e-4, above=0)  # of the discriminator
    discriminator_weight_decay: float = number(0.0005, least=0)  # of the discriminator
    # share of the training before the adversarial loss starts
    discriminator_start: float = number(0.2, least=0, most=1)
    checkpoint_every: int = field(default=500, metadata=OPERATIONAL)


@dataclass
class RepaConfig:
    """Representation alignment of the content generator (docs/method.md, content)."""

    weights: str | None = path(None)  # DINOv2 folder (config.json, model.safetensors), path or URL; None = off
    feature_width: int = number(768, least=1)  # of the DINOv2 model
    block: int = number(8, least=1, most=128)  # the block after which hidden states are aligned
    weight: float = number(0.5, least=0)  # of the alignment loss


@dataclass
class ContentConfig:
    """The content generator f_c. The depth d is the one dial: width 64 d, d heads."""

    depth: int = number(least=1, most=128)  # d, transformer blocks
    grid: int = number()  # derived: latent positions on a side
    code_width: int = number(least=1, most=4096)  # derived: e
    codebook_size: int = number(least=2, most=65536)  # derived: V
    num_classes: int = number(least=1, most=32768)  # derived
    # What a stage is made of: positions (L tokens, the source's form) | clusters (ours: 2^i tokens, docs/method.md)
    tokens: str = "positions"
    # A small network of each position, added to its token or, of clusters, which need it, pooled (docs/method.md)
    position_network: bool = False
    residual: bool = True  # the network's output is x_hat - x_i; False: x_hat itself, as in the released system
    repa_block: int | None = number(least=1, most=128)  # derived: repa.block when repa.weights is given
    repa_width: int = number(least=1)  # derived
    guided: bool = False  # True: the guidance scale is an input (pipelines/distill.py makes these)
    # of a guided generator: the largest guidance scale that it knows
    max_guidance: float = number(4.0, above=1, most=20)


@dataclass
class StructureConfig:
    """The structure generator f_s. The depth d is the one dial: width 32 d, d/2 heads."""

    depth: int = number(least=2, most=128)  # d, transformer blocks; even
    grid: int = number()  # derived
    code_width: int = number(least=1, most=4096)  # derived
    num_classes: int = number(least=1, most=32768)  # derived
    # What it sees of the canvas: positions (L tokens, the source's form) | clusters (ours: 2^(i-1) tokens)
    canvas_tokens: str = "positions"
    few_step: bool = False  # True: step size and guidance scale are inputs (pipelines/distill.py makes these)
    # of a few-step generator: the largest guidance scale that it knows
    max_guidance: float = number(4.0, above=1, most=20)


@dataclass
class TrainConfig(GeneratorTrainingConfig):
    """Training of the generators (docs/method.md, training)."""

    # What to train. The finished sampler is the same whether its generators are trained together or one by one.
    parts: list[str] = field(default_factory=lambda: ["content", "structure"], metadata=OPERATIONAL)
    epochs: float = number(200.0, above=0)  # passes over the tokens
    steps: int | None = number(None, least=1)  # optimizer steps, in place of epochs: give one of the two
    parallel: str = field(default="ddp", metadata=OPERATIONAL)  # workers hold copies of the weights, or (fsdp) a share
    weight_decay: float = 0.05
    warmup_steps: int = 1000
    ema_decay: float = 0.9999
    class_dropout: float = number(
        0.1, least=0, below=1
    )  # share of images trained without their class, which guidance needs
    # of |x - x_hat|^2 against the cross-entropy; 0 = predict the next content alone
    canvas_weight: float = number(1.0, least=0)
    # Images of a slice that are computed at once, at most; auto = on a GPU as many as its memory holds, which passes of
    # one and two images measure before the first step, on a CPU all. Results are the same, but for the order of sums
    micro_batch: int | None = number(None, least=1, word="auto", operational=True)
    gradient_checkpointing: bool = field(default=False, metadata=OPERATIONAL)  # less memory, more time
    compile: bool = field(default=False, metadata=OPERATIONAL)  # torch.compile of each block: a slow first step


@dataclass
class DistillConfig(GeneratorTrainingConfig):
    """Distillation of the generators into ones of fewer passes (docs/guides/fast_sampling.md)."""

    steps: int = number(0, least=0)  # optimizer steps; 0 = no distillation
    parts: list[str] = field(default_factory=lambda: ["structure"])  # structure: few steps; both: guidance folded in
    # The sampler to distil, as nvg.load takes it; None = this configuration's generators. Its weights tell it in keys.
    teacher: str | None = path(None, operational=True)
    # of the structure's rows: the guided flow itself; the others learn larger steps
    flow_share: float = number(0.5, above=0, below=1)
    max_guidance: float = number(4.0, above=1, most=20)  # the guidance scales that are learned: 1 ... max_guidance
    flow_steps: int = number(1, least=1, most=100)  # sampler.flow_steps of the sampler that is made
    decay_share: float = 0.5
    final_lr: float = 0.02


@dataclass
class SamplerConfig:
    """Sampling (docs/method.md, sampling). Guidance rises linearly over the stages: 1 at stage 0, at stage K what
    stands here (the last flow of the structure comes to (K - 2) / K of the way)."""

    flow_steps: int = number(25, least=1, most=100)  # Euler steps of the structure flow per stage
    # Shortens the flow's steps at the noise and lengthens them at the end: mu at 256 positions, of the released system.
    # 0 = equal steps, exactly, whatever the grid. Few-step generators were taught equal steps and ignore it.
    flow_shift: float = number(0.5, least=0, most=5)
    structure_guidance: float = number(2.5, least=0, most=20)  # of the last stage
    content_guidance: float = number(3.5, least=0, most=20)  # of the last stage
    top_p: float = number(0.5, least=0.001, most=1)  # of the last stage; falls from 1.0, faster at late stages
    structure_temperature: float = number(1.0, least=0, most=10)  # of the Gumbel noise in the halving; 0 = none
    content_temperature: float = number(1.0, least=0.01, most=10)  # of the content tokens


@dataclass
class EvaluateConfig:
    """What is measured of a trained sampler (docs/guides/evaluate.md)."""

    samples_per_class: int = number(100, least=1)  # images to draw per class
    batch_size: int = number(100, least=1)  # images that an actor draws at once
    reference: str = path("test")  # test | train | an .npz of the ADM evaluation suite (path or URL)
    train_distance: bool = True  # also the distance of the training images to the held-out ones
    reconstructions: int = number(1000, least=0)  # held-out images to encode and decode; 0 = none
    # Inception-v3 .safetensors, path or URL; None = the data set's classifier
    inception_weights: str | None = path(None)
    # DINOv2 folder, path or URL, for a second Fréchet distance; None = none
    dinov2_weights: str | None = path(None)
    # Structure that is given and not generated, from held-out images: own:STAGE | other:STAGE (of the class, of another
    # one) | drawn | noisy:SHARE; None = none
    given: str | None = None
    bootstrap: int = number(100, least=2)  # resamplings behind an interval
    save_samples: bool = True  # samples.npz, as the ADM evaluation suite reads it
    classifier_epochs: float = number(3.0, above=0)  # passes of the data set's classifier over the images
    classifier_size: int = number(32, least=8, most=1024)  # pixels a side that the classifier sees
    seed: int = number(0, least=SEEDS.least, most=SEEDS.most)  # of the samples, the classifier and the intervals


@dataclass
class ClusterConfig:
    """What a job asks of Ray. One file serves a laptop and a cluster: only this section differs."""

    num_workers: int = number(1, least=1)  # training workers
    # elastic training: go on with this number; None = exactly num_workers
    min_workers: int | None = number(None, least=1)
    use_gpu: bool = False  # one GPU per worker and per encoder
    cpus_per_worker: float = number(1.0, least=0)  # of a training worker or an encoder; parts of a CPU are fine
    threads_per_worker: int | None = number(None, least=1)  # torch threads; None = cpus_per_worker
    encoders: int = number(1, least=1)  # tokenizer or sampler actors of build_tokens and evaluate
    encode_batch: int = number(64, least=1)  # images that a tokenizer actor encodes at once
    cpus_per_reader: float = number(1.0, above=0)  # of one task that reads images or tokens
    worker_resources: dict[str, float] = number({}, above=0)  # custom ones of a worker, encoder or sampler
    reader_resources: dict[str, float] = number({}, above=0)  # ... of a reading task: nodes that only read
    local_cpus: int | None = number(None, least=1)  # a Ray started here: its CPUs; None = all
    # a Ray started here: size of its object store; None = Ray's default
    object_store_gb: float | None = number(None, least=0.08)
    # seconds between looks whether more workers fit, where min_workers is given
    resize_interval: float = number(60.0, above=0)
    # worker failures that training survives; nodes that were announced to leave do not count
    max_failures: int = number(3, least=0)
    step_retries: int = number(2, least=0)  # tries again of a run.py step

    @property
    def actor(self) -> dict[str, Any]:
        """Ray's options of an actor or task that computes."""
        gpus = {"num_gpus": 1} if self.use_gpu else {}
        return {"num_cpus": self.cpus_per_worker, **gpus} | _custom(self.worker_resources)

    @property
    def reader(self) -> dict[str, Any]:
        """Ray's options of a task that reads."""
        return {"num_cpus": self.cpus_per_reader} | _custom(self.reader_resources)


@dataclass
class TrackingConfig:
    """MLflow."""

    uri: str | None = path(None)  # None = MLFLOW_TRACKING_URI, else sqlite:///<output>/mlflow.db
    # path or URL of the runs' files; None = beside the database, or as the server has it
    artifacts: str | None = path(None)
    experiment: str | None = None  # None = the config's name
    registered_model: str | None = None  # register the finished sampler under this name, alias "champion"
    parent: str | None = None  # id of the run that a job's run belongs to, as pipelines/sweep.py sets it
    log_every: int = number(20, least=1)  # steps


@dataclass
class Config:
    """A whole experiment."""

    name: str = field(default=REQUIRED, metadata=OPERATIONAL)  # of the experiment: MLflow's experiment is called so
    output: str = path(operational=True)  # folder or URL that receives every artifact
    seed: int = number(0, least=SEEDS.least, most=SEEDS.most)  # of every random draw of the trainings
    # auto | float32 | tf32 | bfloat16: of all arithmetic, a training's own before it (nvg/precision.py). Encoder and
    # decoder stay in float32 or TF32 outside of trainings. auto = TF32 convolutions on a GPU; trainings: see theirs
    precision: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_train: TokenizerTrainConfig = field(default_factory=TokenizerTrainConfig)
    repa: RepaConfig = field(default_factory=RepaConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=OPERATIONAL)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=OPERATIONAL)


@dataclass
class ServeConfig:
    """A deployment of the sampler over HTTP (docs/guides/serve.md)."""

    model: str = path("fashion-mnist")  # as nvg.load takes it: shipped name, folder or URL, models:/NAME@alias
    name: str | None = None  # the model's id in the API; None = the last part of `model`
    # between looks where models:/NAME@alias points to now; 0 = look at the start alone
    follow_seconds: float = number(30.0, least=0)
    host: str = "127.0.0.1"  # 0.0.0.0 listens on all interfaces: then set NVG_API_KEYS
    port: int = number(8000, least=1, most=65535)  # of the HTTP server
    # Origins whose pages may call the API from a browser, such as https://app.example.org; * = any
    allowed_origins: list[str] = field(default_factory=list)
    min_replicas: int = number(1, least=1)  # replicas at any time
    max_replicas: int = number(1, least=1)  # replicas under load
    target_ongoing_requests: float = number(8.0, above=0)  # of a replica, which autoscaling aims at
    upscale_delay_s: float = number(5.0, least=0)  # of more load before a replica is added
    downscale_delay_s: float = number(300.0, least=0)  # of less load before one is taken away
    cpus_per_replica: float = number(1.0, least=0)  # CPUs that Ray sets aside for a replica
    gpus_per_replica: float = number(0.0, least=0)  # above 0 the sampler runs on CUDA
    threads_per_replica: int = number(1, least=1)  # torch threads
    # auto | float32 | tf32 | bfloat16: bfloat16 is of the transformers' blocks, slower on a CPU without it; auto =
    # float32, of a GPU's convolutions TF32 (nvg/precision.py)
    precision: str = "auto"
    compile: bool = False  # torch.compile before the first request: minutes at the first start, then from a cache
    max_batch: int = number(16, least=1)  # images that are drawn at once
    batch_wait_ms: float = number(2.0, least=0)  # how long a batch smaller than the one before it waits for more
    max_queue: int = number(256, least=1)  # images that may wait in a replica; a request beyond gets 429
    max_images: int = number(64, least=1)  # of one request
    max_body_mb: float = number(10.0, above=0)  # of one request
    max_upload_pixels: int = number(16_000_000, least=1)  # width * height of a reference image or mask
    drain_seconds: float = number(30.0, least=0)  # that requests in hand have at shutdown or on a new version
    local_cpus: int | None = number(None, least=1)  # a Ray started here: its CPUs; None = all
    object_store_gb: float = number(0.2, least=0.08)  # a Ray started here: size of its object store


def _custom(resources: dict[str, float]) -> dict[str, Any]:
    return {"resources": resources} if resources else {}


STANDARD_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")

# Filled by `load` where the YAML does not set them; setting one to something else is an error.
DERIVED = {
    "tokenizer.image_size": lambda c: c.data.image_size,
    "tokenizer.channels": lambda c: c.data.channels,
    "content.grid": lambda c: _grid(c),
    "content.code_width": lambda c: c.tokenizer.code_width,
    "content.codebook_size": lambda c: c.tokenizer.codebook_size,
    "content.num_classes": lambda c: c.data.num_classes,
    "content.repa_block": lambda c: c.repa.block if c.repa.weights else None,
    "content.repa_width": lambda c: c.repa.feature_width,
    "structure.grid": lambda c: _grid(c),
    "structure.code_width": lambda c: c.tokenizer.code_width,
    "structure.num_classes": lambda c: c.data.num_classes,
}


def _grid(config: Any) -> int:
    if config.tokenizer.patch < 1 or not config.tokenizer.widths:
        raise ConfigError(
            f"tokenizer.patch={config.tokenizer.patch} must be at least 1, and tokenizer.widths must name a width a "
            "resolution"
        )
    return config.data.image_size // (config.tokenizer.patch * 2 ** (len(config.tokenizer.widths) - 1))


def trainings(config: Config) -> dict[str, TrainingConfig]:
    """The sections of the trainings that this configuration runs, by name."""
    sections: dict[str, TrainingConfig] = {"tokenizer_train": config.tokenizer_train, "train": config.train}
    if config.distill.steps:
        sections["distill"] = config.distill
    return sections


def operational_settings() -> dict[str, list[str]]:
    """All operational fields of a configuration by their section: "" has the whole sections and single values."""
    settings = {"": operational(Config)}
    for item in dataclasses.fields(Config):
        if item.name not in settings[""] and dataclasses.is_dataclass(item.default_factory):
            settings[item.name] = operational(item.default_factory)
    return {section: names for section, names in settings.items() if names}


def without_operational(section: Any) -> dict[str, Any]:
    """A section as a plain dictionary, of the fields on which a result depends."""
    hidden = operational(section)
    return {name: value for name, value in dataclasses.asdict(section).items() if name not in hidden}
