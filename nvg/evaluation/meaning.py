"""What the figures of an evaluation mean, and which of them are good: for the table at a job's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "frechet_distance": "distance of samples to the reference; FID with Inception-v3",
    "frechet_distance_dinov2": "the same on DINOv2's features, if `evaluate.dinov2_weights` is set",
    "kernel_distance": "unbiased squared MMD, cubic kernel, ten disjoint groups",
    "inception_score": "how sure and how various the classes of samples are, on splits of 5,000",
    "precision": "share of samples that look like real images, k = 3",
    "recall": "share of real images that look like samples, k = 3",
    "accuracy_on_samples": "share of samples that the classifier takes for the requested class",
    "accuracy_on_test": "the same share of real held-out images, to compare with",
    "accuracy_on_train": "the same share of real training images, where there are no held-out ones",
    "train_to_test_distance": "distance of training images to held-out ones: that of perfect samples",
    "reconstruction_frechet_distance": "distance of decoded held-out images: that of perfect generators",
    "reconstruction_mse": "squared error of decoded held-out images, pixels in [-1, 1]",
    "reconstruction_psnr": "the same in dB",
    "reconstruction_lpips": "perceptual error of the same images, if `tokenizer_train.lpips_weights` is set",
    "reconstruction_mse_by_stages": "squared error by the first 1 ... K + 1 stages",
    "codebook_use": "share of the codebook's entries in use",
    "codebook_use_by_stage": "the same at each stage",
    "codebook_perplexity": "entries in use, weighted by frequency",
}

# Figures that real images alone decide: what others are read against, and none of the sampler's.
OF_REAL_IMAGES = ("accuracy_on_test", "accuracy_on_train", "train_to_test_distance")
DISTANCES, ACCURACY, USE = 3.0, 0.05, 0.9  # rules of thumb: docs/reference/figures.md


def bars(figures: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Of figures that have a bar, whether they reach it, and the bar: by figure.

    The bars come from the same evaluation: what its tokenizer and its classifier make of real images.
    """
    found: dict[str, tuple[bool, str]] = {}
    if {"frechet_distance", "reconstruction_frechet_distance", "train_to_test_distance"} <= figures.keys():
        most = DISTANCES * (figures["reconstruction_frechet_distance"] + figures["train_to_test_distance"])
        found["frechet_distance"] = figures["frechet_distance"] <= most, f"<= {most:.3g}"
    for split in ("test", "train"):
        if {"accuracy_on_samples", f"accuracy_on_{split}"} <= figures.keys():
            least = figures[f"accuracy_on_{split}"] - ACCURACY
            found["accuracy_on_samples"] = figures["accuracy_on_samples"] >= least, f">= {least:.3g}"
            break
    if "codebook_use" in figures:
        found["codebook_use"] = figures["codebook_use"] >= USE, f">= {USE:g}"
    return found


def verdicts(figures: Mapping[str, Any]) -> dict[str, str]:
    """What a table says of the figures that have a bar: `yes, <= 1.7` or `no, >= 0.853`, by figure."""
    return {name: f"{'yes' if good else 'no'}, {bar}" for name, (good, bar) in bars(figures).items()}
