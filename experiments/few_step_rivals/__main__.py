"""Which way to a structure of few passes is best? All that were tried, in one table (docs/fast_sampling_rivals.md).

    python -m experiments.few_step_rivals [--steps 2500] [--samples 2500] [--threads 1] [--only euler bits ...]

The teacher is the sampler that ships as fashion-mnist; tokenizer and content generator are its own throughout, and each
rival takes the structure's place. With z(t) = t eps + (1 - t) se from t = 1 (noise) to 0, and v the guided velocity:

    euler, midpoint, heun   the teacher itself, by another solver or at other times; nothing is trained
    shortcut                s(z, t, d, w), what pipelines/distill.py trains (nvg/training/few_step_loss.py), as it is
    bits                    the logit of each position's next bit, given some of them; decided in parallel rounds
    reflow                  straight from a noise to what the teacher makes of that noise in 25 guided steps
    meanflow                u(z, t, d, w) = v - d du/dt, the mean velocity over a step by its derivative

All begin at the teacher's weights and see the same images, as many steps with the same optimizer; CPU seconds (with the
making of reflow's pairs) stand in the table, for a step costs more in some. Figures on images are those of
benchmarks/sampling_sweep.py, seeds 0, 1, ... for all. The halving's Gumbel noise hides what a flow gets wrong on 4x4
positions, so structure maps are compared with those of the test images too, at both structure temperatures:

    boundary   total variation distance of the distributions of boundary lengths (neighbours in different clusters), a
               mean over the stages with a flow
    edges      |p - q|, a mean over classes, stages and pairs of neighbours: p, q the shares of maps in which the two
               are in different clusters. It sees where boundaries lie.

Both are above 0 for a sample of the truth: the first row has as many maps of training images. What is made (tokens,
networks, rows) is kept under --work, and an interrupted run goes on from there: remove it to begin anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.few_step_rivals.data import Tokens, encode
from experiments.few_step_rivals.measures import drawn, structure_errors
from experiments.few_step_rivals.samplers import Rival, bit_split, flow_split, flow_times
from experiments.few_step_rivals.training import begun, trained
from nvg import config as configuration
from nvg.artifacts.models import load_sampler, sampler_folder
from nvg.config import DataConfig
from nvg.evaluation import metrics
from nvg.evaluation.features import load_network
from nvg.evaluation.reference import load_reference
from nvg.generator import Sampler, StructureGenerator

MAPS = 1500  # samples whose structure maps are compared
TEMPERATURES = (1.0, 0.1)  # of the halving: what ships, and one that hides nothing


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    network: str  # teacher, or what `trained` makes
    passes: int  # network passes a stage; a guided one counts two
    split: Callable[..., Tensor] | None  # of `Rival`; None: the sampler's own, for networks with few_step
    settings: dict[str, float] = field(default_factory=dict)  # of the sampler

    def steps(self, budget: int) -> int:
        """Training steps behind it."""
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/few_step_rivals"))
    parser.add_argument("--data", help="folder of Fashion-MNIST's four files; the teacher's own without it")
    parser.add_argument("--only", nargs="+", help="rows whose name contains one of these")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, steps, samples = arguments.work, arguments.steps, arguments.samples
    folder = sampler_folder("fashion-mnist")
    teacher = load_sampler(folder)
    data = DataConfig(**configuration.read(f"{folder}/config.yaml")["data"])
    if arguments.data:
        train, test = (f"{arguments.data}/{Path(path).name}" for path in (data.train, data.test))
        data = replace(data, train=train, test=test)
    network_of_images = load_network("classifier", f"{folder}/classifier.safetensors")
    reference = load_reference(f"{folder}/reference.safetensors")
    encoded = {split: encode(teacher, data, split, work / f"{split}.safetensors") for split in ("train", "test")}
    real, real_labels = encoded["test"]["codes"], encoded["test"]["labels"]
    tokens = cache(lambda: Tokens.of(teacher, **encoded["train"]))

    def errors(codes: Tensor, labels: Tensor) -> dict[str, float]:
        return structure_errors(codes, labels, real, real_labels)

    @cache
    def network(name: str) -> tuple[StructureGenerator, float]:
        """A rival and the CPU seconds of its training, kept."""
        if name == "teacher":
            return teacher.structure, 0.0
        path = work / f"{name}-{steps}.safetensors"
        if not path.exists():
            started = time.process_time()
            made = trained(name, teacher, tokens(), steps)
            seconds = torch.tensor(time.process_time() - started)
            save_file({"seconds": seconds} | {key: value.clone() for key, value in made.state_dict().items()}, path)
        state = load_file(path)
        seconds = float(state.pop("seconds"))
        made = begun(name, teacher.structure)
        made.load_state_dict(state)
        return made, seconds

    def measured(variant: Variant) -> list[str]:
        """The row's cells."""
        structure, seconds = network(variant.network)
        sampler = sampler_of(variant, teacher, structure)
        classes = torch.arange(samples) % len(teacher.class_names)
        found = []
        for temperature in TEMPERATURES:
            first = temperature == TEMPERATURES[0]
            count = samples if first else min(samples, MAPS)
            settings = variant.settings | {"structure_temperature": temperature}
            images, codes = drawn(sampler, count, images=first, **settings)
            found.append(errors(codes[:MAPS], classes[: len(codes)][:MAPS]))
            if first:
                features, logits = network_of_images(images)
        distance = metrics.frechet(features, reference.moments, replicates=50)
        _, recall = metrics.precision_and_recall(features, reference.features)
        right = int((logits.argmax(dim=1) == classes).sum())
        return [
            variant.name,
            str(variant.passes),
            str(variant.steps(steps)),
            f"{seconds:.0f}",
            f"{distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]",
            f"{right / samples:.3f}",
            f"{recall.value:.3f}",
            *(f"{one[name]:.3f}" for name in ("boundary", "edges") for one in found),
        ]

    each = MAPS // len(teacher.class_names)
    some = torch.cat([(encoded["train"]["labels"] == label).nonzero()[:each, 0] for label in real_labels.unique()])
    floor = errors(encoded["train"]["codes"][some], encoded["train"]["labels"][some])
    rows = [["training images", *[""] * 6, *(f"{floor[name]:.3f}" for name in floor for _ in TEMPERATURES)]]
    print("| " + " | ".join(HEAD) + " |\n" + "| --- " * len(HEAD) + "|\n| " + " | ".join(rows[0]) + " |", flush=True)
    for variant in variants():
        if arguments.only and not any(part in variant.name for part in arguments.only):
            continue
        path = work / f"{variant.name.replace(', ', '_').replace('/', '_')}-{variant.steps(steps)}-{samples}.json"
        if not path.exists():
            path.write_text(json.dumps(measured(variant)))
        rows.append(json.loads(path.read_text()))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    table = "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows))
    (work / "table.md").write_text(f"{samples} samples, {steps} steps, {date.today()}\n\n{table}\n")


if __name__ == "__main__":
    main()
