"""Does the content follow a structure that is given? Figures of a model under every kind of `evaluate.given`.

    python -m benchmarks.given_structure [--sampler fashion-mnist] [--samples 2000] [--threads 2] [data.test=FILE]
    python -m benchmarks.given_structure --given none,other:2 --dinov2 weights/dinov2-large --device cuda

Prints a Markdown table with 95% intervals. The rows are nothing given; the structure of another class' image up to
stages 1 ... K - 1 (stage K splits pairs and follows from K - 1); a drawing; the whole structure of an image of the
class, with 0, 5, 10 and 20% of the positions on the other side. --sampler is one that ships, or has the shipped
fashion-mnist's classes: classifier and reference are its own. The structure is that of the held-out images, which are
where the sampler's own configuration has them unless data.test says otherwise. Seeds are the same in every row.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch

from nvg import config as configuration
from nvg.artifacts.models import load_sampler, model_settings, sampler_folder
from nvg.config import Config, read_given
from nvg.errors import DataError
from nvg.evaluation.collect import Collector
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.figures import Figures, dinov2_figures, sample_figures
from nvg.evaluation.given import HeldOutStructures, work_on
from nvg.evaluation.metrics import Figure
from nvg.evaluation.reference import Reference, ReferenceMeter, load_reference
from nvg.evaluation.reference_images import SplitImages
from nvg.evaluation.work import (
    Features,
    Networks,
    OnImages,
    Result,
    Structures,
    TakeDinov2Features,
    sample_work,
)
from pipelines.command_line import one_line_errors

COLUMNS = {
    "accuracy_on_samples": "accuracy",
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "frechet_distance_dinov2": "on DINOv2",
}
SHARES = (0.05, 0.1, 0.2)
BATCH = 250


def kinds(last_stage: int) -> list[str | None]:
    """The rows of the table, as evaluate.given has them, for a model of stages 0 ... last_stage."""
    others = [f"other:{stage}" for stage in range(1, last_stage)]
    return [None, *others, "drawn", f"own:{last_stage}", *(f"noisy:{share:g}" for share in SHARES)]


class Table:
    """The measurement of one sampler, row by row, in this process."""

    def __init__(self, config: Config, networks: Networks, reference: Reference, dinov2: str) -> None:
        """reference: of the held-out images, by the feature network. dinov2: the name of DINOv2's weights, if any."""
        self.config, self.networks, self.reference = config, networks, reference
        self.held_out = SplitImages(config, "test")
        self.found: dict[OnImages, list[Structures]] = {}  # by the work that found them
        if self.held_out.fingerprint != reference.fingerprint:
            raise DataError(f"data.test={config.data.test} are not the {reference.name} of the sampler's reference")
        self.dinov2_reference: Reference | None = None
        if networks.dinov2 is not None:
            meter = ReferenceMeter(config.evaluate.seed)
            for result in self.on_held_out(TakeDinov2Features):
                assert isinstance(result, Features)
                meter.add(torch.from_numpy(result.features), 0)
            self.dinov2_reference = meter.reference("test", reference.fingerprint, dinov2, labelled=False)

    def on_held_out(self, then: OnImages) -> Iterator[Result]:
        """The results of some work on all held-out images."""
        readers = {"test": self.held_out.source.reader()}
        for unit in self.held_out.work(then):
            for work in unit.read(readers, self.config):
                yield work.do(self.networks)

    def structures(self, kind: str) -> HeldOutStructures:
        """The structure that is given. kind: as evaluate.given has it. The images are encoded once for all rows."""
        sampler = self.networks.sampler
        given = read_given(kind, sampler.last_stage)
        then = work_on(given)
        if then not in self.found:
            self.found[then] = [some for some in self.on_held_out(then) if isinstance(some, Structures)]
        raster = sampler.tokenizer.config.child_order == "raster"
        return HeldOutStructures(given, self.found[then], sampler.class_names, raster=raster)

    def figures(self, kind: str | None) -> Figures:
        """The figures of samples with some structure given."""
        sampler, settings = self.networks.sampler, self.config.evaluate
        given = None if kind is None else self.structures(kind).of
        with tempfile.TemporaryDirectory() as scratch:
            collector = Collector(sampler.class_names, Path(scratch), references=[], seed=settings.seed)
            for work in sample_work(self.config, len(sampler.class_names), given):
                collector.add(work.do(self.networks))
        figures = sample_figures(settings, collector, self.reference, knows_classes=True)
        if self.dinov2_reference is not None:
            figures |= dinov2_figures(settings, collector, self.dinov2_reference)
        return figures


def line(kind: str | None, figures: Figures, columns: Sequence[str]) -> str:
    """A row of the table."""
    cells = [kind or "nothing"]
    for name in columns:
        figure = figures[name]
        assert isinstance(figure, Figure)
        cells.append(f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")
    return "| " + " | ".join(cells) + " |"


@one_line_errors(ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sampler", default="fashion-mnist", help="a sampler by name, folder or URL")
    parser.add_argument("--samples", type=int, default=2000, help="images per row")
    parser.add_argument("--dinov2", metavar="FOLDER", help="DINOv2's weights, for a Fréchet distance on its features")
    parser.add_argument("--given", metavar="A,B", help="these rows alone, such as none,other:2,drawn (none: nothing)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the sampler's configuration")
    arguments = parser.parse_intermixed_args(argv)
    torch.set_num_threads(arguments.threads)
    folder, shipped = sampler_folder(arguments.sampler), sampler_folder("fashion-mnist")
    config = configuration.from_dict(model_settings(folder), arguments.overrides, where=arguments.sampler)
    sampler = load_sampler(folder, config.sampler).to(arguments.device)
    rows = kinds(sampler.last_stage)
    if arguments.given is not None:
        rows = [None if kind == "none" else kind for kind in arguments.given.split(",")]
    for kind in rows:
        if kind is not None:
            read_given(kind, sampler.last_stage)  # a wrong one is reported before anything is drawn
    settings = config.evaluate
    settings.samples_per_class = math.ceil(arguments.samples / len(sampler.class_names))
    settings.batch_size = BATCH
    classifier = NetworkFile("classifier", f"{shipped}/classifier.safetensors")
    dinov2 = None if arguments.dinov2 is None else NetworkFile("dinov2", arguments.dinov2)
    networks = Networks(
        sampler,
        classifier.load(arguments.device),
        None,
        BATCH,
        None if dinov2 is None else dinov2.load(arguments.device),
    )
    reference = load_reference(f"{shipped}/reference.safetensors")
    table = Table(config, networks, reference, "" if dinov2 is None else dinov2.name)
    columns = [name for name in COLUMNS if dinov2 is not None or name != "frechet_distance_dinov2"]
    samples = settings.samples_per_class * len(sampler.class_names)
    print(f"{arguments.sampler}, {samples} samples per row, against {reference.name}, {date.today()}\n")
    print("| given | " + " | ".join(COLUMNS[name] for name in columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for kind in rows:
        print(line(kind, table.figures(kind), columns), flush=True)


if __name__ == "__main__":
    main()
