"""Typed configuration: dataclasses here, one YAML an experiment over them, `key=value` over that.

The dataclasses import nothing, so that the science (granularity, autoencoder, generator) can take them as plain
arguments; OmegaConf is imported by `load` alone. An unknown key or a wrong type stops with the key's name.

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

from nvg.errors import ConfigError

REQUIRED: Any = "???"  # OmegaConf's mark of a value that must be given
OPERATIONAL = {"operational": True}  # metadata of a field on which no result depends


@dataclass
class DataConfig:
    """Where the images are and how they become square pixel arrays."""

    source: str = REQUIRED  # idx | folder | ilsvrc | parquet | webdataset  (nvg/data/sources)
    train: str = REQUIRED  # path or URL of the training images
    test: str | None = None  # the held-out images; without them evaluation uses training images and says so
    image_size: int = REQUIRED  # pixels a side, after resize and crop
    channels: int = 3  # 3 = RGB, 1 = grey
    num_classes: int = REQUIRED  # checked against what the source holds
    class_names: list[str] | None = None  # for a source that has none; else the source's own
    views: int = 1  # tokens per image: view 0 is the centre crop, the others are random
    crop_scale: float = 1.0  # random views resize the shorter side to image_size * U(1, crop_scale), then crop
    # antialiased | lanczos8: the kernel of the released system's images, for figures that are compared with its own.
    resize: str = "antialiased"
    flip: bool = True  # random views are mirrored with probability 1/2
    unit_images: int = 512  # images per read unit: the size of a token part, and what a restart repeats
    image_column: str = "image"  # parquet: a struct {bytes, path} or plain bytes
    label_column: str = "label"  # parquet
    limit: int | None = None  # at most this number of training images, for a trial


@dataclass
class TokenizerConfig:
    """The multi-granularity quantized autoencoder (docs/method.md, tokenizer)."""

    image_size: int = REQUIRED  # derived from data
    channels: int = REQUIRED  # derived from data
    patch: int = 1  # space-to-depth factor of the stem: 1 = the VQGAN's 3x3 convolution at full resolution
    widths: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])  # one per resolution, fine to coarse
    blocks: int = 2  # residual blocks per resolution
    decoder_blocks: int | None = None  # of the decoder; None = blocks
    attention: bool = True  # self-attention at the lowest resolution
    code_width: int = 32  # e, the width of a latent and of a codebook entry
    codebook_size: int = 4096  # V
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

    batch_size: int = 768  # over all workers
    accumulate: int = field(default=1, metadata=OPERATIONAL)  # micro-batches per step and worker, with all num_workers
    lr: float = 1e-4  # of the generators and in distillation: at batch 256, scaled linearly with the batch size
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    checkpoint_every: int = field(default=1000, metadata=OPERATIONAL)  # steps
    preview_every: int = field(default=0, metadata=OPERATIONAL)  # steps between pictures in MLflow; 0 = only at the end
    precision: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 where the device has it


@dataclass
class GeneratorTrainingConfig(TrainingConfig):
    """What the two trainings of generators share beyond that."""

    decay_share: float = 0.2  # the last share of training, in which lr falls linearly ...
    final_lr: float = 0.1  # ... to this share of its value
    all_stages: bool = False  # True: every stage of an image in each step, not one drawn at random
    shuffle_rows: int = 16384  # rows of the shuffle buffer


@dataclass
class TokenizerTrainConfig(TrainingConfig):
    """Training of the tokenizer (docs/method.md, tokenizer)."""

    epochs: float = 100.0
    steps: int | None = None  # optimizer steps instead of epochs
    batch_size: int = 256
    warmup_steps: int = 500
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    entropy_weight: float = 0.0  # reward for an even use of the codebook
    index_backprop_epochs: float = 1.0  # codebook warm-up: gradient to every entry through a soft assignment
    revive_every: int = 50  # steps between re-seeding of unused entries from residuals; 0 = never
    revive_until: float = 0.8  # share of the training after which entries are left alone
    lpips_weights: str | None = None  # VGG16 + LPIPS heads, path or URL of a .safetensors; None = loss off
    lpips_weight: float = 1.0
    discriminator_weights: str | None = None  # DINO ViT-S folder, path or URL; None = adversarial loss off
    discriminator_weight: float = 0.5
    discriminator_lr: float = 1e-4
    discriminator_start: float = 0.2  # share of the training before the adversarial loss starts
    checkpoint_every: int = field(default=500, metadata=OPERATIONAL)


@dataclass
class RepaConfig:
    """Representation alignment of the content generator (docs/method.md, content)."""

    weights: str | None = None  # DINOv2 folder (config.json, model.safetensors), path or URL; None = off
    feature_width: int = 768  # of the DINOv2 model
    block: int = 8  # the block after which hidden states are aligned
    weight: float = 0.5


@dataclass
class ContentConfig:
    """The content generator f_c. The depth d is the one dial: width 64 d, d heads."""

    depth: int = REQUIRED
    grid: int = REQUIRED  # derived: latent positions on a side
    code_width: int = REQUIRED  # derived: e
    codebook_size: int = REQUIRED  # derived: V
    num_classes: int = REQUIRED  # derived
    residual: bool = True  # the network's output is x_hat - x_i; False: x_hat itself, as in the released system
    repa_block: int | None = REQUIRED  # derived: repa.block when repa.weights is given
    repa_width: int = REQUIRED  # derived
    guided: bool = False  # True: the guidance scale is an input (pipelines/distill.py makes these)
    max_guidance: float = 4.0  # of a guided generator: the largest guidance scale that it knows


@dataclass
class StructureConfig:
    """The structure generator f_s. The depth d is the one dial: width 32 d, d/2 heads."""

    depth: int = REQUIRED
    grid: int = REQUIRED  # derived
    code_width: int = REQUIRED  # derived
    num_classes: int = REQUIRED  # derived
    few_step: bool = False  # True: step size and guidance scale are inputs (pipelines/distill.py makes these)
    max_guidance: float = 4.0  # of a few-step generator: the largest guidance scale that it knows


@dataclass
class TrainConfig(GeneratorTrainingConfig):
    """Training of the generators (docs/method.md, training)."""

    # What to train. The finished sampler is the same whether its generators are trained together or one by one.
    parts: list[str] = field(default_factory=lambda: ["content", "structure"], metadata=OPERATIONAL)
    epochs: float = 200.0
    steps: int | None = None  # optimizer steps instead of epochs
    parallel: str = field(default="ddp", metadata=OPERATIONAL)  # workers hold copies of the weights, or (fsdp) a share
    weight_decay: float = 0.05
    warmup_steps: int = 1000
    ema_decay: float = 0.9999
    class_dropout: float = 0.1
    canvas_weight: float = 1.0  # of |x - x_hat|^2 against the cross-entropy; 0 = predict the next content alone
    gradient_checkpointing: bool = field(default=False, metadata=OPERATIONAL)  # less memory, more time


@dataclass
class DistillConfig(GeneratorTrainingConfig):
    """Distillation of the generators into ones of fewer passes (docs/fast_sampling.md)."""

    steps: int = 0  # optimizer steps; 0 = no distillation
    parts: list[str] = field(default_factory=lambda: ["structure"])  # structure: few steps; both: guidance folded in
    # The sampler to distil, as nvg.load takes it; None = this configuration's generators. Its weights tell it in keys.
    teacher: str | None = field(default=None, metadata=OPERATIONAL)
    flow_share: float = 0.5  # of the structure's rows: the guided flow itself; the others learn larger steps
    max_guidance: float = 4.0  # the guidance scales that are learned: 1 ... max_guidance
    flow_steps: int = 1  # sampler.flow_steps of the sampler that is made
    decay_share: float = 0.5
    final_lr: float = 0.02


@dataclass
class SamplerConfig:
    """Sampling (docs/method.md, sampling). Guidance rises linearly over the stages: 1 at stage 0, at stage K what
    stands here (the last flow of the structure comes to (K - 2) / K of the way)."""

    flow_steps: int = 25
    # Shortens the flow's steps at the noise and lengthens them at the end: mu at 256 positions, of the released system.
    # 0 = equal steps, exactly, whatever the grid. Few-step generators were taught equal steps and ignore it.
    flow_shift: float = 0.5
    structure_guidance: float = 2.5
    content_guidance: float = 3.5
    top_p: float = 0.5  # of the last stage; falls from 1.0, faster at late stages
    structure_temperature: float = 1.0  # of the Gumbel noise in the halving; 0 = none, as in the released system
    content_temperature: float = 1.0


@dataclass
class EvaluateConfig:
    """What is measured of a trained sampler (docs/evaluation.md)."""

    samples_per_class: int = 100
    batch_size: int = 100  # images that an actor draws at once
    reference: str = "test"  # test | train | an .npz of the ADM evaluation suite (path or URL)
    train_distance: bool = True  # also the distance of the training images to the held-out ones
    reconstructions: int = 1000  # held-out images to encode and decode; 0 = none
    inception_weights: str | None = None  # Inception-v3 .safetensors, path or URL; None = the data set's classifier
    bootstrap: int = 100  # resamplings behind an interval
    save_samples: bool = True  # samples.npz, as the ADM evaluation suite reads it
    classifier_epochs: float = 3.0
    classifier_size: int = 32  # pixels a side that the classifier sees
    seed: int = 0


@dataclass
class ClusterConfig:
    """What a job asks of Ray. One file serves a laptop and a cluster: only this section differs."""

    num_workers: int = 1  # training workers
    min_workers: int | None = None  # elastic training: go on with this number; None = exactly num_workers
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    threads_per_worker: int | None = None  # torch threads; None = cpus_per_worker
    encoders: int = 1  # tokenizer or sampler actors of build_tokens and evaluate
    encode_batch: int = 64  # images that a tokenizer actor encodes at once
    cpus_per_reader: float = 1.0  # of one task that reads images or tokens
    worker_resources: dict[str, float] = field(default_factory=dict)  # custom ones of a worker, encoder or sampler
    reader_resources: dict[str, float] = field(default_factory=dict)  # ... of a reading task: nodes that only read
    local_cpus: int | None = None  # a Ray started here: its CPUs; None = all
    object_store_gb: float | None = None  # a Ray started here: size of its object store; None = Ray's default
    resize_interval: float = 60.0  # seconds between looks whether more workers fit, where min_workers is given
    max_failures: int = 3  # worker failures that training survives; nodes that were announced to leave do not count
    step_retries: int = 2  # tries again of a run.py step

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
    """MLflow. MLFLOW_TRACKING_URI wins over `uri`."""

    uri: str | None = None  # None = sqlite:///<output>/mlflow.db
    artifacts: str | None = None  # path or URL of the runs' files; None = beside the database, or as the server has it
    experiment: str | None = None  # None = the config's name
    registered_model: str | None = None  # register the finished sampler under this name, alias "champion"
    parent: str | None = None  # id of the run that a job's run belongs to, as pipelines/sweep.py sets it
    log_every: int = 20  # steps


@dataclass
class Config:
    """A whole experiment."""

    name: str = field(default=REQUIRED, metadata=OPERATIONAL)
    output: str = field(default=REQUIRED, metadata=OPERATIONAL)  # folder or URL that receives every artifact
    seed: int = 0
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
    """A deployment of the sampler over HTTP (docs/serving.md)."""

    model: str = "fashion-mnist"  # as nvg.load takes it: shipped name, folder or URL, models:/NAME@alias
    name: str | None = None  # the model's id in the API; None = the last part of `model`
    follow_seconds: float = 30.0  # between looks where models:/NAME@alias points to now; 0 = look at the start alone
    host: str = "127.0.0.1"  # 0.0.0.0 listens on all interfaces: then set NVG_API_KEYS
    port: int = 8000
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0  # of a replica, which autoscaling aims at
    upscale_delay_s: float = 5.0  # of more load before a replica is added
    downscale_delay_s: float = 300.0  # of less load before one is taken away
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0  # above 0 the sampler runs on CUDA
    threads_per_replica: int = 1  # torch threads
    precision: str = "float32"  # float32 | bfloat16: of the transformers' blocks; slower on a CPU without it
    compile: bool = False  # torch.compile, of each batch size on its first use: minutes at the start
    max_batch: int = 16  # images that are drawn at once
    batch_wait_ms: float = 2.0  # how long a batch smaller than the one before it waits for more
    max_queue: int = 256  # images that may wait in a replica; a request beyond gets 429
    max_images: int = 64  # of one request
    max_body_mb: float = 10.0  # of one request
    max_upload_pixels: int = 16_000_000  # width * height of a reference image or mask
    drain_seconds: float = 30.0  # that requests in hand have at shutdown or on a new version
    local_cpus: int | None = None  # a Ray started here: its CPUs; None = all
    object_store_gb: float = 0.2  # a Ray started here: size of its object store


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


def operational(section: Any) -> list[str]:
    """The names of a section's operational fields; of an instance or its class."""
    return [item.name for item in dataclasses.fields(section) if item.metadata.get("operational")]


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
