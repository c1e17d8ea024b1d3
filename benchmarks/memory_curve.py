"""Is the memory of build_tokens flat over time, whatever the number of images?

    python -m benchmarks.memory_curve [--images 2000 20000] [--slow 1500] [--out docs/figures/memory_curve.png]

Makes folders of JPEGs of 500x375 (300 distinct pictures of 75 to 100 kB under many names), and runs
pipelines/build_tokens.py on each, 256x256 and two views, with a small untrained tokenizer, on a Ray of its own with an
object store of 300 MB. --slow: the number of images of one more run, with a tokenizer slower than the reading. Twice
per second it adds up the memory of all processes of that Ray: Pss, in which a shared page counts once, and of it the
shared memory, which is the object store; and the bytes spilled to disk. Writes a plot, its numbers as JSON in the same
folder, and prints a Markdown table. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from nvg import config as configuration
from nvg.artifacts.models import save_tokenizer
from nvg.autoencoder import Autoencoder
from pipelines.steps import plan

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "conf" / "smoke.yaml")
DISTINCT, CLASSES, STORE_GB = 300, 10, 0.3
SETTINGS = [
    "data.image_size=256",
    "data.channels=3",
    f"data.num_classes={CLASSES}",
    "data.views=2",
    "data.crop_scale=1.125",
    "data.unit_images=128",
    f"cluster.object_store_gb={STORE_GB}",
    "cluster.local_cpus=2",
]
QUICK = ["tokenizer.patch=32", "tokenizer.widths=[16,32]"]  # 4x4 latents: the encoder waits for the readers
SLOW = ["tokenizer.patch=4", "tokenizer.widths=[32,64,64,64]"]  # 8x8 latents too: the readers wait for the encoder


@dataclass
class MemoryRun:
    """Samples of a run of build_tokens: seconds since its start, and MB (10^6 bytes)."""

    name: str
    seconds: list[float] = field(default_factory=list)
    total: list[int] = field(default_factory=list)  # Pss of all processes
    store: list[int] = field(default_factory=list)  # of it shared memory
    driver: list[int] = field(default_factory=list)  # of it the driver's, without shared memory
    spilled: float = 0.0  # the most
    images_per_second: float = 0.0

    def sample(self, driver: psutil.Process, seconds: float, scratch: str) -> None:
        """Add a sample of a driver and all that it has started. Raises psutil.NoSuchProcess when it has ended."""
        parts = [memory(process) for process in (driver, *driver.children(recursive=True))]
        self.seconds.append(round(seconds, 1))
        self.total.append(round(sum(part.get("Pss", 0.0) for part in parts)))
        self.store.append(round(sum(part.get("Pss_Shmem", 0.0) for part in parts)))
        self.driver.append(round(parts[0].get("Pss_Anon", 0.0)))
        spilled = [path.stat().st_size for path in Path(scratch).glob("**/ray_spilled_objects*/*")]
        self.spilled = max(self.spilled, sum(spilled) / 1e6)

    def level(self, first: float, last: float) -> float:
        """The median of `total` between two shares of the run's time, while images are read: MB."""
        busy = [total for total, store in zip(self.total, self.store, strict=True) if store > 20]
        return float(np.median(busy[int(first * len(busy)) : max(1, int(last * len(busy)))]))


def jpegs(count: int) -> Iterator[bytes]:
    """JPEGs of 500x375, smooth colours and noise, of 75 to 100 kB."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        noise = rng.normal(0, rng.uniform(8, 20), (375, 500, 1))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(colours) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def make_images(root: Path, sizes: list[int]) -> None:
    """<root>/<size>/<class>/<number>.jpg: hard links to DISTINCT pictures."""
    (root / "pool").mkdir(parents=True)
    for number, data in enumerate(jpegs(DISTINCT)):
        (root / "pool" / f"{number}.jpg").write_bytes(data)
    for size in sizes:
        for number in range(size):
            path = root / str(size) / f"class{number % CLASSES}" / f"{number:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(root / "pool" / f"{number % DISTINCT}.jpg", path)


def memory(process: psutil.Process) -> dict[str, float]:
    """Pss and its parts of one process, in MB; {} when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(value.split()[0]) / 1e3 for name, value in (line.split(":") for line in lines)}


def measure(name: str, images: Path, tokenizer: list[str]) -> MemoryRun:
    """One run of build_tokens, from its command to its end."""
    with tempfile.TemporaryDirectory(prefix="nvg") as scratch:
        settings = [*SETTINGS, *tokenizer, f"data.train={images}", f"output={scratch}/run"]
        config = configuration.load(CONFIG, settings)
        artifacts = plan(config)
        torch.manual_seed(0)
        names = [f"class{number}" for number in range(CLASSES)]
        state = Autoencoder(config.tokenizer).state_dict()
        save_tokenizer(artifacts["tokenizer"].folder, state, config, class_names=names, metadata={})
        run, start = MemoryRun(name), time.monotonic()
        command = [sys.executable, "pipelines/build_tokens.py", "--config", CONFIG, *settings]
        environment = os.environ | {"RAY_TMPDIR": scratch, "PYTHONPATH": str(ROOT)}
        log = Path(scratch, "log")
        with log.open("w") as file:
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        driver = psutil.Process(child.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            while child.poll() is None:
                run.sample(driver, time.monotonic() - start, scratch)
                time.sleep(0.5)
        if child.wait():
            raise SystemExit(f"error: build_tokens failed: {' '.join(command)}\n{log.read_text()[-2000:]}")
        metadata = json.loads(Path(artifacts["tokens"].folder, "metadata.json").read_text())
        run.images_per_second = metadata["images_per_second"]
    return run


def table(runs: list[MemoryRun]) -> str:
    """The runs as Markdown, one per line."""
    head = (
        "run",
        "peak, MB",
        "level in the first third, MB",
        "in the last third, MB",
        "object store at most, MB",
        "driver at most, MB",
        "spilled, MB",
        "views per second",
    )
    rows = [head, ("---",) * len(head)]
    for run in runs:
        figures = (
            max(run.total),
            run.level(0, 1 / 3),
            run.level(2 / 3, 1),
            max(run.store),
            max(run.driver),
            run.spilled,
            run.images_per_second,
        )
        rows.append((run.name, *(f"{value:,.0f}" for value in figures)))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def plot(runs: list[MemoryRun], out: Path) -> None:
    """Draw the memory of all processes, and of it the object store, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4))
    for number, run in enumerate(runs):
        axis.plot(run.seconds, run.total, color=f"C{number}", label=run.name)
        axis.plot(run.seconds, run.store, color=f"C{number}", linestyle=":")
    axis.axhline(STORE_GB * 1e3, color="grey", linewidth=0.8, linestyle="--")
    axis.annotate("size of the object store", (runs[0].seconds[0], STORE_GB * 1e3 + 25), color="grey", fontsize=8)
    axis.set(xlabel="seconds", ylabel="MB", ylim=(0, None), title="Memory of build_tokens (dotted: object store)")
    axis.legend(loc="center right", frameon=False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--slow", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/memory_curve.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folders = Path(root)
        make_images(folders, sorted({*arguments.images, arguments.slow}))
        runs = [measure(f"{size:,} images", folders / str(size), QUICK) for size in arguments.images]
        runs.append(measure(f"{arguments.slow:,} images, slow encoder", folders / str(arguments.slow), SLOW))
    arguments.out.with_suffix(".json").write_text(json.dumps([asdict(run) for run in runs]) + "\n")
    plot(runs, arguments.out)
    print(table(runs))


if __name__ == "__main__":
    main()
