"""What the figures must come to, beside what one H200 gave before (docs/reports/gpu.md), and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.device import var
from benchmarks.device.clock import Measured

TOKENIZER_BEFORE = 124  # images a second of a tokenizer step on one H200, 2026-11-26


class Results:
    """What was measured, by part, case and batch."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        self.measured = measured

    def of(self, part: str, case: str = "", images: int | None = None) -> list[Measured]:
        """Those of a part whose case begins so."""
        return [
            one
            for one in self.measured
            if one.part == part and one.case.startswith(case) and images in (None, one.images)
        ]

    def of_var(self, images: int) -> float | None:
        """The seconds of the best schedule over those of VAR, at a batch."""
        best, peer = self.of("sampling", "nvg", images), self.of("sampling", var.SAMPLED, images)
        return min(one.seconds for one in best) / peer[0].seconds if best and peer else None

    def training(self) -> float | None:
        """Images a second of the best training step over VAR's."""
        best, peer = self.of("training", "nvg"), self.of("training", var.TRAINED)
        return max(one.rate for one in best) / peer[0].rate if best and peer else None

    def utilization(self, part: str) -> float | None:
        """The best share of the ceiling of our works of a part."""
        return max((one.utilization or 0 for one in self.of(part, "nvg")), default=None)

    def clustering(self) -> float | None:
        """The share of clustering and quantization of the seconds that an image's tokens take."""
        each = {one.case: one.seconds / one.images for one in self.of("tokens")}
        return 1 - each["encoder"] / sum(each.values()) if len(each) == 3 else None

    def tokenizer(self) -> float | None:
        """Images a second of a tokenizer step over those before."""
        return max((one.rate / TOKENIZER_BEFORE for one in self.of("tokenizer step")), default=None)

    def first_picture(self) -> float | None:
        """Seconds from a loaded sampler to the first picture, with compiled code in the cache."""
        return min((one.seconds for one in self.of("first picture")), default=None)


@dataclass(frozen=True)
class Aim:
    """A figure and its bound."""

    name: str
    value: Callable[[Results], float | None]
    bound: float
    before: str
    least: bool = False  # the bound is the least; else the most
    form: str = "{:.2f}"

    def row(self, results: Results, *, judged: bool) -> dict[str, str]:
        """The aim's line. judged: whether the models and the device are those of the aim."""
        value = self.value(results)
        met = value is not None and (value >= self.bound if self.least else value <= self.bound)
        return {
            "aim": self.name,
            "before": self.before,
            "measured": "" if value is None else self.form.format(value),
            "bound": f"{'≥' if self.least else '≤'} {self.form.format(self.bound)}",
            "verdict": "not measured" if value is None else ("met" if met else "not met") if judged else "not judged",
        }


AIMS = (
    Aim("best schedule over VAR, eager, batch 1", lambda found: found.of_var(1), 0.30, "1.27"),
    Aim("the same, batch 8", lambda found: found.of_var(8), 0.35, "1.17"),
    Aim("the same, batch 64", lambda found: found.of_var(64), 0.45, "1.29"),
    Aim("images a second of a training step over VAR's", Results.training, 1.15, "0.18", least=True),
    Aim("training step of the ceiling", lambda found: found.utilization("training"), 0.45, "20%", True, "{:.0%}"),
    Aim("decoder of the ceiling", lambda found: found.utilization("decoder"), 0.40, "13%", True, "{:.0%}"),
    Aim("clustering and quantization of tokenizing", Results.clustering, 0.05, "33%", form="{:.1%}"),
    Aim("tokenizer step over before", Results.tokenizer, 3.0, "1", least=True),
    Aim("first picture, code cached, s", Results.first_picture, 10.0, "46", form="{:.1f}"),
)


def lines(measured: Sequence[Measured], *, judged: bool) -> list[dict[str, str]]:
    """All aims' lines."""
    results = Results(measured)
    return [aim.row(results, judged=judged) for aim in AIMS]
