"""The parts of scripts/gpu_check.sh in Python: whether GPUs and NCCL work, and the judgement of a finished run.

    python -m scripts.gpu_check gpus
    python -m scripts.gpu_check judge --config conf/fashion_mnist_gpu.yaml key=value ...

`gpus` sums a number on every GPU by NCCL and prints how many there are. `judge` prints every figure of
scripts/gpu_check.yaml with its bar and ends with 1 where one is not reached or missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvg import config as configuration
from nvg import storage
from nvg.errors import ConfigError
from pipelines.command_line import described_parser, job_parser, one_line_errors, read_config, words
from pipelines.steps import Artifact, plan

BARS = Path(__file__).with_suffix(".yaml")
TRAININGS = ("tokenizer", "generators")


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Ends the program with 1 where a figure fails."""
    command, *rest = words(argv) or ["--help"]
    if command == "judge":
        lines, passed = judge(
            figures(plan(read_config(job_parser(__doc__).parse_intermixed_args(rest)))), read_bars(BARS)
        )
        print("\n".join(lines))
        raise SystemExit(0 if passed else 1)
    parser = described_parser(__doc__)
    parser.add_argument("command", choices=("gpus", "judge"))
    parser.parse_args([command, *rest])
    print(working_gpus())


# ---- before the run ----


def working_gpus() -> int:
    """The number of GPUs. Raises ConfigError where there is none, or NCCL does not sum a number on one of them."""
    import torch
    import torch.distributed as distributed

    if not torch.cuda.is_available():
        raise ConfigError("gpu_check needs a GPU: torch finds none here")
    if not distributed.is_nccl_available():
        raise ConfigError("gpu_check needs NCCL: this torch was built without it")
    count = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            torch.cuda.set_device(index)
            distributed.init_process_group("nccl", init_method=f"file://{folder}/{index}", rank=0, world_size=1)
            one = torch.ones(1, device="cuda")
            distributed.all_reduce(one)
            distributed.destroy_process_group()
            if one.item() != 1:
                raise ConfigError(f"NCCL summed 1 to {one.item()} on GPU {index}: look at its driver")
    return count


# ---- after the run ----


def figures(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """The figures of a finished run by name. Raises ConfigError where a step is not finished."""
    for step, artifact in artifacts.items():
        if not artifact.complete:
            raise ConfigError(f"{artifact.folder} is not finished: run scripts/gpu_check.sh again to finish {step}")
    found: dict[str, float] = {}
    for step in TRAININGS:
        training = storage.read_json(storage.join(artifacts[step].folder, "metadata.json"))["training"]
        found |= {f"{step}_{name}": value for name, value in training.items() if name != "data_wait_share"}
    found["data_wait_share"] = training["data_wait_share"]  # the generators'
    found |= storage.read_json(storage.join(artifacts["evaluation"].folder, "evaluation.json"))["figures"]
    timings = [storage.join(artifact.folder, "timing.json") for artifact in artifacts.values()]
    found["minutes"] = sum(storage.read_json(timing)["seconds"] for timing in timings) / 60
    return found


def read_bars(path: Path) -> dict[str, dict[str, Any]]:
    """The bars by figure. Raises ConfigError for one that has no reason, or two bounds, or another key."""
    bars = configuration.read_file(path)
    for name, bar in bars.items():
        keys = set(bar) if isinstance(bar, dict) else set()
        if keys not in ({"why"}, {"why", "least"}, {"why", "most"}):
            raise ConfigError(f"{path}: {name} must have `why`, and `least` or `most` where it is to be judged")
        bars[name] = {key: value if key == "why" else float(value) for key, value in bar.items()}
    return bars


def judge(found: Mapping[str, Any], bars: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], bool]:
    """A line for every bar, and whether all are reached. A figure that is missing or no number reaches no bar."""
    lines, passed = [f"{'figure':<30}{'value':>10}  {'bar':<12}verdict"], True
    for name, bar in bars.items():
        value = found.get(name)
        number = isinstance(value, int | float) and value == value  # a mean of nothing is no number
        text = "-" if not number else f"{value:.4g}"
        bound = next((f"{'≥' if key == 'least' else '≤'} {bar[key]:g}" for key in ("least", "most") if key in bar), "")
        if not bound:
            verdict = "to be set"
        elif number and (value >= bar["least"] if "least" in bar else value <= bar["most"]):
            verdict = "pass"
        else:
            verdict, passed = f"FAIL: {bar['why']}", False
        lines.append(f"{name:<30}{text:>10}  {bound:<12}{verdict}")
    return [*lines, "", "PASS" if passed else "FAIL"], passed


if __name__ == "__main__":
    main()
