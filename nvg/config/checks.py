"""What no type can say of a configuration: the ranges of numbers, which stand where they are declared
(nvg/config/schema.py), and settings that must fit together, one function per section.
"""

from __future__ import annotations

import re

from nvg.config.fields import check_ranges
from nvg.config.given import read_given
from nvg.config.schema import (
    STANDARD_RESOURCES,
    ClusterConfig,
    Config,
    DataConfig,
    DistillConfig,
    ServeConfig,
    TokenizerConfig,
    TrainingConfig,
    trainings,
)
from nvg.errors import ConfigError

EXPERIMENT_LENGTH = 500
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


class Checker:
    """Raises ConfigError, in the name of a file, for the first condition that does not hold."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{self.where}: {message}")


def validate(config: Config, where: str = "configuration") -> None:
    """Check what no type can say. Raises ConfigError naming the key."""
    check_ranges(config, f"{where}: ")
    check = Checker(where)
    _precision(check, "precision", config.precision)
    _data(check, config.data)
    _tokenizer(check, config.tokenizer, config.data)
    _generators(check, config)
    for name, section in trainings(config).items():
        _training(check, name, section, config.cluster.num_workers)
    _train(check, config)
    _distill(check, config.distill, config)
    _cluster(check, config.cluster)
    _evaluate(check, config)
    _tracking(check, config)


def _precision(check: Checker, key: str, precision: str) -> None:
    check(precision in PRECISIONS, f"{key}={precision!r} is none of {', '.join(PRECISIONS)}")


def _data(check: Checker, data: DataConfig) -> None:
    check(
        data.source in ("idx", "folder", "ilsvrc", "parquet", "webdataset"),
        f"data.source={data.source!r} is none of idx, folder, ilsvrc, parquet, webdataset",
    )
    check(data.channels in (1, 3), f"data.channels={data.channels}: 1 (grey) or 3 (RGB)")
    check(data.resize in ("antialiased", "lanczos8"), f"data.resize={data.resize!r} is none of antialiased, lanczos8")
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
        all(width % min(32, width // 4) == 0 for width in tokenizer.widths),
        f"tokenizer.widths={tokenizer.widths}: multiples of 4, of 32 from 128 on (normalisation groups)",
    )
    check(
        tokenizer.child_order in ("raster", "merge"),
        f"tokenizer.child_order={tokenizer.child_order!r} is none of raster, merge",
    )
    check(len(tokenizer.widths) <= 12, f"tokenizer.widths={tokenizer.widths}: at most 12")


def _generators(check: Checker, config: Config) -> None:
    content, structure = config.content, config.structure
    check(
        structure.depth % 2 == 0,
        f"structure.depth={structure.depth} must be even: the width is 32 a layer in heads of 64",
    )
    for key, value in (("content.tokens", content.tokens), ("structure.canvas_tokens", structure.canvas_tokens)):
        check(value in ("clusters", "positions"), f"{key}={value!r} is none of clusters, positions")
    check(
        content.tokens == "positions" or content.position_network,
        "content.tokens=clusters needs content.position_network=true: the mean of a cluster does not tell its shape",
    )
    check(
        content.tokens == "positions" or content.residual,
        "content.residual=false goes with content.tokens=positions alone, as in the released system",
    )
    check(
        content.repa_block is None or 1 <= content.repa_block <= content.depth,
        f"repa.block={content.repa_block} is not one of the {content.depth} blocks of content.depth",
    )


def _training(check: Checker, name: str, section: TrainingConfig, workers: int) -> None:
    """What the three trainings share."""
    _precision(check, f"{name}.precision", section.precision)
    slices = workers * section.accumulate
    check(
        section.batch_size % slices == 0,
        f"{name}.batch_size={section.batch_size} is not a multiple of cluster.num_workers * {name}.accumulate = "
        f"{slices}",
    )
    steps, epochs = getattr(section, "steps", None), getattr(section, "epochs", None)
    check(
        steps is None or epochs is None or epochs == type(section)().epochs,  # type: ignore[attr-defined]
        f"{name}.steps={steps} and {name}.epochs={epochs} both say how long the training is: leave one out",
    )
    check(len(section.betas) == 2, f"{name}.betas={section.betas} must be two numbers")


def _train(check: Checker, config: Config) -> None:
    train = config.train
    _networks(check, "train", train.parts)
    check(
        train.evaluate_every == 0 or len(train.parts) == 2,
        f"train.evaluate_every={train.evaluate_every}, train.parts={train.parts}: one generator alone draws nothing",
    )
    for network in ("structure", "content"):
        scale = getattr(config.sampler, f"{network}_guidance")
        check(
            train.class_dropout > 0 or scale == 1,
            f"sampler.{network}_guidance={scale:g} with train.class_dropout=0: guidance needs generators that have "
            f"seen images without their class: set sampler.{network}_guidance=1, or train.class_dropout above 0",
        )
    check(
        train.class_dropout > 0 or config.distill.steps == 0 or config.distill.teacher is not None,
        f"distill.steps={config.distill.steps} with train.class_dropout=0: a distilled generator learns guidance, "
        "which its teacher lacks: set train.class_dropout above 0",
    )
    check(train.parallel in ("ddp", "fsdp"), f"train.parallel={train.parallel!r} is none of ddp, fsdp")


def _distill(check: Checker, distill: DistillConfig, config: Config) -> None:
    check(
        distill.teacher is None or distill.steps > 0,
        f"distill.teacher={distill.teacher} with distill.steps=0: say how many steps to train",
    )
    if distill.steps == 0:
        return
    _networks(check, "distill", distill.parts)
    for network in distill.parts:
        scale = getattr(config.sampler, f"{network}_guidance")
        check(
            1 <= scale <= distill.max_guidance,
            f"sampler.{network}_guidance={scale} is not in 1 ... distill.max_guidance={distill.max_guidance}: a "
            "distilled generator knows no other",
        )

    slices = config.cluster.num_workers * distill.accumulate
    check(
        "structure" not in distill.parts or distill.batch_size >= 2 * slices,
        f"distill.batch_size={distill.batch_size} gives each of cluster.num_workers * distill.accumulate = {slices} "
        "slices one image: the few-step loss needs two, one for the flow itself and one for larger steps",
    )


def _networks(check: Checker, name: str, networks: list[str]) -> None:
    check(
        len(networks) > 0 and set(networks) <= {"content", "structure"},
        f"{name}.parts={networks}: content, structure or both",
    )


def _cluster(check: Checker, cluster: ClusterConfig) -> None:
    check(
        cluster.min_workers is None or cluster.min_workers <= cluster.num_workers,
        f"cluster.min_workers={cluster.min_workers} is above cluster.num_workers={cluster.num_workers}",
    )
    for name in ("worker_resources", "reader_resources"):
        for resource, amount in getattr(cluster, name).items():
            check(
                resource not in STANDARD_RESOURCES,
                f"cluster.{name}={{{resource}: {amount:g}}}: name a resource that Ray does not have of itself "
                f"({', '.join(STANDARD_RESOURCES)} have settings of their own, or none)",
            )


def _evaluate(check: Checker, config: Config) -> None:
    evaluate = config.evaluate
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
    if evaluate.given is None:
        return
    try:
        given = read_given(evaluate.given, config.tokenizer.last_stage)
    except ConfigError as error:
        raise ConfigError(f"{check.where}: {error}") from None
    check(
        config.data.test is not None,
        f"evaluate.given={evaluate.given}: the structure is that of held-out images: set data.test",
    )
    check(
        given.kind != "other" or config.data.num_classes > 1,
        f"evaluate.given={evaluate.given}: data.num_classes={config.data.num_classes}, so there is no other class",
    )


def _tracking(check: Checker, config: Config) -> None:
    """What MLflow would refuse, the name of a model only after the last step of a training."""
    for key, name in (("name", config.name), ("tracking.experiment", config.tracking.experiment)):
        check(
            name is None or (name.strip() != "" and len(name) <= EXPERIMENT_LENGTH),
            f"{key}={name!r} is MLflow's name of the experiment: 1 to {EXPERIMENT_LENGTH} characters, not all spaces",
        )
    model = config.tracking.registered_model
    check(
        model is None or (model.strip() not in ("", ".", "..") and not set(model) & set("/:@")),
        f"tracking.registered_model={model!r}: MLflow takes no empty name and none with / or :, and models:/NAME@alias "
        "takes none with @",
    )


def validate_serving(config: ServeConfig, where: str = "configuration") -> None:
    """Check what no type can say of a deployment. Raises ConfigError naming the key."""
    check_ranges(config, f"{where}: ")
    check = Checker(where)
    check(config.host.strip() != "", "host is empty, which is every interface: write 0.0.0.0, or 127.0.0.1")
    for origin in config.allowed_origins:
        check(
            origin == "*" or re.fullmatch(r"https?://[^/\s*]+", origin) is not None,
            f"allowed_origins={origin!r}: write scheme://host or scheme://host:port without a slash at the end, or *",
        )
    _precision(check, "precision", config.precision)
    check(
        config.max_replicas >= config.min_replicas,
        f"max_replicas={config.max_replicas} is below min_replicas={config.min_replicas}",
    )
    check(
        config.max_queue >= config.max_images,
        f"max_queue={config.max_queue} is below max_images={config.max_images}: a request of so many images could "
        "never be taken",
    )
