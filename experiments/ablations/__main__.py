"""Ablations: one configuration, many small changes of it, each trained and evaluated; a table and a plot of all.

    python -m experiments.ablations --config conf/fashion_mnist.yaml experiments/ablations/*.yaml [key=value ...]

A file of experiments/ablations holds the keys that differ, under a comment with its question; baseline.yaml holds the
changes that all share. Steps that a change does not touch are shared (artifacts have keys), and a stopped run goes on.
Writes ablations.json into the output folder, the table between the two markers of --doc, and the plot into figures/
next to the page's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvg import config as configuration
from nvg import storage
from nvg.config import Config
from nvg.errors import ConfigError
from pipelines import run
from pipelines.command_line import job_parser, one_line_errors, placed
from pipelines.steps import plan

BEGIN, END = "<!-- table: written by experiments/ablations/__main__.py -->", "<!-- end of table -->"
BASELINE = "baseline"
SHOWN = ("frechet_distance", "accuracy_on_samples", "precision", "recall")


def question(path: str) -> str:
    """The comment on top of a file of experiments/ablations, in one line."""
    with storage.open(path) as file:
        lines = file.read().decode().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def read_variant(base: str, baseline: str, path: str, overrides: Sequence[str]) -> Config:
    """The configuration of a variant: its file over the baseline's over the base. Raises ConfigError."""
    content = configuration.read(base)
    for changes in (baseline, path):
        content = configuration.merged(content, configuration.read(changes))
    return configuration.from_dict(content, overrides, where=path)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a variant, in the order of their Fréchet distance."""
    base = results[BASELINE]["figures"]["frechet_distance"]
    lines = ["| variant | " + " | ".join(SHOWN) + " | against the baseline | asks |", "| --- " * (len(SHOWN) + 3) + "|"]
    for name, result in sorted(results.items(), key=lambda item: item[1]["figures"]["frechet_distance"]):
        figures, intervals = result["figures"], result["intervals"]
        cells = [
            f"{figures[key]:.3f} [{intervals[key][0]:.3f}, {intervals[key][1]:.3f}]" if key in figures else "-"
            for key in SHOWN
        ]
        change = f"{figures['frechet_distance'] / base - 1:+.0%}"
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {change} | {result['question']} |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Fréchet distances with their intervals, the baseline's as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = sorted(results, key=lambda name: -results[name]["figures"]["frechet_distance"])
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(order) + 1.2), layout="constrained")
    low, high = results[BASELINE]["intervals"]["frechet_distance"]
    axes.axvspan(low, high, color="#dddddd", label="baseline, 95% interval")
    for row, name in enumerate(order):
        value = results[name]["figures"]["frechet_distance"]
        low, high = results[name]["intervals"]["frechet_distance"]
        colour = "#1f5fa8" if name.startswith("sampler_") else "#c4561a"
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("Fréchet distance to the held-out images (less is better)")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_table(doc: Path, text: str) -> None:
    """Put a table between the markers of a page. Raises ConfigError when it has none."""
    page = doc.read_text()
    if BEGIN not in page or END not in page:
        raise ConfigError(f"{doc} has no lines {BEGIN!r} and {END!r} for the table to stand between")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    doc.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train and evaluate all variants. argv: the command line without the program."""
    parser = job_parser(__doc__.split("\n")[0])
    parser.add_argument("--doc", default="docs/reports/ablations.md", help="the Markdown page whose table is replaced")
    arguments = parser.parse_intermixed_args(argv)
    files = [item for item in arguments.overrides if "=" not in item]
    overrides = [item for item in arguments.overrides if "=" in item]
    with one_line_errors():
        paths = {Path(file).stem: file for file in files}
        if BASELINE not in paths:
            raise ConfigError(f"no {BASELINE}.yaml among the files: give experiments/ablations/*.yaml")
        variants = {
            name: (file, placed(read_variant(arguments.config, paths[BASELINE], file, overrides)))
            for name, file in paths.items()
        }
        results: dict[str, dict[str, Any]] = {}
        for number, (name, (file, config)) in enumerate(variants.items(), start=1):
            artifacts = plan(config)
            todo = [step for step, artifact in artifacts.items() if not artifact.complete]
            print(f"== {number} of {len(variants)}: {name} ({', '.join(todo) or 'complete'})", flush=True)
            if todo:
                run.run_steps(config, artifacts, todo)
            result = storage.read_json(storage.join(artifacts["evaluation"].folder, "evaluation.json"))
            results[name] = result | {"question": question(file)}
        output = variants[BASELINE][1].output
        storage.write_json(storage.join(output, "ablations.json"), results)
        plot(results, Path(arguments.doc).parents[1] / "figures" / "ablations.png")
        write_table(Path(arguments.doc), table(results))
    print(table(results))


if __name__ == "__main__":
    main()
