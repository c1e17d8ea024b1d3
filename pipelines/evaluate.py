"""Measure a trained sampler: sample grids, a classifier's verdict on samples, reconstruction figures.

    python pipelines/evaluate.py --config conf/fashion_mnist.yaml key=value ...

Samples are drawn by Ray Data on cluster.encoders actors: image j has class j mod classes, seed evaluate.seed + j. The
classifier is a small network trained here on the training images, once a data set: is a generated image taken for the
class that was asked for?
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nvg import config as configuration
from nvg import storage, tracking
from nvg.config import Config, ConfigError
from nvg.data import DataError, image_batches, open_source
from nvg.data.images import to_float, to_uint8
from pipelines import common

if TYPE_CHECKING:
    from nvg.evaluation.classifier import Classifier

GRID_COLUMNS = 10  # samples a class in samples.png
STAGE_ROWS = 6  # images in stages.png
CLASSIFIER_BATCH = 128
PICTURES = ("samples.png", "stages.png", "reconstruction.png")


def evaluate(config: Config, sampler_folder: str, output_folder: str) -> dict[str, Any]:
    """Evaluate the sampler of a folder (path or URL) on the running Ray; returns what evaluation.json holds.

    Writes evaluation.json, samples.png, stages.png, reconstruction.png and, last, metadata.json; logs all to MLflow.
    """
    import ray

    begun = time.time()
    resources = {"num_cpus": config.cluster.cpus_per_worker, "num_gpus": 1 if config.cluster.use_gpu else 0}
    classifier_file = ray.get(ray.remote(_classifier).options(**resources).remote(config))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        figures |= _samples(config, sampler_folder, classifier_file, Path(scratch))
        name = ray.remote(_reconstructions).options(**resources)
        reconstruction, pictures = ray.get(name.remote(config, sampler_folder, classifier_file))
        figures |= reconstruction
        for file, data in pictures.items():
            (Path(scratch) / file).write_bytes(data)
        for file in PICTURES:
            storage.write_bytes(storage.join(output_folder, file), (Path(scratch) / file).read_bytes())
        result = {
            "figures": figures,
            "sampler": sampler_folder,
            "settings": dataclasses.asdict(config.sampler),
            "evaluate": dataclasses.asdict(config.evaluate),
            "seconds": round(time.time() - begun, 1),
        }
        storage.write_json(storage.join(output_folder, "evaluation.json"), result)
        run = tracking.start(config, "evaluate")
        run.log_params(config)
        run.set_tags({"artifact": output_folder, "sampler": sampler_folder})
        run.log_metrics({name: value for name, value in figures.items() if isinstance(value, int | float)}, 0)
        for file in PICTURES:
            run.log_artifact(Path(scratch) / file)
        run.end()
    storage.write_json(storage.join(output_folder, storage.LAST_FILE), {"kind": "evaluation", "run_id": run.id})
    print(
        f"evaluation: classifier accuracy {figures['accuracy_on_samples']:.3f} on {figures['samples']} samples "
        f"({figures['accuracy_on_test']:.3f} on test images), reconstruction MSE {figures['reconstruction_mse']:.4f}, "
        f"codebook use {figures['codebook_use']:.1%}, {result['seconds']} s, {output_folder}",
        flush=True,
    )
    return result


def _threads(config: Config) -> None:
    torch.set_num_threads(config.cluster.threads_per_worker or max(1, round(config.cluster.cpus_per_worker)))


def _device(config: Config) -> torch.device:
    return torch.device("cuda" if config.cluster.use_gpu else "cpu")


# ---- the classifier ----


def _classifier(config: Config) -> str:
    """The file of the data set's classifier, trained if it is not there: `<output>/classifier-<key>.safetensors`."""
    from nvg.evaluation.classifier import save_classifier, train_classifier

    settings, data = config.evaluate, config.data
    source = open_source(data, "train")
    key = configuration.digest(
        "classifier", source.fingerprint(), data, settings.classifier_epochs, settings.classifier_size, settings.seed
    )
    path = storage.join(config.output, f"classifier-{key}.safetensors")
    if storage.exists(path):
        return path
    _threads(config)
    images = source.count()
    bar = common.progress(round(images * settings.classifier_epochs), "classifier", "image")

    batch_size = min(CLASSIFIER_BATCH, max(2, images // 4))

    def batches(epoch: int) -> Iterator[dict[str, Any]]:
        stream = image_batches(
            config,
            source,
            epoch=epoch,
            rank=0,
            world=1,
            batch_size=batch_size,
            seed=settings.seed,
            random_views=False,
        )
        # No more than the epoch holds: for one batch beyond it the stream would begin to read the images again.
        return itertools.islice(stream, max(1, images // batch_size))

    def on_step(seen: int, loss: float) -> None:
        bar.update(seen - on_step.before)  # type: ignore[attr-defined]
        on_step.before = seen  # type: ignore[attr-defined]

    on_step.before = 0  # type: ignore[attr-defined]
    classifier = train_classifier(
        batches,
        images_per_epoch=images,
        num_classes=data.num_classes,
        channels=data.channels,
        size=settings.classifier_size,
        epochs=settings.classifier_epochs,
        seed=settings.seed,
        device=_device(config),
        on_step=on_step,
    )
    bar.close()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "classifier.safetensors"
        save_classifier(classifier, file)
        storage.write_bytes(path, file.read_bytes())
    return path


def _load_classifier(path: str, device: torch.device) -> Classifier:
    from nvg.evaluation.classifier import load_classifier

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "classifier.safetensors"
        file.write_bytes(storage.read_bytes(path))
        return load_classifier(file).to(device)


# ---- samples ----


class Draw:
    """A sampler actor: rows of (classes, seeds) to rows of images and the classifier's verdict on them."""

    def __init__(self, config: Config, sampler_folder: str, classifier_file: str) -> None:
        from nvg.training.checkpoint import load_sampler

        _threads(config)
        device = _device(config)
        self.sampler = load_sampler(sampler_folder, config.sampler).to(device)
        self.classifier = _load_classifier(classifier_file, device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        labels = [int(label) for label in row["labels"]]
        images = self.sampler.generate(labels, seed=int(row["seed"]))
        verdict = self.classifier.predict(torch.from_numpy(images).to(self.sampler.device)).cpu()
        right = int((verdict == torch.tensor(labels)).sum())
        return {"first": row["first"], "labels": labels, "images": images.tobytes(), "right": right}


def _samples(config: Config, sampler_folder: str, classifier_file: str, scratch: Path) -> dict[str, Any]:
    """Draw evaluate.samples images, write samples.png, and say how many the classifier takes for their class."""
    import ray

    from nvg.evaluation.pictures import sample_grid
    from nvg.training.checkpoint import read_metadata

    class_names = read_metadata(sampler_folder)["class_names"]
    settings, cluster = config.evaluate, config.cluster
    labels = [number % len(class_names) for number in range(settings.samples)]
    rows = [
        {"first": first, "labels": labels[first : first + settings.batch_size], "seed": settings.seed + first}
        for first in range(0, settings.samples, settings.batch_size)
    ]
    actor: dict[str, Any] = {"num_cpus": cluster.cpus_per_worker} | ({"num_gpus": 1} if cluster.use_gpu else {})
    drawn = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Draw,  # type: ignore[arg-type]  # a class, for an actor
        fn_constructor_args=(config, sampler_folder, classifier_file),
        compute=ray.data.ActorPoolStrategy(size=cluster.encoders),
        **actor,
    )
    shape = (-1, config.data.image_size, config.data.image_size, config.data.channels)
    bar = common.progress(settings.samples, "samples", "image")
    right, kept, counts = 0, {}, dict.fromkeys(range(len(class_names)), 0)
    for row in drawn.iter_rows():
        right += row["right"]
        images = np.frombuffer(row["images"], np.uint8).reshape(shape)
        for place, label in enumerate(row["labels"]):
            if counts[label] < GRID_COLUMNS:  # the grid shows some of each class, whichever actor was first
                counts[label] += 1
                kept[row["first"] + place] = (images[place], label)
        bar.update(len(images))
    bar.close()
    some = [kept[number] for number in sorted(kept)]
    grid = sample_grid(np.stack([image for image, _ in some]), [label for _, label in some], class_names, GRID_COLUMNS)
    grid.save(scratch / "samples.png")
    return {"samples": settings.samples, "accuracy_on_samples": right / settings.samples}


# ---- reconstructions, and the stages of some samples ----


def _reconstructions(
    config: Config, sampler_folder: str, classifier_file: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Figures on held-out images, and the two pictures that need the models at hand."""
    from nvg.evaluation.classifier import accuracy
    from nvg.evaluation.pictures import reconstruction_picture, stages_picture
    from nvg.evaluation.reconstruction import ReconstructionMeter
    from nvg.training.checkpoint import load_sampler

    _threads(config)
    device = _device(config)
    sampler = load_sampler(sampler_folder, config.sampler).to(device)
    tokenizer = sampler.tokenizer
    classifier = _load_classifier(classifier_file, device)
    split = "test" if config.data.test is not None else "train"
    source = open_source(config.data, split)
    wanted = min(config.evaluate.reconstructions, source.count())
    meter = ReconstructionMeter(tokenizer.config.codebook_size, sampler.last_stage)
    shown: tuple[np.ndarray, np.ndarray] | None = None
    judged = []
    for batch in image_batches(
        config,
        source,
        epoch=0,
        rank=0,
        world=1,
        batch_size=min(config.cluster.encode_batch, wanted),
        seed=config.evaluate.seed,
        random_views=False,
    ):
        images = to_float(batch["images"]).to(device)
        sequence = tokenizer.encode(images)
        if shown is None:
            shown = batch["images"].numpy()[:20], to_uint8(tokenizer.decode(sequence)).cpu().numpy()[:20]
        meter.add(images, sequence, tokenizer.decode)
        judged.append(batch)
        if meter.images >= wanted:
            break
    figures = meter.figures()
    chosen = np.linspace(0, len(sampler.class_names) - 1, min(STAGE_ROWS, len(sampler.class_names))).round().astype(int)
    steps = list(sampler.stages(chosen.tolist(), seed=config.evaluate.seed))
    stages = stages_picture(
        steps[-1].sequence_codes.cpu(), [step.preview for step in steps], chosen, sampler.class_names
    )
    assert shown is not None
    pictures = {"stages.png": _png(stages), "reconstruction.png": _png(reconstruction_picture(*shown))}
    return {
        "accuracy_on_test": accuracy(classifier, judged),
        "reconstruction_images": f"{figures['images']} {split} images",
        "reconstruction_mse": figures["mse"],
        "reconstruction_psnr": figures["psnr"],
        "reconstruction_mse_by_stages": figures["mse_by_stages"],
        "codebook_use": figures["codebook_share"],
        "codebook_perplexity": figures["codebook_perplexity"],
    }, pictures


def _png(picture: Any) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        picture.save(file)
        return file.read_bytes()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the finished sampler, unless that is done already. argv: the command line without the program."""
    arguments = sys.argv[1:] if argv is None else argv
    config = common.parse_config(arguments, __doc__.split("\n")[0])
    try:
        artifacts = common.plan(config)
        if common.already(artifacts["evaluation"]):
            return
        sampler = common.require(artifacts["generators"], arguments)
        common.start_ray(config)
        evaluate(config, sampler, artifacts["evaluation"].folder)
    except (ConfigError, DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
