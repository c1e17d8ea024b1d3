"""Are cluster tokens as good as position tokens, at equal steps and at equal seconds? (docs/method.md, cluster tokens)

    python -m experiments.cluster_tokens fashion_4x4 | fashion_8x8 | emoji_8x8 [--seeds 0 1] [--only NAME ...]

First the tokenizer of the data set's configuration is trained (pipelines/run.py, on Ray) and the images are encoded.
Then every form of a generator is trained in this process, on one thread, with the configuration's recipe:

    equal steps     train.steps, whatever they take
    equal seconds   as many steps as the form makes in the time of train.steps of `positions`, where these differ by a
                    tenth at least; rates are measured alternately before the first training, and kept

Every training gives the loss on 2,000 held-out images stage by stage. On Fashion-MNIST the content generators also
draw 5,000 pictures, all with the same structure generator, and these are measured as an evaluation does it. 2,000 more
are drawn in the structures of held-out images, which leaves the structure generator's faults out.

Guidance, top-p and temperature of the content are tuned for each form on other seeds; on 8x8 latents, where a picture
takes longer, only guidance and top-p, on a coarser grid. Finished work is kept in the output folder, and an interrupted
experiment goes on from there. --only NAME ...: some forms, so that two processes share two cores; run the command
without it afterwards for the whole table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from experiments.cluster_tokens.training import FORMS, UNPOOLED, Form, train
from experiments.common.data import Tokens, encode
from experiments.common.held_out import held_out
from experiments.common.judge import GRID, Judge, cell
from nvg import config as configuration
from nvg.artifacts.models import load_tokenizer
from nvg.config import Config, SamplerConfig
from nvg.evaluation import metrics
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator.controls import given_from_sequence
from pipelines import run
from pipelines.steps import plan

HERE = Path(__file__).parent
RATE_STEPS, RATE_ROUNDS = 10, 3
REFERENCE = {"content": "positions", "structure": "structure: positions"}  # whose seconds are those of all
GIVEN_SAMPLES = 2000
NEAR = 0.1  # a relative difference of steps too small for a training of its own
SMALL = 16  # positions up to which a picture is quick to draw
COARSE = {"content_guidance": (2.5, 5.0, 10.0), "top_p": (0.5, 0.75, 1.0)}


@dataclass
class Bench:
    """All that the trainings of a data set share. forms: the names of those that are compared."""

    config: Config
    forms: list[str]

    @property
    def work(self) -> Path:
        """The folder of results."""
        return Path(self.config.output)

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn and measured: of Fashion-MNIST alone, which has held-out images enough."""
        return self.config.data.source == "idx"

    @cached_property
    def tokenizer(self) -> Any:
        """The trained tokenizer."""
        return load_tokenizer(plan(self.config)["tokenizer"].folder)

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """The images of both splits."""
        path = self.work / "encoded"
        return {
            split: Tokens.of(encode(self.tokenizer, self.config.data, split, path / f"{split}.safetensors"))
            for split in ("train", "test")
        }

    @cached_property
    def steps_a_second(self) -> dict[str, float]:
        """The rate of each form, measured in turns and kept; of a form that is new, in turns with `positions`."""
        path = self.work / "rates.json"
        rates: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        new = [name for name in self.forms if name not in rates]
        if new:
            seconds: dict[str, list[float]] = {name: [] for name in dict.fromkeys([*REFERENCE.values(), *new])}
            for _ in range(RATE_ROUNDS):
                for name in seconds:
                    quantizer, tokens = self.tokenizer.quantizer, self.tokens["train"]
                    seconds[name].append(train(FORMS[name], self.config, quantizer, tokens, RATE_STEPS, 0)[1])
            found = {name: RATE_STEPS / statistics.median(spent) for name, spent in seconds.items()}
            same = rates.get("positions", found["positions"]) / found["positions"]
            rates = {name: same * rate for name, rate in found.items()} | rates
            path.write_text(json.dumps(rates))
        return rates

    def steps(self, form: Form, budget: str) -> int:
        """The steps of a form within a budget."""
        first = REFERENCE[form.part]
        if budget == "equal steps" or form.name == first:
            return self.config.train.steps or 0
        return round((self.config.train.steps or 0) * self.steps_a_second[form.name] / self.steps_a_second[first])

    def network(self, form: Form, steps: int, seed: int) -> ContentGenerator | StructureGenerator:
        """A trained generator; trained once and kept, with its losses beside it."""
        path = self.work / f"{name_of(form, steps, seed)}.safetensors"
        if not path.exists():
            network, _ = train(form, self.config, self.tokenizer.quantizer, self.tokens["train"], steps, seed)
            losses = held_out(network, self.tokenizer.quantizer, self.tokens["test"])
            path.with_suffix(".json").write_text(json.dumps({"losses": losses}))
            save_file({key: value.clone() for key, value in network.state_dict().items()}, path)
        network = form.build(self.config, seed)
        network.load_state_dict(load_file(path))
        return network.eval()

    def row(self, form: Form, budget: str, seed: int) -> list[str]:
        """The cells of a training."""
        steps = self.steps(form, budget)
        network = self.network(form, steps, seed)
        name = name_of(form, steps, seed)
        record = json.loads((self.work / f"{name}.json").read_text())
        losses = record["losses"]
        cells = [form.name, budget, str(seed), str(steps), f"{self.steps_a_second[form.name]:.2f}"]
        cells += [f"{statistics.mean(losses):.3f}", " ".join(f"{value:.3f}" for value in losses)]
        if form.part == "content" and self.draws:
            cells += self.figures(name, form, network)
        return cells

    def figures(self, name: str, form: Form, content: Any) -> list[str]:
        """The cells of drawn pictures; drawn once and kept."""
        path = self.work / f"{name}-drawn.json"
        if not path.exists():
            structure = self.network(FORMS["structure: positions"], self.config.train.steps or 0, 0)
            sampler = Sampler(self.tokenizer, content, structure, self.config.sampler, self.judge.class_names)  # type: ignore[arg-type]
            settings = self.tuned(form, sampler)
            figures = self.judge.figures(sampler, **settings)
            features, right = self.judge.measured(
                InStructures(sampler, self.tokens["test"]), GIVEN_SAMPLES, 0, **settings
            )
            given = [
                metrics.frechet(features, metrics.moments(self.judge.real), replicates=50),
                metrics.share(int(right.sum()), GIVEN_SAMPLES),
            ]
            cells = [cell(one) for one in (figures["Fréchet distance"], figures["accuracy"], figures["recall"], *given)]
            cells.append(", ".join(f"{key} {value:g}" for key, value in settings.items()))
            path.write_text(json.dumps(cells))
        kept: list[str] = json.loads(path.read_text())
        return kept

    def tuned(self, form: Form, sampler: Sampler) -> dict[str, float]:
        """The sampler's settings of a form, tuned on the first of its trainings and kept."""
        path = self.work / f"{form.name.replace(' ', '_')}-tuned.json"
        if not path.exists():
            grid = GRID if self.config.tokenizer.positions <= SMALL else COARSE
            path.write_text(json.dumps(self.judge.tune(sampler, grid)))
        settings: dict[str, float] = json.loads(path.read_text())
        return settings

    @cached_property
    def judge(self) -> Judge:
        """The networks and images by which drawn pictures are measured."""
        return Judge.open(self.config, tuning_samples=1000 if self.config.tokenizer.positions <= SMALL else 300)


@dataclass(frozen=True)
class InStructures:
    """A sampler that is given the whole structure of held-out images: of each class, one image after the other."""

    sampler: Sampler
    held_out: Tokens

    @property
    def settings(self) -> SamplerConfig:
        """The sampler's own."""
        return self.sampler.settings

    def generate(self, classes: list[int], *, seed: int, **settings: Any) -> np.ndarray:
        """One picture per class: uint8 (N, H, W, C).

        classes: indices of classes, all in turn, as `Judge` asks for them. Picture j takes the structure of its class's
        held-out image number (seed + j) // (number of classes), and after the last one the first again.
        """
        rows = []
        for number, label in enumerate(classes, start=seed):
            same = (self.held_out.labels == label).nonzero()[:, 0]
            rows.append(same[number // len(self.sampler.class_names) % len(same)])
        sequence = self.held_out.sequence[torch.stack(rows)]
        given = given_from_sequence(sequence, structure_stages=sequence.last_stage)
        return self.sampler.generate(classes, seed=seed, given=given, **settings)


def name_of(form: Form, steps: int, seed: int) -> str:
    """What the files of a training are called."""
    return f"{form.name.replace(' ', '_')}-{steps}-{seed}"


HEAD = ["form", "budget", "seed", "steps", "steps a second", "mean loss", "loss at stages"]
DRAWN = ["Fréchet distance", "accuracy", "recall", "distance, structure given", "accuracy, structure given", "sampler"]


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=["fashion_4x4", "fashion_8x8", "emoji_8x8"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=FORMS, metavar="NAME", help="of these forms alone")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    file = str(HERE / f"{arguments.data}.yaml")
    run.main(["--config", file, "--until", "tokenizer", *arguments.settings])
    torch.set_num_threads(1)
    bench = Bench(configuration.load(file, arguments.settings), arguments.only or list(FORMS))
    start = time.perf_counter()
    head = HEAD + DRAWN if bench.draws else HEAD
    lines = [line(head), "| --- " * len(head) + "|"]
    print("\n".join(lines), flush=True)
    for form in [FORMS[name] for name in bench.forms]:
        # The canvas losses on positions answer a question of their own, at equal steps.
        for budget in ("equal steps",) if form.canvas_loss in UNPOOLED else ("equal steps", "equal seconds"):
            ratio = bench.steps(form, budget) / bench.steps(form, "equal steps")
            if budget == "equal seconds" and abs(ratio - 1) < NEAR:
                continue
            for seed in arguments.seeds:
                lines.append(line(bench.row(form, budget, seed)))
                print(lines[-1], flush=True)
    title = f"{arguments.data}, one thread, {date.today()}, {(time.perf_counter() - start) / 60:.0f} minutes"
    (bench.work / "table.md").write_text(title + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
