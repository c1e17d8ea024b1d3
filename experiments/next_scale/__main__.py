"""Ours against next-scale generation (VAR) at equal compute: tokenizer budget, parameters, operations, data.

    python -m experiments.next_scale fashion_8x8 | emoji_8x8 [--seeds 0 1] [--only MODEL ...] [--steps N]

Both tokenizers are trained alike: encoder, decoder, losses, steps and batches are the same, the quantizers differ. Then
three models are trained in this process, on one thread, with the configuration's recipe:

    positions    ours, one token per position: the source's form. It trains for --steps (train.steps)
    clusters     ours, one token per cluster (docs/method.md, cluster tokens). Also drawn with one pass of structure
                 a stage, which takes as many operations a picture as next-scale, within 3%
    next-scale   a block-causal transformer over the scales (transformer.py)

The others train for as many floating-point operations as `positions`, counted by torch. The learning rate of each is
the best of a quarter, a half and the whole of train.lr by the held-out loss after a quarter of its steps; guidance,
top-p and temperature are those of the least Fréchet distance on other seeds. What is done is kept in the output folder,
and an interrupted run goes on from its last checkpoint. --only MODEL ...: some models. Two processes share two cores,
one with next-scale and one with the others, which have a tokenizer in common; run it without --only for the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from experiments.next_scale.bench import HEAD, TOKENIZER_HEAD, Bench
from experiments.next_scale.models import GRANULARITY, MODELS, OF_SCALES
from nvg import config as configuration

HERE = Path(__file__).parent


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=["fashion_8x8", "emoji_8x8"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, help="of `positions`; default: train.steps")
    parser.add_argument("--samples", type=int, default=5000, help="pictures of each row; a fifth of them for tuning")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    config = configuration.load(HERE / f"{given.data}.yaml", given.settings)
    torch.set_num_threads(1)
    bench = Bench.open(config, given.steps or config.train.steps or 1, given.samples)
    start, lines = time.perf_counter(), list[str]()

    def tell(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    models = [MODELS[name] for name in given.only or MODELS]
    kinds = [kind for kind in (GRANULARITY, OF_SCALES) if any(model.tokenizer is kind for model in models)]
    tables = (
        (TOKENIZER_HEAD, (bench.tokenizer_row(kind) for kind in kinds)),
        (HEAD, (row for model in models for seed in given.seeds for row in bench.rows(model, seed))),
    )
    for head, rows in tables:
        tell(line(head) + "\n" + "| --- " * len(head) + "|")
        for row in rows:
            tell(line(row))
        tell("")
    title = f"{given.data}, {date.today()}, {(time.perf_counter() - start) / 60:.0f} min, one thread. "
    title += f"The classifier gives {bench.judge.right:.3f} of the held-out images their class."
    print(title)
    name = "-".join(["table", *given.only]) if given.only else "table"
    (bench.work / f"{name}.md").write_text(title + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
