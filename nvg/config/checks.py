"""What no type can say of a configuration: ranges, and sections that must fit together. One function per section."""

from __future__ import annotations

from nvg.config.schema import (
    STANDARD_RESOURCES,
    ClusterConfig,
    Config,
    DataConfig,
    DistillConfig,
    SamplerConfig,
    ServeConfig,
    TokenizerConfig,
    TrainingConfig,
    trainings,
)
from nvg.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")


class Checker:
    """Raises ConfigError, in the name of a file, for the first condition that does not hold."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{self.where}: {message}")


def validate(config: Config, where: str = "configuration") -> None:
    """Check what no type can say. Raises ConfigError naming the key."""
    check = Checker(where)
    _data(check, config.data)
    _tokenizer(check, config.tokenizer, config.data)
    _generators(check, config)
    for name, section in trainings(config).items():
        _training(check, name, section, config.cluster.num_workers)
    _train(check, config)
    _distill(check, config.distill, config.sampler)
    _cluster(check, config.cluster)
    _evaluate(check, config)
    _sampler(check, config.sampler)


def _data(check: Checker, data: DataConfig) -> None:
    check(
        data.source in ("idx", "folder", "ilsvrc", "parquet", "webdataset"),
        f"data.source={data.source!r} is none of idx, folder, ilsvrc, parquet, webdataset",
    )
    check(data.channels in (1, 3), f"data.channels={data.channels}: 1 (grey) or 3 (RGB)")
    check(data.resize in ("antialiased", "lanczos8"), f"data.resize={data.resize!r} is none of antialiased, lanczos8")
    check(data.num_classes >= 1, f"data.num_classes={data.num_classes} must be at least 1")
    check(1 <= data.views <= 127, f"data.views={data.views} must be 1 to 127")
    check(data.crop_scale >= 1.0, f"data.crop_scale={data.crop_scale} must be at least 1")
    check(
        data.class_names is None or len(data.class_names) == data.num_classes,
        f"data.class_names holds {len(data.class_names or [])} names, data.num_classes={data.num_classes}",
    )


def _tokenizer(check: Checker, tokenizer: TokenizerConfig, data: DataConfig) -> None:
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
        tokenizer.child_order in ("raster", "merge"),
        f"tokenizer.child_order={tokenizer.child_order!r} is none of raster, merge",
    )
    check(2 <= tokenizer.codebook_size <= 65536, f"tokenizer.codebook_size={tokenizer.codebook_size}: 2 to 65536")
    check(len(tokenizer.widths) <= 12, f"tokenizer.widths={tokenizer.widths}: at most 12")
    for name in ("blocks", "decoder_blocks"):
        value = getattr(tokenizer, name)
        check(value is None or 1 <= value <= 64, f"tokenizer.{name}={value} must be 1 to 64")


def _generators(check: Checker, config: Config) -> None:
    content, structure = config.content, config.structure
    check(1 <= content.depth <= 128, f"content.depth={content.depth} must be 1 to 128")
    check(
        2 <= structure.depth <= 128 and structure.depth % 2 == 0,
        f"structure.depth={structure.depth} must be even, 2 to 128: the width is 32 a layer in heads of 64",
    )
    check(
        content.repa_block is None or 1 <= content.repa_block <= content.depth,
        f"repa.block={content.repa_block} is not one of the {content.depth} blocks of content.depth",
    )


def _training(check: Checker, name: str, section: TrainingConfig, workers: int) -> None:
    """What the three trainings share."""
    check(section.precision in PRECISIONS, f"{name}.precision={section.precision!r} is none of {', '.join(PRECISIONS)}")
    check(section.accumulate >= 1, f"{name}.accumulate={section.accumulate} must be at least 1")
    slices = workers * section.accumulate
    check(
        section.batch_size % slices == 0,
        f"{name}.batch_size={section.batch_size} is not a multiple of cluster.num_workers * {name}.accumulate = "
        f"{slices}",
    )
    check(len(section.betas) == 2, f"{name}.betas={section.betas} must be two numbers")
    check(section.checkpoint_every >= 1, f"{name}.checkpoint_every={section.checkpoint_every}: at least 1")


def _train(check: Checker, config: Config) -> None:
    train = config.train
    _networks(check, "train", train.parts)
    check(train.parallel in ("ddp", "fsdp"), f"train.parallel={train.parallel!r} is none of ddp, fsdp")


def _distill(check: Checker, distill: DistillConfig, sampler: SamplerConfig) -> None:
    check(distill.steps >= 0, f"distill.steps={distill.steps} must be at least 0 (no distillation)")
    check(
        distill.teacher is None or distill.steps > 0,
        f"distill.teacher={distill.teacher} with distill.steps=0: say how many steps to train",
    )
    if distill.steps == 0:
        return
    _networks(check, "distill", distill.parts)
    check(distill.flow_steps >= 1, f"distill.flow_steps={distill.flow_steps} must be at least 1")
    check(0 < distill.flow_share < 1, f"distill.flow_share={distill.flow_share} must be between 0 and 1")
    check(distill.max_guidance > 1, f"distill.max_guidance={distill.max_guidance} must be above 1")
    for network in distill.parts:
        scale = getattr(sampler, f"{network}_guidance")
        check(
            1 <= scale <= distill.max_guidance,
            f"sampler.{network}_guidance={scale} is not in 1 ... distill.max_guidance={distill.max_guidance}: a "
            "distilled generator knows no other",
        )


def _networks(check: Checker, name: str, networks: list[str]) -> None:
    check(
        len(networks) > 0 and set(networks) <= {"content", "structure"},
        f"{name}.parts={networks}: content, structure or both",
    )


def _cluster(check: Checker, cluster: ClusterConfig) -> None:
    for name in ("worker_resources", "reader_resources"):
        for resource, amount in getattr(cluster, name).items():
            check(
                amount > 0 and resource not in STANDARD_RESOURCES,
                f"cluster.{name}={{{resource}: {amount:g}}}: an amount above 0 of a resource that Ray does not have of "
                f"itself ({', '.join(STANDARD_RESOURCES)} have settings of their own, or none)",
            )


def _evaluate(check: Checker, config: Config) -> None:
    evaluate = config.evaluate
    for name, least in (("samples_per_class", 1), ("batch_size", 1), ("bootstrap", 2)):
        value = getattr(evaluate, name)
        check(value >= least, f"evaluate.{name}={value} must be at least {least}")
    check(
        evaluate.samples_per_class * config.data.num_classes >= 2,
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


def _sampler(check: Checker, sampler: SamplerConfig) -> None:
    check(sampler.flow_steps >= 1, f"sampler.flow_steps={sampler.flow_steps} must be at least 1")
    check(sampler.flow_shift >= 0, f"sampler.flow_shift={sampler.flow_shift} must be at least 0 (equal steps)")
    check(0 < sampler.top_p <= 1, f"sampler.top_p={sampler.top_p} must be in (0, 1]")


def validate_serving(config: ServeConfig, where: str = "configuration") -> None:
    """Check what no type can say of a deployment. Raises ConfigError naming the key."""
    check = Checker(where)
    for name in ("min_replicas", "threads_per_replica", "max_batch", "max_queue", "max_images", "max_upload_pixels"):
        check(getattr(config, name) >= 1, f"{name}={getattr(config, name)} must be at least 1")
    for name in ("target_ongoing_requests", "max_body_mb"):
        check(getattr(config, name) > 0, f"{name}={getattr(config, name)} must be above 0")
    check(config.precision in PRECISIONS[1:], f"precision={config.precision!r} is none of {', '.join(PRECISIONS[1:])}")
    check(1 <= config.port <= 65535, f"port={config.port} is none of 1 ... 65535")
    not_negative = ("batch_wait_ms", "cpus_per_replica", "gpus_per_replica", "drain_seconds", "follow_seconds")
    for name in (*not_negative, "upscale_delay_s", "downscale_delay_s"):
        check(getattr(config, name) >= 0, f"{name}={getattr(config, name)} must be at least 0")
    check(
        config.max_replicas >= config.min_replicas,
        f"max_replicas={config.max_replicas} is below min_replicas={config.min_replicas}",
    )
    check(
        config.max_queue >= config.max_images,
        f"max_queue={config.max_queue} is below max_images={config.max_images}: a request of so many images could "
        "never be taken",
    )
