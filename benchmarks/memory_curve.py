"""Memory of build_tokens over time, by number of images: is it flat?

    python -m benchmarks.memory_curve [--images 2000 20000] [--slow 1500] [--out docs/figures/memory_curve.png]

Makes folders of JPEGs of 500x375 (300 distinct pictures of 75 to 100 kB under many names), and runs
pipelines/build_tokens.py on each, 256x256 and two views, with a small untrained tokenizer, on a Ray of its own with an
object store of 300 MB. --slow: one more run, of so many images, with a tokenizer slower than the reading. Twice a
second it adds up the memory of all processes of that Ray: Pss, in which a shared page counts once, and of it the shared
memory, which is the object store; and what was spilled to disk. Writes a plot, its numbers beside it as JSON, and
prints a Markdown table. Linux.
"""

from __future__ import annotations

import argparse
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
class Run:
    """Samples of a run: seconds since its start, and MB (10^6 bytes)."""

    name: str
    seconds: list[float] = field(default_factory=list)
    total: list[int] = field(default_factory=list)  # Pss of all processes
    store: list[int] = field(default_factory=list)  # of it shared memory
    driver: list[int] = field(default_factory=list)  # of it the driver's own
    spilled: float = 0.0  # the most
    images_per_second: float = 0.0

    def level(self, first: float, last: float) -> float:
        """The median of `total` between two shares of the run's time, while images are read: MB."""
        busy = [total for total, store in zip(self.total, self.store, strict=True) if store > 20]
        return float(np.median(busy[int(first * len(busy)) : max(1, int(last * len(busy)))]))


def jpegs(count: int) -> Iterator[bytes]:
    """JPEGs of 500x375, smooth colours and noise, of 75 to 100 kB."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        noise = generator.normal(0, generator.uniform(8, 20), (375, 500, 1))
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


def measure(name: str, images: Path, tokenizer: list[str]) -> Run:
    """One run of build_tokens, from its command to its end."""
    with tempfile.TemporaryDirectory(prefix="nvg") as scratch:
        settings = [*SETTINGS, *tokenizer, f"data.train={images}", f"output={scratch}/run"]
        config = configuration.load("conf/smoke.yaml", settings)
        artifacts = plan(config)
        torch.manual_seed(0)
        names = [f"class{number}" for number in range(CLASSES)]
        state = Autoencoder(config.tokenizer).state_dict()
        save_tokenizer(artifacts["tokenizer"].folder, state, config, class_names=names, metadata={})
        run, begun = Run(name), time.time()
        command = [sys.executable, "pipelines/build_tokens.py", "--config", "conf/smoke.yaml", *settings]
        child = subprocess.Popen(
            command,
            env=os.environ | {"RAY_TMPDIR": scratch, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        driver = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                found = [memory(process) for process in (driver, *driver.children(recursive=True))]
            except psutil.NoSuchProcess:
                break
            run.seconds.append(round(time.time() - begun, 1))
            run.total.append(round(sum(item.get("Pss", 0.0) for item in found)))
            run.store.append(round(sum(item.get("Pss_Shmem", 0.0) for item in found)))
            run.driver.append(round(found[0].get("Pss_Anon", 0.0)))
            spilled = [path.stat().st_size for path in Path(scratch).glob("**/ray_spilled_objects*/*")]
            run.spilled = max(run.spilled, sum(spilled) / 1e6)
            time.sleep(0.5)
        if child.wait():
            raise SystemExit(f"build_tokens failed: {' '.join(command)}")
        about = json.loads(Path(artifacts["tokens"].folder, "metadata.json").read_text())
        run.images_per_second = about["images_per_second"]
    return run


def table(runs: list[Run]) -> str:
    """Markdown: a line a run."""
    head = (
        "run",
        "peak, MB",
        "level in the first third, MB",
        "in the last third, MB",
        "object store at most, MB",
        "driver's own at most, MB",
        "spilled, MB",
        "views a second",
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


def plot(runs: list[Run], out: Path) -> None:
    """Memory of all processes, and of it the object store, over the share of the run that is done."""
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
