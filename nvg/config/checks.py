"""What no type can say of a configuration: ranges, and sections that must fit together."""

from __future__ import annotations

from nvg.config.schema import STANDARD_RESOURCES, Config, trainings
from nvg.errors import ConfigError


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
