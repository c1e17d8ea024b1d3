"""Make a trained sampler part of the package: half precision, into nvg/assets/NAME, for nvg.load("NAME").

    python -m scripts.release.package_sampler runs/fashion_mnist_hour/generators-KEY fashion-mnist \\
        --classifier runs/fashion_mnist_hour/classifier-KEY.safetensors \\
        --reference runs/fashion_mnist_hour/reference-KEY.safetensors

Weights become float16 safetensors; everything computes in float32 after loading. Classifier and reference (of which
fewer features are kept) are what the regression test measures samples with. Evaluate the result and not the original:

    python pipelines/evaluate.py --sampler fashion-mnist --config conf/fashion_mnist_hour.yaml
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nvg import storage
from nvg.artifacts.models import fingerprint, read_metadata
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference

ASSETS = Path(__file__).resolve().parents[2] / "nvg" / "assets"
MOST_BYTES = 15_000_000
NETWORKS = ("tokenizer", "content", "structure")
REFERENCE_FEATURES = 2000
LICENCE = "Apache License 2.0"  # of the weights that ship with the package: as the code


def package(sampler: str, name: str, classifier: str, reference: str) -> Path:
    """Write nvg/assets/NAME; returns it. Raises ValueError when it would be larger than 15 MB."""
    metadata = read_metadata(sampler)
    source = Path(storage.local_folder(sampler))
    target = ASSETS / name
    target.mkdir(parents=True, exist_ok=True)
    for network in NETWORKS:
        state = {key: value.to(torch.float16) for key, value in load_file(source / f"{network}.safetensors").items()}
        worst = max(float(value.abs().max()) for value in state.values())
        if not worst < float("inf"):
            raise ValueError(f"{source}/{network}.safetensors holds values beyond float16")
        save_file(state, target / f"{network}.safetensors")
        metadata["weights"] = metadata.get("weights", {}) | {network: fingerprint(state)}
    metadata["tokenizer"] = metadata["weights"]["tokenizer"]
    shutil.copy(source / "config.yaml", target / "config.yaml")
    shutil.copy(classifier, target / "classifier.safetensors")
    real = load_reference(reference)
    if real.network != NetworkFile("classifier", classifier).name:
        raise ValueError(f"{reference} holds features of {real.network}, {classifier} is another network")
    real.features = real.features[:REFERENCE_FEATURES]
    real.save(str(target / "reference.safetensors"))
    metadata["licence"] = LICENCE
    storage.write_json(str(target / "metadata.json"), metadata)
    size = sum(path.stat().st_size for path in target.iterdir())
    if size > MOST_BYTES:
        raise ValueError(f"{target} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
    print(f"{target}: {size / 1e6:.1f} MB")
    return target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sampler", help="folder or URL that pipelines/train.py made")
    parser.add_argument("name", help="the name for nvg.load")
    parser.add_argument("--classifier", required=True, help="the data set's classifier that evaluate.py trained")
    parser.add_argument("--reference", required=True, help="the held-out images' features that evaluate.py kept")
    arguments = parser.parse_args()
    try:
        package(arguments.sampler, arguments.name, arguments.classifier, arguments.reference)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
