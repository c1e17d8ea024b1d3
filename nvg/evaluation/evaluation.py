"""One evaluation of a sampler on the running Ray: from the work to the figures.

Features of real images are kept in files of the output folder: an evaluation takes those that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvg import storage
from nvg.artifacts.models import read_metadata
from nvg.config import Config
from nvg.data import ImageSource
from nvg.data.classes import first, misplaced
from nvg.errors import DataError
from nvg.evaluation.classifier import ClassifierConfig
from nvg.evaluation.collect import Collector
from nvg.evaluation.data_classifier import classifier_file, train_data_classifier
from nvg.evaluation.features import INCEPTION_WIDTH, NetworkFile
from nvg.evaluation.figures import Figures, bound_figures, reconstruction_figures, sample_figures
from nvg.evaluation.measure import measure
from nvg.evaluation.npz import ImageWriter
from nvg.evaluation.reference import Reference, load_reference
from nvg.evaluation.reference_images import NpzImages, ReferenceImages, SplitImages
from nvg.evaluation.work import ReadUnit, Work, sample_work, stage_work

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
    return NpzImages(settings.reference, config.data, width)


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

    def run(self) -> Evaluated:
        """Measure what is missing, and compute the figures."""
        images = {name: self._reference_images(name) for name in self._reference_names()}  # before anything is computed
        self.network = self._network()
        files = {name: some.features_file(self.config.output, self.network.name) for name, some in images.items()}
        references = {name: load_reference(file) for name, file in files.items() if storage.exists(file)}
        for name, some in images.items():
            if (moments := some.without_images(self.network.name)) is not None:
                print(f"{name} holds mu and sigma alone: no precision, recall and kernel distance", flush=True)
                references[name] = moments
        missing = [some for name, some in images.items() if name not in references]
        collector = self._measure(missing)
        for some in missing:
            reference = collector.references[some.name].reference(
                some.description,
                some.fingerprint,
                self.network.name,
                labelled=some.labelled and self.network.knows_classes,
                all_images=some.published_moments(),
            )
            reference.save(files[some.name])
            references[some.name] = reference
        return Evaluated(self._figures(collector, references), self._protocol(collector, references[self.compared]))

    # ---- what is measured with, and against what ----

    def _network(self) -> NetworkFile:
        """The feature network; the data set's classifier is trained where it is missing."""
        import ray

        config, weights = self.config, self.settings.inception_weights
        if weights is not None:
            from nvg.frozen.inception import load_inception

            load_inception(weights)  # a wrong file is reported before anything is drawn
            return NetworkFile("inception", weights)
        source = self._split("train").source
        if len(source.class_names) != len(self.class_names) or misplaced(self.class_names, source.class_names):
            raise DataError(
                f"the sampler's classes ({first(self.class_names)}) are not those of data.train "
                f"({first(source.class_names)}), by which a classifier would judge it: give the images it was made of"
            )
        path = classifier_file(config, source)
        if not storage.exists(path):
            ray.get(ray.remote(train_data_classifier).options(**config.cluster.actor).remote(config, path))
        return NetworkFile("classifier", path)

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

    # ---- the measurement ----

    def _measure(self, missing: Sequence[ReferenceImages]) -> Collector:
        """Draw, take features of the missing references, reconstruct."""
        work, images = self._work(missing)
        results = measure(
            self.config,
            work,
            readers={name: split.source.reader() for name, split in self.splits.items()},
            sampler_folder=self.sampler_folder,
            network=self.network,
            images=images,
        )
        writer = None
        if self.settings.save_samples:
            count = self.settings.samples_per_class * len(self.class_names)
            writer = ImageWriter(self.folder / SAMPLES_FILE, count, self.config.data.image_size)
        names = [some.name for some in missing]
        collector = Collector(self.class_names, self.folder, references=names, seed=self.settings.seed, writer=writer)
        with writer or contextlib.nullcontext():
            for result in results:
                collector.add(result)
        collector.grid.save(self.folder / "samples.png")
        return collector

    def _work(self, missing: Sequence[ReferenceImages]) -> tuple[list[Work | ReadUnit], int]:
        """All work in order, and its number of images."""
        config, classes = self.config, len(self.class_names)
        draws: list[Work] = [*sample_work(config, classes), stage_work(config, classes, STAGE_ROWS)]
        work: list[Work | ReadUnit] = [*draws]
        images = sum(some.size for some in draws)
        for some in missing:
            work += some.work()
            images += some.count()
        if self.settings.reconstructions:
            shown = SplitImages(config, self.held_out, self.settings.reconstructions, self._training())
            work += shown.reconstruction_work()
            images += shown.count()
        return work, images

    # ---- the outcome ----

    def _protocol(self, collector: Collector, reference: Reference) -> dict[str, Any]:
        return {
            "samples": len(collector.labels),
            "reference": reference.name,
            "reference_images": reference.images,
            "reference_fingerprint": reference.fingerprint,
            "network": self.network.name,
            "image_size": self.config.data.image_size,
            "settings": dataclasses.asdict(self.config.sampler),
        }

    def _figures(self, collector: Collector, references: dict[str, Reference]) -> Figures:
        reference, knows_classes = references[self.compared], self.network.knows_classes
        figures = sample_figures(self.settings, collector, reference, knows_classes=knows_classes)
        figures |= bound_figures(self.settings, references, self.held_out)
        if self.settings.reconstructions:
            figures |= reconstruction_figures(self.settings, collector, references[self.held_out], self.held_out)
        return figures
