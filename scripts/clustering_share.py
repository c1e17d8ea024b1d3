"""What part of tokenizing an image is the clustering? Random weights, a full-size configuration.

    python scripts/clustering_share.py [--config conf/imagenet_d16.yaml] [--images 8] [--threads 2]

Prints the seconds of encoder, clustering and quantization (the least of three runs each), and their shares.
"""

import argparse
import platform
import time

import torch

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.granularity import structure_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conf/imagenet_d16.yaml")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = configuration.load(arguments.config).tokenizer
    tokenizer = Autoencoder(config).eval()
    images = torch.rand(arguments.images, config.channels, config.image_size, config.image_size) * 2 - 1
    least = dict.fromkeys(("encoder", "clustering", "quantization"), float("inf"))
    with torch.inference_mode():
        for _ in range(3):
            times = [time.perf_counter()]
            latents = tokenizer.latents(images)
            times.append(time.perf_counter())
            codes = structure_codes(latents)
            times.append(time.perf_counter())
            tokenizer.quantizer.tokenize(latents, codes)
            times.append(time.perf_counter())
            for name, begin, end in zip(least, times[:-1], times[1:], strict=True):
                least[name] = min(least[name], end - begin)
    total = sum(least.values())
    print(
        f"{arguments.config}: {arguments.images} images, latents {tuple(latents.shape)}, {arguments.threads} threads, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    for name, seconds in least.items():
        print(f"{name:<13}{seconds:8.3f} s {seconds / total:7.2%}")


if __name__ == "__main__":
    main()
