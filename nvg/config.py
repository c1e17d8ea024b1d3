"""Typed configuration: dataclasses here, one YAML an experiment over them, `key=value` over that.

The dataclasses import nothing, so that the science (granularity, autoencoder, generator) can take them as plain
arguments; OmegaConf is imported by `load` alone. An unknown key or a wrong type stops with the key's name.

Fields that follow from others (`content.code_width` is the tokenizer's) are listed in `DERIVED` and filled by `load`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Schema = TypeVar("Schema")
REQUIRED: Any = "???"  # OmegaConf's mark of a value that must be given


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what to do."""


@dataclass
class DataConfig:
    """Where the images are and how they become square pixel arrays."""

    source: str = REQUIRED  # idx | folder | ilsvrc | parquet | webdataset  (nvg/data/sources.py)
    train: str = REQUIRED  # path or URL of the training images
    test: str | None = None  # the held-out images; without them evaluation uses training images and says so
    image_size: int = REQUIRED  # pixels a side, after resize and crop
    channels: int = 3  # 3 = RGB, 1 = grey
    num_classes: int = REQUIRED  # checked against what the source holds
    class_names: list[str] | None = None  # for a source that has none; else the source's own
    views: int = 1  # tokens an image: view 0 is the centre crop, the others are random
    crop_scale: float = 1.0  # random views resize the shorter side to image_size * U(1, crop_scale), then crop
    flip: bool = True  # random views are mirrored with probability 1/2
    unit_images: int = 512  # images a read unit: the size of a token part and of what a restart repeats
    image_column: str = "image"  # parquet: a struct {bytes, path} or plain bytes
    label_column: str = "label"  # parquet
    limit: int | None = None  # only so many training images (a shortened trial)


@dataclass
class TokenizerConfig:
    """The multi-granularity quantized autoencoder (docs/method.md, tokenizer)."""

    image_size: int = REQUIRED  # derived from data
    channels: int = REQUIRED  # derived from data
    patch: int = 1  # space-to-depth factor of the stem: 1 = the VQGAN's 3x3 convolution at full resolution
    widths: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])  # one a resolution, fine to coarse
    blocks: int = 2  # residual blocks a resolution
    attention: bool = True  # self-attention at the lowest resolution
    code_width: int = 32  # e, the width of a latent and of a codebook entry
    codebook_size: int = 4096  # V
    child_order: str = "raster"  # which child of a split gets bit 0: raster | feature | spread (docs/method.md)

    @property
    def downsampling(self) -> int:
        """Pixels a latent position, a side."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Latent positions a side, h = w."""
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
class TokenizerTrainConfig:
    """Training of the tokenizer (docs/method.md, tokenizer)."""

    epochs: float = 100.0
    steps: int | None = None  # optimizer steps instead of epochs
    batch_size: int = 256  # over all workers
    accumulate: int = 1  # micro-batches a step and worker, when all num_workers are there
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    warmup_steps: int = 500
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    entropy_weight: float = 0.0  # reward for an even use of the codebook
    index_backprop_epochs: float = 1.0  # codebook warm-up: gradient to every code through a soft assignment
    revive_every: int = 50  # steps between re-seeding of unused codes from residuals; 0 = never
    revive_until: float = 0.8  # share of the training after which codes are left alone
    lpips_weights: str | None = None  # VGG16 + LPIPS heads, path or URL of a .safetensors; None = loss off
    lpips_weight: float = 1.0
    discriminator_weights: str | None = None  # DINO ViT-S folder, path or URL; None = adversarial loss off
    discriminator_weight: float = 0.5
    discriminator_lr: float = 1e-4
    discriminator_start: float = 0.2  # share of the training before the adversarial loss starts
    checkpoint_every: int = 500  # steps
    precision: str = "auto"  # auto | float32 | bfloat16


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
    grid: int = REQUIRED  # derived: latent positions a side
    code_width: int = REQUIRED  # derived: e
    codebook_size: int = REQUIRED  # derived: V
    num_classes: int = REQUIRED  # derived
    structure_rope: bool = True  # False: rotary ids hold kind, row and column alone (the source's ablation)
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
    structure_rope: bool = True
    noise_known: bool = False  # True: channels of known stages are noised too (the source's ablation)
    few_step: bool = False  # True: step size and guidance scale are inputs (pipelines/distill.py makes these)
    max_guidance: float = 4.0  # of a few-step generator: the largest guidance scale that it knows


@dataclass
class TrainConfig:
    """Training of the generators (docs/method.md, training)."""

    parts: list[str] = field(default_factory=lambda: ["content", "structure"])  # what to train
    epochs: float = 200.0
    steps: int | None = None  # optimizer steps instead of epochs
    parallel: str = "ddp"  # workers have copies of the weights (ddp), or a part of them each (fsdp)
    batch_size: int = 768  # over all workers
    accumulate: int = 1  # micro-batches a step and worker, when all num_workers are there
    lr: float = 1e-4  # at batch 256; scaled linearly with the batch size
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.05
    warmup_steps: int = 1000
    decay_share: float = 0.2  # the last share of training, in which lr falls linearly ...
    final_lr: float = 0.1  # ... to this share of its value
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    class_dropout: float = 0.1
    canvas_weight: float = 1.0  # of |x - x_hat|^2 against the cross-entropy; 0 = predict the next content alone
    all_stages: bool = False  # True: every stage of an image in each step, not one drawn at random
    gradient_checkpointing: bool = False
    shuffle_rows: int = 16384  # rows of the shuffle buffer
    checkpoint_every: int = 1000  # steps
    preview_every: int = 0  # steps between sample grids in MLflow; 0 = only at the end
    precision: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 where the device has it


@dataclass
class DistillConfig:
    """Distillation of the generators into ones of fewer passes (docs/fast_sampling.md)."""

    steps: int = 0  # optimizer steps; 0 = no distillation
    parts: list[str] = field(default_factory=lambda: ["structure"])  # structure: few steps; both: guidance folded in
    teacher: str | None = None  # as nvg.load takes it: distil this sampler; None = this configuration's generators
    flow_share: float = 0.5  # of the structure's rows: the guided flow itself; the others learn larger steps
    max_guidance: float = 4.0  # the guidance scales that are learned: 1 ... max_guidance
    flow_steps: int = 1  # sampler.flow_steps of the sampler that is made
    all_stages: bool = False
    batch_size: int = 768  # over all workers
    accumulate: int = 1
    lr: float = 1e-4  # at batch 256; scaled linearly with the batch size
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay_share: float = 0.5
    final_lr: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    shuffle_rows: int = 16384
    checkpoint_every: int = 1000
    preview_every: int = 0
    precision: str = "auto"


@dataclass
class SamplerConfig:
    """Sampling (docs/method.md, sampling). Guidance rises linearly over the stages from 1 to the value here."""

    flow_steps: int = 25
    structure_guidance: float = 2.5
    content_guidance: float = 3.5
    top_p: float = 0.5  # of the last stage; falls logarithmically from 1.0
    structure_temperature: float = 1.0  # of the Gumbel noise in the halving
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
    min_workers: int | None = None  # elastic training: go on with so few; None = exactly num_workers
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
    """One experiment, whole."""

    name: str = REQUIRED
    output: str = REQUIRED  # folder or URL that receives every artifact
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
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


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


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (path or URL) and apply `key=value` overrides, the last one winning.

    Raises ConfigError with the key's name for an unknown key, a wrong type, a missing value or values that do not
    fit together.
    """
    return from_dict(read(path), overrides, where=str(path))


def merged(base: dict, changes: dict) -> dict:
    """Nested dictionaries, the second one winning."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def read(path: str | Path) -> dict:
    """A YAML file (path or URL) as it is. Raises ConfigError when it is not there or no mapping."""
    import fsspec
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML without aliases: ten lines of them stand for a billion values."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*name): write the values out")
            return super().compose_node(parent, index)

    try:
        with fsspec.open(str(path), "r") as file:
            content = Loader(file).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date that is none
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys: expected a mapping such as `name: my_experiment`")
    return content


def from_dict(content: dict, overrides: Sequence[str] = (), *, where: str = "configuration") -> Config:
    """As `load`, from a nested dictionary."""
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default_factory) and not isinstance(content.get(section.name, {}), dict):
            raise ConfigError(f"{where}: {section.name}={content[section.name]!r} must be a section with keys")
    config = _typed(Config, content, overrides, where, DERIVED)
    validate(config, where)
    return config


def serve_config(content: dict, overrides: Sequence[str] = (), *, where: str = "configuration") -> ServeConfig:
    """The configuration of a deployment. Raises ConfigError with the key's name."""
    config = _typed(ServeConfig, content, overrides, where, {})
    for name in ("min_replicas", "threads_per_replica", "max_batch", "max_queue", "max_images", "max_upload_pixels"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{where}: {name}={getattr(config, name)} must be at least 1")
    for name in ("target_ongoing_requests", "max_body_mb"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"{where}: {name}={getattr(config, name)} must be above 0")
    if config.precision not in ("float32", "bfloat16"):
        raise ConfigError(f"{where}: precision={config.precision!r} is none of float32, bfloat16")
    if not 1 <= config.port <= 65535:
        raise ConfigError(f"{where}: port={config.port} is none of 1 ... 65535")
    not_negative = ("batch_wait_ms", "cpus_per_replica", "gpus_per_replica", "drain_seconds", "follow_seconds")
    for name in (*not_negative, "upscale_delay_s", "downscale_delay_s"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{where}: {name}={getattr(config, name)} must be at least 0")
    if config.max_replicas < config.min_replicas:
        raise ConfigError(f"{where}: max_replicas={config.max_replicas} is below min_replicas={config.min_replicas}")
    if config.max_queue < config.max_images:
        raise ConfigError(
            f"{where}: max_queue={config.max_queue} is below max_images={config.max_images}: a request of so many "
            "images could never be taken"
        )
    return config


def _typed(
    schema: type[Schema], content: dict, overrides: Sequence[str], where: str, derived: dict[str, Callable]
) -> Schema:
    """A dataclass from a dictionary and overrides, every key known, every type right, nothing missing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    changes = []
    for item in overrides:
        if not item.partition("=")[0].strip() or "=" not in item:
            raise ConfigError(f"override {item!r} is not of the form key=value (for example train.lr=2e-4)")
        try:
            changes.append(OmegaConf.from_dotlist([item]))
        except YAMLError:
            raise ConfigError(f"override {item!r}: the value is not YAML (an open bracket or quote?)") from None
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(content), *changes)
        for key, value in derived.items():
            expected = value(node)
            if OmegaConf.is_missing(OmegaConf.select(node, key.split(".")[0]), key.split(".")[1]):
                OmegaConf.update(node, key, expected)
            elif OmegaConf.select(node, key) != expected:
                raise ConfigError(
                    f"{where}: {key}={OmegaConf.select(node, key)} does not fit the other sections, which give "
                    f"{expected}: leave {key} out"
                )
        config = OmegaConf.to_object(node)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list where a section belongs
        raise ConfigError(_explain(error, where, schema)) from None
    assert isinstance(config, schema)
    return config


def _explain(error: Exception, where: str, schema: type) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    first_line = str(error).split("\n")[0]
    if "not in" in first_line:
        near = _near_key(str(key), _all_keys(schema))
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{where}: unknown key {key!r}{hint}"
    if "Missing mandatory value" in first_line or "Structured config" in first_line:
        return f"{where}: {key!r} must be given"
    return f"{where}: {key}: {first_line}"


def _near_key(key: str, keys: list[str]) -> str | None:
    """A known key that was perhaps meant: a like name in the same section, else the same name in another one."""
    section, _, name = key.rpartition(".")
    known = [tuple(item.rpartition(".")[::2]) for item in keys]
    near = difflib.get_close_matches(name, [other for where, other in known if where == section], n=1)
    if near:
        return f"{section}.{near[0]}" if section else near[0]
    elsewhere = [f"{where}.{other}" for where, other in known if other == name and where]
    return elsewhere[0] if elsewhere else next(iter(difflib.get_close_matches(key, keys, n=1, cutoff=0.8)), None)


def _all_keys(schema: type) -> list[str]:
    keys = []
    for section in dataclasses.fields(schema):
        keys.append(section.name)
        if dataclasses.is_dataclass(section.default_factory):
            keys += [f"{section.name}.{item.name}" for item in dataclasses.fields(section.default_factory)]
    return keys


def validate(config: Config, where: str = "configuration") -> None:
    """Check what no type can say. Raises ConfigError naming the key."""

    def check(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{where}: {message}")

    data, tokenizer, train = config.data, config.tokenizer, config.train
    check(
        data.source in ("idx", "folder", "ilsvrc", "parquet", "webdataset"),
        f"data.source={data.source!r} is none of idx, folder, ilsvrc, parquet, webdataset",
    )
    check(data.channels in (1, 3), f"data.channels={data.channels}: 1 (grey) or 3 (RGB)")
    check(data.num_classes >= 1, f"data.num_classes={data.num_classes} must be at least 1")
    check(1 <= data.views <= 127, f"data.views={data.views} must be 1 to 127")
    check(data.crop_scale >= 1.0, f"data.crop_scale={data.crop_scale} must be at least 1")
    check(
        data.class_names is None or len(data.class_names) == data.num_classes,
        f"data.class_names holds {len(data.class_names or [])} names, data.num_classes={data.num_classes}",
    )
    down = tokenizer.downsampling
    check(
        data.image_size % down == 0,
        f"data.image_size={data.image_size} is not a multiple of {down}, the downsampling of tokenizer.patch="
        f"{tokenizer.patch} and {len(tokenizer.widths)} tokenizer.widths",
    )
    positions = (data.image_size // down) ** 2
    check(
        positions & (positions - 1) == 0 and 4 <= positions <= 1024,
        f"data.image_size={data.image_size} and a downsampling of {down} give {positions} latent positions: clusters "
        "are halved at every stage, so this must be a power of two from 4 to 1024; change data.image_size, "
        "tokenizer.patch or the number of tokenizer.widths",
    )
    check(
        all(width >= 16 and width % min(32, width // 4) == 0 for width in tokenizer.widths),
        f"tokenizer.widths={tokenizer.widths}: at least 16, multiples of 4, of 32 from 128 on (normalisation groups)",
    )
    check(
        tokenizer.child_order in ("raster", "feature", "spread"),
        f"tokenizer.child_order={tokenizer.child_order!r} is none of raster, feature, spread",
    )
    check(2 <= tokenizer.codebook_size <= 65536, f"tokenizer.codebook_size={tokenizer.codebook_size}: 2 to 65536")
    check(len(tokenizer.widths) <= 12 and tokenizer.blocks <= 64, "tokenizer.widths, tokenizer.blocks: too many")
    check(1 <= config.content.depth <= 128, f"content.depth={config.content.depth} must be 1 to 128")
    check(
        2 <= config.structure.depth <= 128 and config.structure.depth % 2 == 0,
        f"structure.depth={config.structure.depth} must be even, 2 to 128: the width is 32 a layer in heads of 64",
    )
    check(
        len(train.parts) > 0 and set(train.parts) <= {"content", "structure"},
        f"train.parts={train.parts}: content, structure or both",
    )
    check(
        config.content.repa_block is None or 1 <= config.content.repa_block <= config.content.depth,
        f"repa.block={config.content.repa_block} is not one of the {config.content.depth} blocks of content.depth",
    )
    distill = config.distill
    check(distill.steps >= 0, f"distill.steps={distill.steps} must be at least 0 (no distillation)")
    check(
        distill.teacher is None or distill.steps > 0,
        f"distill.teacher={distill.teacher} with distill.steps=0: say how many steps to train",
    )
    for name, section in trainings(config).items():
        check(
            section.precision in ("auto", "float32", "bfloat16"),
            f"{name}.precision={section.precision!r} is none of auto, float32, bfloat16",
        )
        check(
            getattr(section, "parallel", "ddp") in ("ddp", "fsdp"),
            f"{name}.parallel={getattr(section, 'parallel', 'ddp')!r} is none of ddp, fsdp",
        )
        check(section.accumulate >= 1, f"{name}.accumulate={section.accumulate} must be at least 1")
        share = config.cluster.num_workers * section.accumulate
        check(
            section.batch_size % share == 0,
            f"{name}.batch_size={section.batch_size} is not a multiple of cluster.num_workers * {name}.accumulate = "
            f"{share}",
        )
        check(len(section.betas) == 2, f"{name}.betas={section.betas} must be two numbers")
        check(section.checkpoint_every >= 1, f"{name}.checkpoint_every={section.checkpoint_every}: at least 1")
    if distill.steps:
        check(
            len(distill.parts) > 0 and set(distill.parts) <= {"content", "structure"},
            f"distill.parts={distill.parts}: content, structure or both",
        )
        check(distill.flow_steps >= 1, f"distill.flow_steps={distill.flow_steps} must be at least 1")
        check(0 < distill.flow_share < 1, f"distill.flow_share={distill.flow_share} must be between 0 and 1")
        check(distill.max_guidance > 1, f"distill.max_guidance={distill.max_guidance} must be above 1")
        for part in distill.parts:
            scale = getattr(config.sampler, f"{part}_guidance")
            check(
                1 <= scale <= distill.max_guidance,
                f"sampler.{part}_guidance={scale} is not in 1 ... distill.max_guidance={distill.max_guidance}: a "
                "distilled generator knows no other",
            )
    for name in ("worker_resources", "reader_resources"):
        for resource, amount in getattr(config.cluster, name).items():
            check(
                amount > 0 and resource not in STANDARD_RESOURCES,
                f"cluster.{name}={{{resource}: {amount:g}}}: an amount above 0 of a resource that Ray does not have of "
                f"itself ({', '.join(STANDARD_RESOURCES)} have settings of their own, or none)",
            )
    evaluate = config.evaluate
    for name, least in (("samples_per_class", 1), ("batch_size", 1), ("bootstrap", 2)):
        value = getattr(evaluate, name)
        check(value >= least, f"evaluate.{name}={value} must be at least {least}")
    check(
        evaluate.samples_per_class * data.num_classes >= 2,
        f"evaluate.samples_per_class={evaluate.samples_per_class}: one image has no covariance, draw at least two",
    )
    check(
        evaluate.reconstructions == 0 or evaluate.reconstructions >= 2,
        f"evaluate.reconstructions={evaluate.reconstructions} must be 0 (none) or at least 2",
    )
    check(
        evaluate.reference in ("test", "train") or evaluate.reference.endswith(".npz"),
        f"evaluate.reference={evaluate.reference!r} is none of test, train, or the path or URL of an .npz file",
    )
    check(config.sampler.flow_steps >= 1, f"sampler.flow_steps={config.sampler.flow_steps} must be at least 1")
    check(0 < config.sampler.top_p <= 1, f"sampler.top_p={config.sampler.top_p} must be in (0, 1]")


def trainings(config: Config) -> dict[str, TokenizerTrainConfig | TrainConfig | DistillConfig]:
    """The sections of the trainings that this configuration runs, by name."""
    sections: dict[str, TokenizerTrainConfig | TrainConfig | DistillConfig] = {
        "tokenizer_train": config.tokenizer_train,
        "train": config.train,
    }
    if config.distill.steps:
        sections["distill"] = config.distill
    return sections


def to_dict(config: Any) -> dict:
    """A configuration or a section as plain nested dictionaries."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False)


def digest(*parts: Any) -> str:
    """A short hash of configuration sections, strings and lists: 12 hexadecimal digits, stable over machines."""
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
