"""One evaluation of a sampler on the running Ray: from the work to the figures.

Features of real images are kept in files of the output folder: an evaluation takes those that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvg import storage
from nvg.artifacts.models import read_metadata
from nvg.config import Config, read_given
from nvg.console import say
from nvg.data import ImageSource
from nvg.data.classes import first, misplaced
from nvg.errors import DataError
from nvg.evaluation.classifier import ClassifierConfig
from nvg.evaluation.collect import Collector
from nvg.evaluation.data_classifier import classifier_file, train_data_classifier
from nvg.evaluation.features import INCEPTION_WIDTH, NetworkFile
from nvg.evaluation.figures import Figures, bound_figures, dinov2_figures, reconstruction_figures, sample_figures
from nvg.evaluation.given import HeldOutStructures, work_on
from nvg.evaluation.measure import measure
from nvg.evaluation.npz import ImageWriter
from nvg.evaluation.reference import Reference
from nvg.evaluation.reference_images import FeaturesKey, NpzImages, RealFeatures, ReferenceImages, SplitImages
from nvg.evaluation.work import (
    ReadUnit,
    Reconstruct,
    Result,
    Structures,
    Work,
    sample_work,
    stage_work,
)

STAGE_ROWS = 6  # images in stages.png
SAMPLES_FILE = "samples.npz"


@dataclass(frozen=True)
class Evaluated:
    """The outcome of an evaluation."""

    figures: Figures
    protocol: dict[str, Any]  # what two evaluations must share to be compared (nvg/evaluation/compare.py)


def npz_reference(config: Config) -> NpzImages:
    """The .npz file that evaluate.reference names. Raises DataError where it does not fit the configuration."""
    settings = config.evaluate
    classifier = ClassifierConfig(config.data.num_classes) if settings.inception_weights is None else None
    width = INCEPTION_WIDTH if classifier is None else classifier.feature_width
    images = NpzImages(settings.reference, config.data, width)
    if settings.dinov2_weights is not None and images.header.shape is None:
        raise DataError(
            f"evaluate.reference={settings.reference} holds mu and sigma alone: evaluate.dinov2_weights needs images"
        )
    return images


class Evaluation:
    """The steps of an evaluation, which `run` takes in order."""

    def __init__(self, config: Config, sampler_folder: str, folder: Path) -> None:
        """sampler_folder: path or URL. folder: gets samples.npz and the pictures."""
        self.config, self.settings = config, config.evaluate
        self.sampler_folder, self.folder = sampler_folder, folder
        self.class_names: list[str] = read_metadata(sampler_folder)["class_names"]
        self.held_out = "test" if config.data.test is not None else "train"
        self.compared = self.held_out if self.settings.reference == "test" else self.settings.reference
        self.splits: dict[str, SplitImages] = {}
        self.dinov2: NetworkFile | None = None
        self.structures: HeldOutStructures | None = None

    def run(self) -> Evaluated:
        """Measure what is missing, and compute the figures."""
        images = {name: self._reference_images(name) for name in self._reference_names()}  # before anything is computed
        self.network = self._network()
        needed = [RealFeatures(some, self.network) for some in images.values()]
        if self.settings.dinov2_weights is not None:
            self.dinov2 = NetworkFile("dinov2", self.settings.dinov2_weights)
            self.dinov2.load()  # wrong files are reported before anything is drawn
            needed.append(RealFeatures(images[self.compared], self.dinov2))
        if self.settings.given is not None:
            self.structures = self._structures(self.settings.given)
        references = {some.key: some.kept(self.config.output) for some in needed}
        missing = [some for some in needed if references[some.key] is None]
        collector = self._measure(missing)
        for some in missing:
            references[some.key] = some.keep(collector.references[some.key], self.config.output)
        return self._evaluated(collector, {key: one for key, one in references.items() if one is not None})

    # ---- what is measured with, and against what ----

    def _network(self) -> NetworkFile:
        """The feature network; the data set's classifier is trained where it is missing."""
        import ray

        config, weights = self.config, self.settings.inception_weights
        if weights is not None:
            from nvg.frozen.inception import load_inception

            load_inception(weights)  # a wrong file is reported before anything is drawn
            return NetworkFile("inception", weights)
        training = self._split("train")
        self._check_classes(training, "by which a classifier would judge it")
        path = classifier_file(config, training.source)
        if not storage.exists(path):
            ray.get(ray.remote(train_data_classifier).options(**config.cluster.actor).remote(config, path))
        return NetworkFile("classifier", path)

    def _check_classes(self, split: SplitImages, use: str) -> None:
        """Raises DataError where the sampler's classes are not those of the images. use: of the images."""
        names = split.source.class_names
        if len(names) != len(self.class_names) or misplaced(self.class_names, names):
            raise DataError(
                f"the sampler's classes ({first(self.class_names)}) are not those of data.{split.name} "
                f"({first(names)}), {use}: give the images it was made of"
            )

    def _reference_names(self) -> list[str]:
        """The sets of real images that the figures need, each once."""
        names = [self.compared]
        if self.settings.reconstructions:
            names.append(self.held_out)
        if self.settings.train_distance and self.config.data.test is not None:
            names += ["test", "train"]
        return list(dict.fromkeys(names))

    def _reference_images(self, name: str) -> ReferenceImages:
        return npz_reference(self.config) if name.endswith(".npz") else self._split(name)

    def _split(self, name: str) -> SplitImages:
        """A split of the data set, listed once."""
        if name not in self.splits:
            self.splits[name] = SplitImages(self.config, name, training=self._training())
        return self.splits[name]

    def _training(self) -> ImageSource | None:
        """The training images, where they are listed already."""
        return self.splits["train"].source if "train" in self.splits else None

    # ---- the structure that is given ----

    def _structures(self, text: str) -> HeldOutStructures:
        """The structures of all held-out images. text: evaluate.given."""
        tokenizer, split = self.config.tokenizer, self._split("test")
        self._check_classes(split, "whose images' structure is given")
        given = read_given(text, tokenizer.last_stage)
        results = self._results(split.work(work_on(given)), split.count(), "structure")
        found = [some for some in results if isinstance(some, Structures)]
        structures = HeldOutStructures(given, found, self.class_names, raster=tokenizer.child_order == "raster")
        say(f"{text}: structure of {len(structures)} of {split.count()} held-out images")
        return structures

    # ---- the measurement ----

    def _results(self, work: Sequence[Work | ReadUnit], images: int, title: str) -> Iterator[Result]:
        """The results of some work on so many images, by the actors."""
        return measure(
            self.config,
            work,
            readers={name: split.source.reader() for name, split in self.splits.items()},
            sampler_folder=self.sampler_folder,
            network=self.network,
            dinov2=self.dinov2,
            images=images,
            title=title,
        )

    def _measure(self, missing: Sequence[RealFeatures]) -> Collector:
        """Draw, take features of the missing references, reconstruct."""
        results = self._results(*self._work(missing), "evaluation")
        writer = None
        if self.settings.save_samples:
            count = self.settings.samples_per_class * len(self.class_names)
            writer = ImageWriter(self.folder / SAMPLES_FILE, count, self.config.data.image_size)
        keys = [some.key for some in missing]
        collector = Collector(self.class_names, self.folder, references=keys, seed=self.settings.seed, writer=writer)
        with writer or contextlib.nullcontext():
            for result in results:
                collector.add(result)
        collector.grid.save(self.folder / "samples.png")
        return collector

    def _work(self, missing: Sequence[RealFeatures]) -> tuple[list[Work | ReadUnit], int]:
        """All work in order, and its number of images."""
        config, classes = self.config, len(self.class_names)
        given = None if self.structures is None else self.structures.of
        draws: list[Work] = [*sample_work(config, classes, given), stage_work(config, classes, STAGE_ROWS, given)]
        work: list[Work | ReadUnit] = [*draws]
        images = sum(some.size for some in draws)
        for some in missing:
            work += some.images.work(some.take)
            images += some.images.count()
        if self.settings.reconstructions:
            shown = SplitImages(config, self.held_out, self.settings.reconstructions, self._training())
            work += shown.work(Reconstruct)
            images += shown.count()
        return work, images

    # ---- the outcome ----

    def _evaluated(self, collector: Collector, references: dict[FeaturesKey, Reference]) -> Evaluated:
        reference = references[self.compared, False]
        by_network = {name: one for (name, dinov2), one in references.items() if not dinov2}
        figures = sample_figures(self.settings, collector, reference, knows_classes=self.network.knows_classes)
        if self.dinov2 is not None:
            figures |= dinov2_figures(self.settings, collector, references[self.compared, True])
        figures |= bound_figures(self.settings, by_network, self.held_out)
        if self.settings.reconstructions:
            figures |= reconstruction_figures(self.settings, collector, by_network[self.held_out], self.held_out)
        return Evaluated(figures, self._protocol(collector, reference))

    def _protocol(self, collector: Collector, reference: Reference) -> dict[str, Any]:
        return {
            "samples": len(collector.labels),
            "reference": reference.name,
            "reference_images": reference.images,
            "reference_fingerprint": reference.fingerprint,
            "network": self.network.name,
            "dinov2_network": None if self.dinov2 is None else self.dinov2.name,
            "image_size": self.config.data.image_size,
            "given": self.settings.given,
            "settings": dataclasses.asdict(self.config.sampler),
        }
