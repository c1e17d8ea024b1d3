"""The cost of ImageNet's tokens: bytes, GPU hours, cores and requests, from measured figures (docs/reports/scale.md).

    python -m benchmarks.capacity.scale_estimate [--images 1281167] [--views 10] [--encoder-tflops 112] ...

Measured on one core: reading a JPEG of 500x375 into a view, the bytes of a token part, listing the files. Counted: the
encoder's operations. Options: what one H200 did (docs/reports/gpu.md), and, assumed, the bytes of an image and prices.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from benchmarks.memory_curve import jpegs
from nvg import config as configuration
from nvg.config import Config
from nvg.data import decode_image, make_view, open_source
from nvg.data.tokens import TokenFormat, part_name, write_part
from nvg.describe import forward_flops
from nvg.imagenet import shipped_synsets

REPEATS = 200  # images that are read to measure
Line = tuple[str, str, str]  # of the table: what, by which arithmetic, how much


def part_bytes(config: Config) -> float:
    """Bytes per row of a written part of data.unit_images rows. The tokens are drawn evenly, which compresses least."""
    sizes, rows = config.tokenizer, config.data.unit_images
    rng = np.random.default_rng(0)
    synsets = list(shipped_synsets().items())
    classes = [name for _, name in synsets[: config.data.num_classes]]
    form = TokenFormat("0" * 16, sizes.last_stage, sizes.positions, sizes.codebook_size, classes, None, "0" * 16)
    labels = rng.integers(0, len(classes), rows)
    columns = {
        "image_id": [f"{synsets[k][0]}/{synsets[k][0]}_{rng.integers(0, 30000)}" for k in labels],
        "label": labels,
        "content": rng.integers(0, sizes.codebook_size, (rows, 2 * sizes.positions - 1)),
        "structure": rng.permuted(np.tile(np.arange(sizes.positions), (rows, 1)), axis=1),
    }
    with tempfile.TemporaryDirectory() as folder:
        return write_part(folder, form, part_name(0, 0), 0, columns, []) / rows


def reading(config: Config) -> tuple[float, float]:
    """CPU seconds of one core for decoding an image of 500x375, and for a random view of it."""
    pictures = list(jpegs(REPEATS))
    start = time.process_time()
    images = [decode_image(data, config.data.channels) for data in pictures]
    decoded = time.process_time()
    for number, image in enumerate(images):
        make_view(image, config.data, 1, 0, str(number))
    return (decoded - start) / REPEATS, (time.process_time() - decoded) / REPEATS


def listing(files: int) -> tuple[float, float, float]:
    """The costs of an ILSVRC training folder of `files` empty files in memory: seconds to open it, bytes per file that
    the driver keeps, and bytes per file that the object store holds for the readers."""
    synsets = list(shipped_synsets())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for number in range(files):
            folder = Path(root, synsets[number % 1000])
            folder.mkdir(exist_ok=True)
            (folder / f"{folder.name}_{number}.JPEG").touch()
        settings = ["data.source=ilsvrc", f"data.train={root}", "data.num_classes=1000", "data.unit_images=512"]
        config = configuration.load("conf/smoke.yaml", settings)
        before, start = psutil.Process().memory_full_info().uss, time.time()
        source = open_source(config.data, "train")
        seconds = time.time() - start
        kept = psutil.Process().memory_full_info().uss - before
        held = sum(len(str(unit)) for unit in source.units)
    return seconds, kept / files, held / files


@dataclass(frozen=True)
class Measured:
    """The figures of this machine, and the encoder's operations."""

    row_bytes: float  # of a token row on disk
    decode: float  # CPU seconds of a JPEG
    view: float  # CPU seconds of a view of it
    flops: float  # of the encoder, per image
    listing: tuple[float, float, float]  # what `listing` returns

    @staticmethod
    def of(config: Config, files: int) -> Measured:
        """Measure it all; files: empty files that are listed."""
        return Measured(part_bytes(config), *reading(config), forward_flops(config)["encoder"], listing(files))

    @property
    def reading(self) -> float:
        """CPU seconds of reading one view."""
        return self.decode + self.view


@dataclass(frozen=True)
class Estimate:
    """The table's sections, from the command line, the configuration and the measured figures."""

    options: argparse.Namespace
    config: Config
    measured: Measured

    @property
    def total(self) -> int:
        """Token rows."""
        return self.options.images * self.options.views

    @property
    def rate(self) -> float:
        """Images per second and GPU."""
        encoding = self.measured.flops / (self.options.encoder_tflops * 1e12)
        return 1 / (encoding + self.options.clustering_ms * 1e-3)

    @property
    def cores(self) -> float:
        """Cores that feed a GPU."""
        return self.rate * self.measured.reading

    @property
    def units(self) -> int:
        """Units of images: a part per unit and view is written."""
        return -(-self.options.images // self.config.data.unit_images)

    def bytes_of_tokens(self) -> list[Line]:
        """Rows, bytes and parts."""
        images, views, rows = self.options.images, self.options.views, f"{self.total / 1e6:.2f} M"
        positions, width, row = self.config.tokenizer.positions, self.config.repa.feature_width, self.measured.row_bytes
        size, with_features = self.total * row / 1e9, self.total * (row + 2 * positions * width) / 1e12
        unit = self.config.data.unit_images
        return [
            ("rows", f"{images:,} images × {views} views", rows),
            ("bytes per row", f"measured: a part of {unit} rows, evenly drawn tokens, zstd", f"{row:,.0f}"),
            ("**tokens**", f"{rows} × {row:,.0f} B", f"**{size:.1f} GB**"),
            ("with alignment features", f"+ 2 B × {positions} × {width} per row", f"{with_features:.2f} TB"),
            ("parts", f"{self.units:,} units of {unit} × {views}", f"{self.units * views:,}"),
        ]

    def computing(self) -> list[Line]:
        """Encoders, readers and the memory between them."""
        data, gpus, rows, measured = self.config.data, self.config.cluster.encoders, self.total / 1e6, self.measured
        gflops, speed, clustering = measured.flops / 1e9, self.options.encoder_tflops, self.options.clustering_ms
        decode, view, read = (1e3 * seconds for seconds in (measured.decode, measured.view, measured.reading))
        hours, fed = self.total / self.rate / 3600, gpus * self.cores
        piece = data.unit_images * data.image_size**2 * data.channels
        size = f"500×375 → {data.image_size}×{data.image_size}"
        store = 2 * piece * gpus * (1 + self.cores) / 1e9
        reading_hours = self.total * measured.reading / 3600
        return [
            ("encoder", "counted, one forward pass", f"{gflops:.1f} GFLOP"),
            ("clustering and quantization", "measured on one H200", f"{clustering:g} ms"),
            (
                "images per second and GPU",
                f"1 ÷ ({gflops:.1f} GFLOP ÷ {speed:g} TFLOP/s + {clustering:g} ms)",
                f"{self.rate:,.0f}",
            ),
            ("**GPU hours**", f"{rows:.2f} M ÷ {self.rate:,.0f}/s", f"**{hours:.1f}**"),
            (
                f"decoding a JPEG, a view of it by {data.resize}",
                f"measured, one core, {size}",
                f"{decode:.2f} + {view:.2f} ms",
            ),
            ("**CPU hours of reading**", f"{rows:.2f} M × {read:.2f} ms", f"**{reading_hours:.1f}**"),
            ("cores that feed a GPU", f"{self.rate:,.0f}/s × {read:.2f} ms", f"{self.cores:.1f}"),
            (f"hours with {gpus} GPUs", f"÷ {gpus}, fed by {fed:.0f} cores", f"{hours / gpus:.1f}"),
            ("a piece", f"{data.unit_images} × {data.image_size}² × {data.channels} B", f"{piece / 1e6:.0f} MB"),
            ("object store, all nodes", f"2 pieces × ({fed:.0f} readers + {gpus} encoders)", f"{store:.1f} GB"),
        ]

    def storing(self) -> list[Line]:
        """Bytes and requests of the store, in dollars."""
        options, parts, rows = self.options, self.units * self.options.views, f"{self.total / 1e6:.2f} M"
        read = self.total * options.image_kb * 1e3
        lists = 2 * options.images / 1000
        by_file = (self.total * options.get_price + (parts + lists) * options.put_price) / 1e6
        gets, puts = read / 5e6, 3000 * options.views
        by_archive = (gets * options.get_price + puts * options.put_price) / 1e6
        size = self.total * self.measured.row_bytes / 1e9
        price, kept = options.store_price, size * options.store_price
        return [
            ("bytes read", f"{rows} × {options.image_kb:g} kB", f"{read / 1e12:.2f} TB"),
            ("requests, a file per image", f"{rows} GET, {parts:,} PUT, {int(lists):,} LIST", f"${by_file:.2f}"),
            ("requests, class archives", f"{gets:,.0f} GET of 5 MB, {puts:,} PUT", f"${by_archive:.2f}"),
            ("keeping the tokens", f"{size:.1f} GB × ${price:g}", f"${kept:.2f} per month"),
        ]

    def files(self) -> list[Line]:
        """The listing: time and memory."""
        seconds, kept, held = self.measured.listing
        images, times = self.options.images, self.options.images / self.options.files
        return [
            ("listing the files", f"measured with {self.options.files:,}, × {times:.1f}", f"{seconds * times:.0f} s"),
            ("the listing in the driver", f"{kept:.0f} B per file", f"{kept * images / 1e6:.0f} MB"),
            (
                "the listing in the object store",
                f"{held:.0f} B per file, a copy per node",
                f"{held * images / 1e6:.0f} MB",
            ),
        ]

    def lines(self) -> list[Line]:
        """The whole table."""
        return [*self.bytes_of_tokens(), *self.computing(), *self.storing(), *self.files()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--encoder-tflops", type=float, default=112, help="of the encoder in TF32: one H200's")
    parser.add_argument("--clustering-ms", type=float, default=0.16, help="and quantization, of an image: one H200's")
    parser.add_argument("--image-kb", type=float, default=115.4, help="a JPEG; the training archive over its images")
    parser.add_argument("--get-price", type=float, default=0.4, help="dollars per million GET requests")
    parser.add_argument("--put-price", type=float, default=5.0, help="dollars per million PUT and LIST requests")
    parser.add_argument("--store-price", type=float, default=0.023, help="dollars per GB and month")
    parser.add_argument("--files", type=int, default=100_000, help="empty files that are listed to measure")
    options = parser.parse_args()
    config = configuration.load(options.config, [f"data.views={options.views}", "repa.weights=null"])
    measured = Measured.of(config, options.files)
    print(f"{options.config}, {platform.processor() or platform.machine()}, {date.today()}\n")
    print("| | arithmetic | |\n| --- | --- | --- |")
    print("\n".join("| " + " | ".join(line) + " |" for line in Estimate(options, config, measured).lines()))


if __name__ == "__main__":
    main()
