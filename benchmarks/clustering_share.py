"""How much of tokenizing an image are clustering and quantization? Random weights, random images, one process.

    python -m benchmarks.clustering_share [--config conf/imagenet_d16.yaml] [--images 8] [--threads 2] [--rounds 3]
    python -m benchmarks.clustering_share --config conf/fashion_mnist.yaml --images 1000 --threads 1 --rounds 7
    python -m benchmarks.clustering_share --images 1024 --gpu

Runs the tokenizer actor of pipelines/build_tokens.py as Ray Data runs it, on a row of --images images. Prints the
seconds of each part (the least of the rounds) and its share.
"""

import argparse
import platform
import tempfile
from dataclasses import replace

import numpy as np
import torch

from nvg import config as configuration
from nvg.artifacts.models import save_tokenizer
from nvg.autoencoder import Autoencoder
from pipelines.build_tokens import Encode


def seconds_by_part(path: str, images: int, threads: int, rounds: int, *, gpu: bool = False) -> dict[str, float]:
    """The seconds of encoder, clustering and quantization for all images together, each the least of the rounds.

    path: the configuration file. gpu: on a GPU, where the seconds are the GPU's own, after a round that starts it.
    """
    config = configuration.load(path, ["repa.weights=null", f"cluster.use_gpu={str(gpu).lower()}"])
    config.cluster = replace(config.cluster, threads_per_worker=threads)
    sizes = config.tokenizer
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(number) for number in range(config.data.num_classes)]
        state = Autoencoder(sizes).state_dict()
        save_tokenizer(f"{folder}/tokenizer", state, config, class_names=names, metadata={})
        encode = Encode(config, f"{folder}/tokenizer")
    shape = (images, sizes.image_size, sizes.image_size, sizes.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes()
    rows = [encode({"images": pixels}) for _ in range(rounds + gpu)][int(gpu) :]
    return {name: min(row[f"seconds_{name}"] for row in rows) for name in ("encoder", "clustering", "quantization")}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    rounds, gpu = arguments.rounds, arguments.gpu
    least = seconds_by_part(arguments.config, arguments.images, arguments.threads, rounds, gpu=gpu)
    total = sum(least.values())
    sizes = configuration.load(arguments.config).tokenizer
    print(
        f"{arguments.config}: {arguments.images} images, latents {sizes.grid}x{sizes.grid}x{sizes.code_width}, "
        f"{arguments.threads} threads, torch {torch.__version__}, {platform.machine()}"
    )
    for name, seconds in least.items():
        print(f"{name:<13}{seconds:9.4f} s {seconds / total:7.2%}")


if __name__ == "__main__":
    main()
