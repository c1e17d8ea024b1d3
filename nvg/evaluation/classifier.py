"""A small convolutional classifier of an image set: does a generated image look like the class that was asked for?

Any images of 1 or 3 channels and any number of classes: images are area-resized to `size` pixels a side first. Made for
a CPU: the stem folds 2x2 pixels into channels, so that no convolution runs at full resolution. Its penultimate features
serve Fréchet distances on image sets that have no published feature network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg import storage
from nvg.artifacts.files import write_safetensors
from nvg.errors import DataError

FORMAT = 1  # of the saved file
Batch = Mapping[str, Any]  # {"images": uint8 (N, H, W, C), "labels": (N,)}, as nvg.data.stream.image_batches gives


@dataclass(frozen=True)
class ClassifierConfig:
    """What the network is built from, saved with its weights."""

    num_classes: int
    channels: int = 3  # 1 or 3
    size: int = 32  # pixels a side that the network sees; a multiple of 8
    width: int = 16  # channels after the stem; the features are 4 * width

    @property
    def feature_width(self) -> int:
        """D of the penultimate features."""
        return 4 * self.width

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, data.num_classes={self.num_classes}")
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels={self.channels}: the classifier takes 1 or 3")
        if max(self.num_classes, self.size, self.width) > 2**15 or self.width < 1:  # before memory is taken for it
            raise ValueError(f"no classifier is so large: {self}")
        if self.size < 16 or self.size % 8:
            raise ValueError(f"evaluate.classifier_size={self.size}: a multiple of 8, at least 16")


class Classifier(nn.Module):
    """Space-to-depth stem and five 3x3 convolutions at 1/2, 1/4 and 1/8 of `size`, two of them residual."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *_convolution(4 * config.channels, width))
        self.down1 = nn.Sequential(*_convolution(width, 2 * width, stride=2))
        self.mix1 = nn.Sequential(*_convolution(2 * width, 2 * width))
        self.down2 = nn.Sequential(*_convolution(2 * width, 4 * width, stride=2))
        self.mix2 = nn.Sequential(*_convolution(4 * width, 4 * width))
        self.head = nn.Linear(config.feature_width, config.num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPUs

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features: uint8 (N, H, W, C), or float (N, C, H, W) in [-1, 1] -> (N, 4 * width).

        Raises ValueError when the channels are not the classifier's.
        """
        x = self.down1(self.stem(self._resize(images)))
        x = x + self.mix1(x)
        x = self.down2(x)
        x = x + self.mix2(x)
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits: images as for `features` -> (N, num_classes)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The likeliest class: images as for `features` -> (N,) int64. The module must be in evaluation mode."""
        return self(images).argmax(dim=1)

    def _resize(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        if images.shape[1] != self.config.channels:
            raise ValueError(f"images of {images.shape[1]} channels, this classifier takes {self.config.channels}")
        size = (self.config.size, self.config.size)
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="area")
        return images.contiguous(memory_format=torch.channels_last)


def _convolution(width_in: int, width_out: int, *, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
    ]


# ---- training and measuring ----


def train_classifier(
    batches: Callable[[int], Iterable[Batch]],
    *,
    images_per_epoch: int,
    num_classes: int,
    channels: int,
    size: int = 32,
    epochs: float = 3.0,
    seed: int = 0,
    lr: float = 0.01,
    width: int = 16,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train by AdamW under a one-cycle learning rate, and return the classifier in evaluation mode.

    batches(epoch): shuffled batches of that epoch, about 128 images each. Centre crops serve few epochs better than
    random views: on Fashion-MNIST flips cost a point after two. images_per_epoch: how many images they hold, for the
    learning rate's cycle; epochs may be a fraction. on_step(images of the step, loss): for a progress bar. The result
    is a function of batches and seed on one machine. Raises ValueError when an epoch has no batches or a label is no
    class.
    """
    config = ClassifierConfig(num_classes, channels, size, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    total = max(1, round(epochs * images_per_epoch))
    seen = 0
    model.train()
    for epoch in range(math.ceil(epochs)):
        before = seen
        for batch in batches(epoch):
            images, labels = torch.as_tensor(batch["images"]), torch.as_tensor(batch["labels"]).long()
            if len(labels) < 2:  # batch statistics of one image say nothing
                continue
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise ValueError(f"labels {int(labels.min())} ... {int(labels.max())}: data.num_classes={num_classes}")
            for group in optimizer.param_groups:
                group["lr"] = lr * one_cycle(seen / total)
            logits = model(images.to(device))
            loss = F.cross_entropy(logits, labels.to(device), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seen += len(labels)
            if on_step is not None:
                on_step(len(labels), float(loss.detach()))
            if seen >= total:
                return model.eval()
        if seen == before:
            raise ValueError(f"epoch {epoch} gave no batches of at least 2 images: the classifier cannot be trained")
    return model.eval()


def one_cycle(progress: float) -> float:
    """The learning rate's share of its peak at a progress in [0, 1]: linear up over the first quarter, cosine down."""
    if progress < 0.25:
        return max(0.02, progress / 0.25)
    return max(0.02, 0.5 * (1.0 + math.cos(math.pi * (min(progress, 1.0) - 0.25) / 0.75)))


def accuracy(classifier: Classifier, batches: Iterable[Batch]) -> float:
    """The share of images that the classifier gives their label. Raises ValueError when there are no images."""
    right = total = 0
    device = classifier.head.weight.device
    for batch in batches:
        predicted = classifier.predict(torch.as_tensor(batch["images"]).to(device)).cpu()
        right += int((predicted == torch.as_tensor(batch["labels"])).sum())
        total += len(predicted)
    if total == 0:
        raise ValueError("no images to measure the classifier on")
    return right / total


# ---- files ----


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write one local .safetensors file, the configuration in its metadata."""
    metadata = {"format": str(FORMAT), "kind": "nvg classifier", "config": json.dumps(asdict(classifier.config))}
    with storage.file_writer(str(path)) as file:
        write_safetensors(file, classifier.state_dict(), metadata)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier that `save_classifier` wrote (path or URL), in evaluation mode.

    Raises DataError when the file is no classifier.
    """
    try:
        metadata, tensors = storage.read_safetensors(str(path))
    except ValueError as error:
        raise DataError(str(error)) from None
    if metadata.get("kind") != "nvg classifier" or metadata.get("format") != str(FORMAT):
        raise DataError(f"{path} is no classifier of format {FORMAT}: delete it and evaluate again")
    config = storage.parse_record(ClassifierConfig, metadata.get("config", ""), str(path), DataError)
    classifier = Classifier(config)
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:  # names or shapes
        raise DataError(f"{path} is damaged ({error}): delete it and evaluate again") from None
    return classifier.eval()
