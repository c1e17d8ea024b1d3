"""Which way to a structure of few passes is best? All that were tried, in one table (docs/reports/few_step_rivals.md).

    python -m experiments.few_step_rivals [--steps 2500] [--samples 2500] [--threads 1] [--only euler bits ...]

The teacher is the sampler that ships as fashion-mnist. Every rival keeps its tokenizer and content generator, and takes
the place of its structure generator. With z(t) = t eps + (1 - t) b from t = 1 (noise) to 0, and v the guided velocity:

    euler, midpoint, heun   the teacher itself, by another solver or at other times; nothing is trained
    shortcut                s(z, t, d, w), what pipelines/distill.py trains (nvg/training/few_step_loss.py), as it is
    bits                    the logit of each position's next bit, given some of them; decided in parallel rounds
    reflow                  straight from a noise to what the teacher makes of that noise in 25 guided steps
    meanflow                u(z, t, d, w) = v - d du/dt, the mean velocity over a step by its derivative

All start from the teacher's weights and see the same images, for as many steps with the same optimizer. The table has
the CPU seconds of the training (with the making of reflow's pairs), since a step costs more in some. Figures on images
are those of benchmarks/sampling_sweep.py, seeds 0, 1, ... for all. The halving's Gumbel noise hides a flow's errors on
4x4 positions, so structure maps are compared with those of the test images too, at both structure temperatures:

    boundary   total variation distance of the distributions of boundary lengths (neighbours in different clusters), a
               mean over the stages with a flow
    edges      |p - q|, a mean over classes, stages and pairs of neighbours: p, q the shares of maps in which the two
               are in different clusters. It sees where boundaries lie.

Both are above 0 for a sample of the truth: the first row has as many maps of training images. Tokens, networks and rows
are kept under --work, and an interrupted run goes on from there: remove the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.few_step_rivals.data import Tokens, encode
from experiments.few_step_rivals.measures import drawn, structure_errors
from experiments.few_step_rivals.samplers import Rival, bit_split, flow_split, flow_times
from experiments.few_step_rivals.training import trained, untrained
from nvg.artifacts.models import load_sampler, model_config, sampler_folder
from nvg.evaluation import metrics
from nvg.evaluation.features import FeatureNetwork, NetworkFile
from nvg.evaluation.reference import Reference, load_reference
from nvg.generator import Sampler, StructureGenerator

MAPS = 1500  # samples whose structure maps are compared
TEMPERATURES = (1.0, 0.1)  # of the halving: what ships, and one that hides nothing


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    network: str  # teacher, or a name that `trained` knows
    passes: int  # network passes a stage; a guided one counts two
    split: Callable[..., Tensor] | None  # of `Rival`; None: the sampler's own, for networks with few_step
    settings: dict[str, float] = field(default_factory=dict)  # of the sampler

    def at(self, temperature: float) -> dict[str, float]:
        """The sampler's settings at a temperature of the halving."""
        return self.settings | {"structure_temperature": temperature}

    def steps(self, budget: int) -> int:
        """The training steps behind it, of a budget."""
        return 0 if self.network == "teacher" else budget


def variants() -> Iterator[Variant]:
    """All rows."""

    def flow(steps: int, solver: str = "euler", schedule: str = "uniform") -> Callable[..., Tensor]:
        return partial(flow_split, times=flow_times(steps, schedule), solver=solver)

    for steps in (1, 2, 4, 8, 25):
        yield Variant(f"teacher, euler, {steps} guided", "teacher", 2 * steps, flow(steps))
    yield Variant("teacher, euler, 1 unguided", "teacher", 1, flow(1), {"structure_guidance": 1.0})
    for solver in ("midpoint", "heun"):
        for steps in (1, 2):
            yield Variant(f"teacher, {solver}, {steps} guided", "teacher", 4 * steps, flow(steps, solver))
    for schedule in ("shift 3", "shift 1/3", "cosine"):
        for steps in (2, 4):
            name = f"teacher, euler, {schedule}, {steps} guided"
            yield Variant(name, "teacher", 2 * steps, flow(steps, schedule=schedule))
    for steps in (1, 2, 4):
        yield Variant(f"shortcut, {steps}", "shortcut", steps, None, {"flow_steps": steps})
    for rounds in (1, 2, 4):
        yield Variant(f"bits, {rounds} guided", "bits", 2 * rounds, partial(bit_split, rounds=rounds))
    for rounds in (1, 2, 4):
        split, unguided = partial(bit_split, rounds=rounds), {"structure_guidance": 1.0}
        yield Variant(f"bits, {rounds} unguided", "bits", rounds, split, unguided)
    for steps in (1, 2):  # its pairs are guided ones
        yield Variant(f"reflow, {steps}", "reflow", steps, flow(steps), {"structure_guidance": 1.0})
    for steps in (1, 2):
        yield Variant(f"meanflow, {steps}", "meanflow", steps, None, {"flow_steps": steps})


def sampler_of(variant: Variant, teacher: Sampler, network: StructureGenerator) -> Sampler:
    """The teacher's tokenizer and content generator with a variant's structure."""
    if variant.split is None:
        return Sampler(teacher.tokenizer, teacher.content, network, teacher.settings, teacher.class_names)
    return Rival(teacher, network, variant.split)


HEAD = [
    "structure",
    "passes a stage",
    "trained steps",
    "CPU s",
    "Fréchet distance",
    "accuracy",
    "recall",
    *(f"{name}, temperature {one}" for name in ("boundary", "edges") for one in TEMPERATURES),
]


@dataclass(frozen=True)
class Bench:
    """All that the rows share: the teacher, the images' tokens, the networks of the figures, the folder of results."""

    work: Path
    steps: int  # of each training
    samples: int  # of each row
    teacher: Sampler
    classifier: FeatureNetwork
    reference: Reference
    encoded: dict[str, dict[str, Tensor]]  # by split

    @staticmethod
    def open(work: Path, steps: int, samples: int, data_folder: str | None) -> Bench:
        """The bench of the sampler that ships. data_folder: where Fashion-MNIST is; None: where the sampler had it."""
        folder = sampler_folder("fashion-mnist")
        teacher = load_sampler(folder)
        data = model_config(folder).data
        if data_folder:
            train, test = (f"{data_folder}/{Path(str(path)).name}" for path in (data.train, data.test))
            data = replace(data, train=train, test=test)
        encoded = {split: encode(teacher, data, split, work / f"{split}.safetensors") for split in ("train", "test")}
        classifier = NetworkFile("classifier", f"{folder}/classifier.safetensors").load()
        reference = load_reference(f"{folder}/reference.safetensors")
        return Bench(work, steps, samples, teacher, classifier, reference, encoded)

    @cached_property
    def tokens(self) -> Tokens:
        """The training images' tokens."""
        return Tokens.of(self.teacher, **self.encoded["train"])

    def errors(self, codes: Tensor, labels: Tensor) -> dict[str, float]:
        """`structure_errors` against the test images."""
        real = self.encoded["test"]
        return structure_errors(codes, labels, real["codes"], real["labels"])

    def network(self, name: str) -> tuple[StructureGenerator, float]:
        """A rival's network and the CPU seconds of its training; trained once and kept."""
        if name == "teacher":
            return self.teacher.structure, 0.0
        path = self.work / f"{name}-{self.steps}.safetensors"
        if not path.exists():
            start = time.process_time()
            student = trained(name, self.teacher, self.tokens, self.steps)
            state = {key: value.clone() for key, value in student.state_dict().items()}
            save_file({"seconds": torch.tensor(time.process_time() - start)} | state, path)
        state = load_file(path)
        seconds = float(state.pop("seconds"))
        student = untrained(name, self.teacher.structure)
        student.load_state_dict(state)
        return student, seconds

    def row(self, variant: Variant) -> list[str]:
        """The cells of a variant; measured once and kept."""
        name = variant.name.replace(", ", "_").replace("/", "_")
        path = self.work / f"{name}-{variant.steps(self.steps)}-{self.samples}.json"
        if not path.exists():
            path.write_text(json.dumps(self.measure(variant)))
        cells: list[str] = json.loads(path.read_text())
        return cells

    def measure(self, variant: Variant) -> list[str]:
        """The cells of a variant."""
        structure, seconds = self.network(variant.network)
        sampler = sampler_of(variant, self.teacher, structure)
        classes = torch.arange(self.samples) % len(self.teacher.class_names)
        images, codes = drawn(sampler, self.samples, images=True, **variant.at(TEMPERATURES[0]))
        errors = [self.errors(codes[:MAPS], classes[:MAPS])]
        for temperature in TEMPERATURES[1:]:
            _, codes = drawn(sampler, min(self.samples, MAPS), images=False, **variant.at(temperature))
            errors.append(self.errors(codes, classes[: len(codes)]))
        features, logits = self.classifier(images)
        distance = metrics.frechet(features, self.reference.moments, replicates=50)
        _, recall = metrics.precision_and_recall(features, self.reference.features)
        accuracy = int((logits.argmax(dim=1) == classes).sum()) / self.samples
        return [
            variant.name,
            str(variant.passes),
            str(variant.steps(self.steps)),
            f"{seconds:.0f}",
            f"{distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]",
            f"{accuracy:.3f}",
            f"{recall.value:.3f}",
            *(f"{error[name]:.3f}" for name in ("boundary", "edges") for error in errors),
        ]

    def floor(self) -> list[str]:
        """The cells of as many maps of training images."""
        codes, labels = self.encoded["train"]["codes"], self.encoded["train"]["labels"]
        each = MAPS // len(self.teacher.class_names)
        chosen = torch.cat([(labels == label).nonzero()[:each, 0] for label in labels.unique()])
        errors = self.errors(codes[chosen], labels[chosen])
        return ["training images", *[""] * 6, *(f"{errors[name]:.3f}" for name in errors for _ in TEMPERATURES)]


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/few_step_rivals"))
    parser.add_argument("--data", help="folder of Fashion-MNIST's four files; default: where the teacher had them")
    parser.add_argument("--only", nargs="+", help="rows whose name contains one of these words")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench.open(arguments.work, arguments.steps, arguments.samples, arguments.data)
    lines = [line(HEAD), "| --- " * len(HEAD) + "|", line(bench.floor())]
    print("\n".join(lines), flush=True)
    for variant in variants():
        if arguments.only and not any(word in variant.name for word in arguments.only):
            continue
        lines.append(line(bench.row(variant)))
        print(lines[-1], flush=True)
    title = f"{arguments.samples} samples, {arguments.steps} steps, {date.today()}"
    (arguments.work / "table.md").write_text(title + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
