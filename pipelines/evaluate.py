"""Measure a trained sampler: distances to real images, a classifier's verdict, reconstructions, sample grids.

    python pipelines/evaluate.py --config conf/fashion_mnist.yaml key=value ...
    python pipelines/evaluate.py --config conf/eval/imagenet_fid50k.yaml --sampler s3://.../generators-... key=value ...

The first form measures the sampler that train.py made with this configuration. With --sampler it is any other one, by
name, folder or URL: the configuration then only changes the settings that the sampler was trained with.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvg import config as configuration
from nvg import storage, tracking
from nvg.artifacts.models import is_shipped, model_settings, read_metadata, sampler_folder
from nvg.cluster import start_ray
from nvg.config import Config
from nvg.data import ImageSource, open_source
from nvg.evaluation import metrics
from nvg.evaluation.data_classifier import classifier_place, train_data_classifier
from nvg.evaluation.features import network_name
from nvg.evaluation.measure import image_rows, measure, npz_rows, sample_rows, stage_rows, unpack
from nvg.evaluation.metrics import Figure, Moments
from nvg.evaluation.npz import ImageWriter, read_moments
from nvg.evaluation.reconstruction import ReconstructionFigures
from nvg.evaluation.reference import Reference, ReferenceMeter, load_reference
from nvg.pictures import MAXIMUM_CLASSES, reconstruction_picture, sample_grid, stages_picture
from pipelines.command_line import check_output, job_parser, one_line_errors, read_config, words
from pipelines.job import already, make_artifact
from pipelines.steps import Artifact, as_drawn, check_evaluation, claimed

GRID_COLUMNS = 10  # samples a class in samples.png
STAGE_ROWS = 6  # images in stages.png
SAMPLES_FILE = "samples.npz"
RESULT = "evaluation.json"


def evaluate(config: Config, sampler_folder: str, output_folder: str) -> dict[str, Any]:
    """Evaluate the sampler of a folder (path or URL) on the running Ray; returns what evaluation.json holds.

    `output_folder` gets samples.npz, pictures, evaluation.json and metadata.json, all or nothing. evaluation.json
    stands beside the sampler too, the latest one, unless it ships with the package. MLflow gets all but samples.npz.
    """
    begun = time.time()
    with storage.folder_writer(output_folder) as folder:
        evaluation = _Evaluation(config, sampler_folder, folder)
        evaluation.run()
        result = {
            "figures": {name: _plain(value) for name, value in evaluation.figures.items()},
            "intervals": {
                name: [value.low, value.high] for name, value in evaluation.figures.items() if isinstance(value, Figure)
            },
            "protocol": evaluation.protocol,
            "sampler": sampler_folder,
            "evaluate": dataclasses.asdict(config.evaluate),
            "seconds": round(time.time() - begun, 1),
        }
        storage.write_json(str(folder / RESULT), result)
        run = _track(config, sampler_folder, output_folder, result, folder)
        storage.write_json(str(folder / storage.LAST_FILE), {"kind": "evaluation", "run_id": run})
    if not is_shipped(sampler_folder):  # its evaluation.json is what its card says, and no matter of who tries it
        try:
            storage.write_json(storage.join(sampler_folder, RESULT), result)
        except OSError as error:  # a sampler that others own, for reading alone
            print(f"evaluation: not written beside the sampler: {error}", flush=True)
    print(summary(result, output_folder), flush=True)
    return result


class _Evaluation:
    """One evaluation, from the work to the figures."""

    def __init__(self, config: Config, sampler_folder: str, folder: Path) -> None:
        self.config, self.sampler_folder, self.folder = config, sampler_folder, folder
        self.class_names: list[str] = read_metadata(sampler_folder)["class_names"]
        self.figures: dict[str, Any] = {}
        self.held_out = "test" if config.data.test is not None else "train"
        self.sources: dict[str, ImageSource] = {}

    def run(self) -> None:
        """All figures and pictures."""
        config, settings = self.config, self.config.evaluate
        self.network = self._network()
        network = network_name(*self.network)
        compared = self.held_out if settings.reference == "test" else settings.reference
        wanted = [compared]
        if settings.reconstructions:
            wanted.append(self.held_out)
        if settings.train_distance and config.data.test is not None:
            wanted += ["test", "train"]
        places = {name: self._reference_place(name, network) for name in dict.fromkeys(wanted)}
        references = {name: load_reference(place[0]) for name, place in places.items() if storage.exists(place[0])}
        missing = [name for name in places if name not in references]

        rows = sample_rows(config, len(self.class_names)) + stage_rows(config, len(self.class_names), STAGE_ROWS)
        total = settings.samples_per_class * len(self.class_names) + min(STAGE_ROWS, len(self.class_names))
        for name in missing:
            found = list(npz_rows(name)) if name.endswith(".npz") else image_rows("features", name, self._source(name))
            rows += found
            total += sum(_count(row) for row in found) if name.endswith(".npz") else self._source(name).count()
        if settings.reconstructions:
            some = open_source(config.data, self.held_out)
            some.limit(settings.reconstructions)
            rows += image_rows("reconstruct", self.held_out, some)
            total += some.count()

        answers = measure(config, rows, self.sources, self.sampler_folder, self.network, total)
        collected = self._collect(answers, missing)
        for name in missing:
            path, fingerprint = places[name]
            moments = _published_moments(name) if name.endswith(".npz") else None
            what = "reference" if name.endswith(".npz") else name
            references[name] = collected.references[name].reference(
                what,
                fingerprint,
                network,
                labelled=not name.endswith(".npz") and self.knows_classes,
                all_images=moments,
            )
            references[name].save(path)
        self.protocol = {
            "samples": len(collected.labels),
            "reference": references[compared].name,
            "reference_images": references[compared].images,
            "reference_fingerprint": references[compared].fingerprint,
            "network": network,
            "image_size": config.data.image_size,
            "settings": dataclasses.asdict(config.sampler),
        }
        self._sample_figures(collected, references[compared])
        self._tokenizer_figures(collected, references)

    # ---- the work ----

    @property
    def knows_classes(self) -> bool:
        """Whether the network's outputs are the data set's classes."""
        return self.network[0] == "classifier"

    def _network(self) -> tuple[str, str]:
        """Kind and path of the feature network; the classifier is trained where there is none yet."""
        import ray

        config = self.config
        if config.evaluate.inception_weights is not None:
            from nvg.frozen.inception import load_inception

            load_inception(config.evaluate.inception_weights)  # a wrong file is told before anything is drawn
            return "inception", config.evaluate.inception_weights
        source = self._source("train")
        path = classifier_place(config, source)
        if not storage.exists(path):
            ray.get(ray.remote(train_data_classifier).options(**config.cluster.actor).remote(config, path))
        return "classifier", path

    def _source(self, split: str) -> ImageSource:
        if split not in self.sources:
            self.sources[split] = open_source(self.config.data, split)
        return self.sources[split]

    def _reference_place(self, name: str, network: str) -> tuple[str, str]:
        """The file of a reference's features, and the fingerprint of its images."""
        if name.endswith(".npz"):
            (size,) = storage.list_sizes(name).values()
            images = configuration.digest(name.rpartition("/")[2], size)
            pixels = None
        else:
            images = self._source(name).fingerprint()
            data = self.config.data
            pixels = [data.image_size, data.channels, data.limit if name == "train" else None]
        key = configuration.digest("reference", images, pixels, network)
        return storage.join(self.config.output, f"reference-{key}.safetensors"), images

    def _collect(self, answers: Iterator[dict[str, Any]], references: Sequence[str]) -> _Collected:
        """Take all answers in: features in memory, images to samples.npz and into pictures."""
        settings, size = self.config.evaluate, self.config.data.image_size
        count = settings.samples_per_class * len(self.class_names)
        collected = _Collected(references, settings.seed, ReconstructionFigures())
        chosen = np.linspace(0, len(self.class_names) - 1, min(MAXIMUM_CLASSES, len(self.class_names))).round()
        grid: dict[int, list[np.ndarray]] = {int(label): [] for label in chosen}
        writer = ImageWriter(self.folder / SAMPLES_FILE, count, size) if settings.save_samples else None
        with writer or contextlib.nullcontext():
            for answer in answers:
                if answer["kind"] == "sample":
                    images = unpack(answer["images"])
                    collected.add_samples(answer)
                    if writer is not None:
                        writer.add(images)
                    for image, label in zip(images, answer["labels"], strict=True):
                        if label in grid and len(grid[label]) < GRID_COLUMNS:
                            grid[label].append(image)
                elif answer["kind"] == "features":
                    collected.add_features(answer, self.knows_classes)
                elif answer["kind"] == "stages":
                    picture = stages_picture(
                        unpack(answer["codes"]), list(unpack(answer["images"])), answer["labels"], self.class_names
                    )
                    picture.save(self.folder / "stages.png")
                else:
                    if collected.reconstruction.images == 0:
                        pair = unpack(answer["images"]), unpack(answer["reconstructions"])
                        reconstruction_picture(*pair).save(self.folder / "reconstruction.png")
                    collected.add_reconstructions(answer)
        images = np.stack([image for some in grid.values() for image in some])
        labels = [label for label, some in grid.items() for _ in some]
        sample_grid(images, labels, self.class_names, GRID_COLUMNS).save(self.folder / "samples.png")
        return collected

    # ---- the figures ----

    def _sample_figures(self, collected: _Collected, reference: Reference) -> None:
        settings, figures = self.config.evaluate, self.figures
        features, logits = torch.cat(collected.features), torch.cat(collected.logits)
        options: dict[str, Any] = {"replicates": settings.bootstrap, "seed": settings.seed}
        figures["samples"] = len(features)
        if self.knows_classes:
            right = int((logits.argmax(dim=1) == torch.tensor(collected.labels)).sum())
            figures["accuracy_on_samples"] = metrics.share(right, len(features))
        figures["frechet_distance"] = metrics.frechet(features, reference.moments, **options)
        figures["inception_score"] = metrics.inception_score(logits, **options)
        if min(len(features), len(reference.features)) >= 2 * metrics.GROUPS:
            figures["kernel_distance"] = metrics.kernel_distance(features, reference.features, seed=settings.seed)
        if min(len(features), len(reference.features)) > metrics.NEIGHBOURS:
            figures["precision"], figures["recall"] = metrics.precision_and_recall(features, reference.features)

    def _tokenizer_figures(self, collected: _Collected, references: dict[str, Reference]) -> None:
        settings, figures = self.config.evaluate, self.figures
        options: dict[str, Any] = {"replicates": settings.bootstrap, "seed": settings.seed}
        if self.held_out in references and (right := references[self.held_out].right) is not None:
            figures[f"accuracy_on_{self.held_out}"] = metrics.share(right, references[self.held_out].images)
        if "train" in references and "test" in references:
            kept = references["train"].features
            figures["train_to_test_distance"] = metrics.frechet(kept, references["test"].moments, **options)
        if settings.reconstructions:
            figures["reconstruction_images"] = f"{collected.reconstruction.images} {self.held_out} images"
            figures["reconstruction_frechet_distance"] = metrics.frechet(
                torch.cat(collected.reconstructed_features), references[self.held_out].moments, **options
            )
            figures |= collected.reconstruction.figures(replicates=settings.bootstrap, seed=settings.seed)


class _Collected:
    """What came back from the actors."""

    def __init__(self, references: Sequence[str], seed: int, reconstruction: ReconstructionFigures) -> None:
        self.features: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.labels: list[int] = []
        self.references = {name: ReferenceMeter(seed) for name in references}
        self.reconstructed_features: list[torch.Tensor] = []
        self.reconstruction = reconstruction

    def add_samples(self, answer: dict[str, Any]) -> None:
        """A `sample` row."""
        self.features.append(torch.from_numpy(unpack(answer["features"])))
        self.logits.append(torch.from_numpy(unpack(answer["logits"])))
        self.labels += [int(label) for label in answer["labels"]]

    def add_features(self, answer: dict[str, Any], labelled: bool) -> None:
        """A `features` row, of a reference."""
        verdict = unpack(answer["logits"]).argmax(axis=1)
        right = int((verdict == np.asarray(answer["labels"])).sum()) if labelled else 0
        self.references[answer["split"]].add(torch.from_numpy(unpack(answer["features"])), right)

    def add_reconstructions(self, answer: dict[str, Any]) -> None:
        """A `reconstruct` row."""
        self.reconstructed_features.append(torch.from_numpy(unpack(answer["reconstructed_features"])))
        distances = torch.from_numpy(unpack(answer["lpips"])) if answer["lpips"] else None
        self.reconstruction.add(
            torch.from_numpy(unpack(answer["errors"])), torch.from_numpy(unpack(answer["counts"])), distances
        )


def _count(row: dict[str, Any]) -> int:
    return len(unpack(row["images"]))


def _published_moments(path: str) -> Moments | None:
    """The moments that an ADM reference batch holds of all training images, if it does."""
    with storage.open(path) as file:
        found = read_moments(file)
    return None if found is None else Moments(*(torch.from_numpy(array).double() for array in found))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Figure) else value


# ---- MLflow, and the command ----


def _track(config: Config, sampler: str, output: str, result: dict[str, Any], folder: Path) -> str:
    """Log everything but samples.npz, which is too large for a tracking server; returns the run's id."""
    run = tracking.start(config, "evaluate", folder=output)
    run.set_tags({"artifact": output, "sampler": sampler, "network": result["protocol"]["network"]})
    numbers = {name: value for name, value in result["figures"].items() if isinstance(value, int | float)}
    for name, (low, high) in result["intervals"].items():
        numbers |= {f"{name}/low": low, f"{name}/high": high}
    run.log_metrics(numbers, 0)
    for path in sorted(folder.iterdir()):
        if path.name != SAMPLES_FILE:
            run.log_artifact(path)
    run.end()
    return run.id


def summary(result: dict[str, Any], folder: str) -> str:
    """One line on a finished evaluation."""
    figures, protocol = result["figures"], result["protocol"]
    low, high = result["intervals"]["frechet_distance"]
    text = (
        f"evaluation: Fréchet distance {figures['frechet_distance']:.3g} [{low:.3g}, {high:.3g}] of "
        f"{figures['samples']} samples to {protocol['reference']} ({protocol['network']})"
    )
    if "accuracy_on_samples" in figures:
        text += f", classifier accuracy {figures['accuracy_on_samples']:.3f}"
    if "reconstruction_mse" in figures:
        text += f", reconstruction MSE {figures['reconstruction_mse']:.4f}"
    return f"{text}, {result['seconds']} s, {folder}"


def evaluate_trained(config: Config, sampler_folder: str, output_folder: str) -> dict[str, Any]:
    """`evaluate` of the sampler that this configuration trains, or distils into one with flow steps of its own."""
    return evaluate(as_drawn(config), sampler_folder, output_folder)


def evaluate_any(arguments: argparse.Namespace) -> None:
    """Measure the sampler of --sampler, unless that is done already. Raises the errors of `make_artifact`."""
    folder = sampler_folder(arguments.sampler)
    settings = configuration.merged(model_settings(folder), configuration.read(arguments.config))
    config = configuration.from_dict(settings, arguments.overrides, where=arguments.config)
    check_output(config)
    key = configuration.digest(read_metadata(folder), config.evaluate, config.sampler, config.data)
    evaluation = Artifact("evaluation", key, storage.join(config.output, f"evaluation-{key}"))
    if already(evaluation):
        return
    check_evaluation(config)
    with claimed(evaluation):
        start_ray(config.cluster)
        evaluate(config, folder, evaluation.folder)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure a finished sampler, unless that is done already. argv: the command line without the program."""
    parser = job_parser(__doc__)
    parser.add_argument("--sampler", help="a sampler by name, folder or URL, instead of the one this file trains")
    arguments = parser.parse_intermixed_args(words(argv))
    if arguments.sampler is None:
        make_artifact("evaluation", read_config(arguments), words(argv))
    else:
        evaluate_any(arguments)


if __name__ == "__main__":
    main()
