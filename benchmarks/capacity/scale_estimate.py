"""What ImageNet's tokens cost: bytes, GPU hours, cores and requests, from figures measured here. The table of
docs/scale.md.

    python -m benchmarks.capacity.scale_estimate [--images 1281167] [--views 10] [--gpu-tflops 156] [--utilization 0.4] ...

Measured on one core: reading a JPEG of 500x375 into a view, the bytes of a token part, listing the files, the parts of
tokenizing. Counted: the encoder's operations. Assumed, and options: what a GPU does, the bytes of an image, prices.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from benchmarks.clustering_share import seconds_by_part
from benchmarks.memory_curve import jpegs
from nvg import config as configuration
from nvg.config import Config
from nvg.data import decode_image, make_view, open_source
from nvg.data.sources.ilsvrc import SHIPPED, SYNSET
from nvg.data.tokens import TokenFormat, part_name, write_part
from nvg.describe import forward_flops

REPEATS = 200  # images that are read to measure


def part_bytes(config: Config) -> float:
    """Bytes a row of a written part of data.unit_images rows. The tokens are drawn evenly, which compresses least."""
    sizes, rows = config.tokenizer, config.data.unit_images
    generator = np.random.default_rng(0)
    lines = [line for line in SHIPPED.read_text().splitlines() if SYNSET.match(line)]
    classes = [line[10:] for line in lines][: config.data.num_classes]
    form = TokenFormat("0" * 16, sizes.last_stage, sizes.positions, sizes.codebook_size, classes, None, "0" * 16)
    labels = generator.integers(0, len(classes), rows)
    columns = {
        "image_id": [f"{lines[k][:9]}/{lines[k][:9]}_{generator.integers(0, 30000)}" for k in labels],
        "label": labels,
        "content": generator.integers(0, sizes.codebook_size, (rows, 2 * sizes.positions - 1)),
        "structure": generator.permuted(np.tile(np.arange(sizes.positions), (rows, 1)), axis=1),
    }
    with tempfile.TemporaryDirectory() as folder:
        return write_part(folder, form, part_name(0, 0), 0, columns, []) / rows


def reading(config: Config) -> tuple[float, float]:
    """CPU seconds of one core for decoding an image of 500x375, and for a random view of it."""
    pictures = list(jpegs(REPEATS))
    begun = time.process_time()
    images = [decode_image(data, config.data.channels) for data in pictures]
    decoded = time.process_time()
    for number, image in enumerate(images):
        make_view(image, config.data, 1, 0, str(number))
    return (decoded - begun) / REPEATS, (time.process_time() - decoded) / REPEATS


def listing(files: int) -> tuple[float, float, float]:
    """Of an ILSVRC training folder of so many (empty) files in memory: seconds to open it, bytes that the driver keeps
    a file, and bytes a file that the object store holds for the readers."""
    synsets = [line[:9] for line in SHIPPED.read_text().splitlines() if SYNSET.match(line)]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        for number in range(files):
            folder = Path(root, synsets[number % 1000])
            folder.mkdir(exist_ok=True)
            (folder / f"{folder.name}_{number}.JPEG").touch()
        settings = ["data.source=ilsvrc", f"data.train={root}", "data.num_classes=1000", "data.unit_images=512"]
        config = configuration.load("conf/smoke.yaml", settings)
        before, begun = psutil.Process().memory_full_info().uss, time.time()
        source = open_source(config.data, "train")
        seconds = time.time() - begun
        kept = psutil.Process().memory_full_info().uss - before
        held = sum(len(str(unit)) for unit in source.units)
    return seconds, kept / files, held / files


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--gpu-tflops", type=float, default=156, help="peak; 156: an A100's TF32, as the encoder runs")
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the peak that the encoder reaches")
    parser.add_argument("--image-kb", type=float, default=115.4, help="a JPEG; the training archive over its images")
    parser.add_argument("--get-price", type=float, default=0.4, help="dollars a million GET requests")
    parser.add_argument("--put-price", type=float, default=5.0, help="dollars a million PUT and LIST requests")
    parser.add_argument("--store-price", type=float, default=0.023, help="dollars a GB and month")
    parser.add_argument("--files", type=int, default=100_000, help="empty files that are listed to measure")
    parser.add_argument("--encoded", type=int, default=4, help="images that are encoded to measure shares")
    arguments = parser.parse_args()
    config = configuration.load(arguments.config, [f"data.views={arguments.views}", "repa.weights=null"])
    data, gpus = config.data, config.cluster.encoders
    images, views = arguments.images, arguments.views
    total = images * views
    total_read = total * arguments.image_kb * 1e3

    list_seconds, list_kept, list_held = listing(arguments.files)
    decode, view = reading(config)
    row = part_bytes(config)
    parts = seconds_by_part(arguments.config, arguments.encoded, 1, 2)
    extra = (parts["clustering"] + parts["quantization"]) / parts["encoder"]
    flops = forward_flops(config)["encoder"]
    rate = arguments.gpu_tflops * 1e12 * arguments.utilization / flops / (1 + extra)  # images a second and GPU
    units = -(-images // data.unit_images)
    cores = rate * (decode + view)
    piece = data.unit_images * data.image_size**2 * data.channels
    workers = gpus * (1 + cores)
    feature_bytes = 2 * config.tokenizer.positions * config.repa.feature_width

    lines = [
        ("rows", f"{images:,} images × {views} views", f"{total / 1e6:.2f} M"),
        ("bytes a row", f"measured: a part of {data.unit_images} rows, evenly drawn tokens, zstd", f"{row:,.0f}"),
        ("**tokens**", f"{total / 1e6:.2f} M × {row:,.0f} B", f"**{total * row / 1e9:.1f} GB**"),
        (
            "with alignment features",
            f"+ 2 B × {config.tokenizer.positions} × {config.repa.feature_width} a row",
            f"{total * (row + feature_bytes) / 1e12:.2f} TB",
        ),
        ("parts", f"{units:,} units of {data.unit_images} × {views}", f"{units * views:,}"),
        ("encoder", "counted, one forward pass", f"{flops / 1e9:.1f} GFLOP"),
        ("clustering and quantization", "measured, of the encoder's seconds on a CPU", f"{extra:.1%}"),
        (
            "images a second and GPU",
            f"{arguments.gpu_tflops:g} TFLOP/s × {arguments.utilization:g} ÷ "
            f"({flops / 1e9:.1f} GFLOP × {1 + extra:.3f})",
            f"{rate:,.0f}",
        ),
        ("**GPU hours**", f"{total / 1e6:.2f} M ÷ {rate:,.0f}/s", f"**{total / rate / 3600:.1f}**"),
        (
            "decoding a JPEG, a view of it",
            f"measured, one core, 500×375 → {data.image_size}×{data.image_size}",
            f"{decode * 1e3:.2f} + {view * 1e3:.2f} ms",
        ),
        (
            "**CPU hours of reading**",
            f"{total / 1e6:.2f} M × {(decode + view) * 1e3:.2f} ms",
            f"**{total * (decode + view) / 3600:.1f}**",
        ),
        ("cores that feed a GPU", f"{rate:,.0f}/s × {(decode + view) * 1e3:.2f} ms", f"{cores:.1f}"),
        (f"hours with {gpus} GPUs", f"÷ {gpus}, fed by {gpus * cores:.0f} cores", f"{total / rate / 3600 / gpus:.1f}"),
        ("a piece", f"{data.unit_images} × {data.image_size}² × {data.channels} B", f"{piece / 1e6:.0f} MB"),
        (
            "object store, all nodes",
            f"2 pieces × ({gpus * cores:.0f} readers + {gpus} encoders)",
            f"{2 * piece * workers / 1e9:.1f} GB",
        ),
        ("bytes read", f"{total / 1e6:.2f} M × {arguments.image_kb:g} kB", f"{total_read / 1e12:.2f} TB"),
        (
            "requests, a file an image",
            f"{total / 1e6:.2f} M GET, {units * views:,} PUT, {2 * images // 1000:,} LIST",
            f"${(total * arguments.get_price + (units * views + 2 * images / 1000) * arguments.put_price) / 1e6:.2f}",
        ),
        (
            "requests, class archives",
            f"{total_read / 5e6:,.0f} GET of 5 MB, {3000 * views:,} PUT",
            f"${(total_read / 5e6 * arguments.get_price + 3000 * views * arguments.put_price) / 1e6:.2f}",
        ),
        (
            "keeping the tokens",
            f"{total * row / 1e9:.1f} GB × ${arguments.store_price:g}",
            f"${total * row / 1e9 * arguments.store_price:.2f} a month",
        ),
        (
            "listing the files",
            f"measured with {arguments.files:,}, × {images / arguments.files:.1f}",
            f"{list_seconds * images / arguments.files:.0f} s",
        ),
        ("the listing in the driver", f"{list_kept:.0f} B a file", f"{list_kept * images / 1e6:.0f} MB"),
        (
            "the listing in the object store",
            f"{list_held:.0f} B a file, a copy a node",
            f"{list_held * images / 1e6:.0f} MB",
        ),
    ]
    print(f"{arguments.config}, {platform.processor() or platform.machine()}, {date.today()}\n")
    print("| | arithmetic | |\n| --- | --- | --- |")
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
