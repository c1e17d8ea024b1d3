"""The table at the end of an evaluation: each figure with its interval, whether it is good and what it means."""

from __future__ import annotations

from nvg import storage
from nvg.evaluation.meaning import MEANINGS, verdicts

FILES = ("samples.png", "stages.png", "reconstruction.png", "samples.npz", "evaluation.json")  # that are worth a look


def figures_of(folder: str) -> list[str]:
    """Lines on a finished evaluation's folder (path or URL)."""
    result = storage.read_json(storage.join(folder, "evaluation.json"))
    good = verdicts(result["figures"])
    network = result["protocol"]["network"]
    lines = [f"{'figure':<33}{'value':>10}  {'95% interval':<22}{'good':<15}meaning, by {network}"]
    for name, value in result["figures"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = f"{number(low)} ... {number(high)}" if low is not None else ""
        left = f"{name:<33}{number(value):>10}  {interval:<22}{good.get(name, '')}"
        lines.append(f"{left.rstrip():<82}{MEANINGS.get(name, '')}".rstrip())
    return [*lines, "", *(path for name in FILES if storage.exists(path := storage.join(folder, name)))]


def number(value: object) -> str:
    """A figure in a table: of a list each, with spaces between."""
    if isinstance(value, list):
        return " ".join(number(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
