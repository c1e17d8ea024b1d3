"""The networks whose features figures are taken on: Inception-v3 as published, else a classifier of the data set; and
DINOv2 for a second Fréchet distance.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nvg import storage
from nvg.data.images import to_float
from nvg.evaluation.classifier import Classifier, load_classifier
from nvg.frozen.dinov2 import DinoFeatures, load_dinov2
from nvg.frozen.inception import Inception, load_inception

BATCH = 256  # images that pass through the network at once
INCEPTION_WIDTH = 2048  # D of Inception-v3


@dataclass
class FeatureNetwork:
    """A frozen network, called with images of any size."""

    module: Classifier | Inception | DinoFeatures

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) -> features (N, D) and logits (N, classes), float32 on the CPU.

        DINOv2 has no classes: its logits are (N, 0).
        """
        device = next(self.module.parameters()).device
        results = []
        for some in images.split(BATCH):
            some = some.to(device)
            if isinstance(self.module, Classifier):
                features = self.module.features(some)
                logits = self.module.head(features)
            elif isinstance(self.module, DinoFeatures):
                features = self.module.class_token(to_float(some))
                logits = features[:, :0]
            else:
                features, logits = self.module(some)
            results.append((features.cpu(), logits.cpu()))
        return torch.cat([pair[0] for pair in results]), torch.cat([pair[1] for pair in results])


@dataclass(frozen=True)
class NetworkFile:
    """The file that a feature network is loaded from."""

    kind: str  # "inception", "classifier" or "dinov2"
    path: str  # of its .safetensors file, of DINOv2 of the folder that holds it; path or URL

    @cached_property
    def name(self) -> str:
        """`classifier 0123456789ab`, the kind and a hash of the file: features of other weights do not compare."""
        file = storage.join(self.path, "model.safetensors") if self.kind == "dinov2" else self.path
        return f"{self.kind} {hashlib.sha256(storage.read_bytes(file)).hexdigest()[:12]}"

    @property
    def knows_classes(self) -> bool:
        """Whether the network's outputs are the data set's classes."""
        return self.kind == "classifier"

    def load(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        """The network. Raises WeightsError or ValueError for a file that is not of its kind."""
        module: Classifier | Inception | DinoFeatures
        if self.kind == "dinov2":
            module = load_dinov2(self.path, key="evaluate.dinov2_weights")
        else:
            module = load_inception(self.path) if self.kind == "inception" else load_classifier(self.path)
        return FeatureNetwork(module.to(device))
