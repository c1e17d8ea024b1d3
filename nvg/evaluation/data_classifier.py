"""The classifier of a data set as a job: trained once on the training images, and kept in a file named by them."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvg import config as configuration
from nvg import storage
from nvg.cluster import device_of, set_threads
from nvg.config import Config
from nvg.console import progress
from nvg.data import ImageSource, image_batches, open_source
from nvg.evaluation.classifier import save_classifier, train_classifier

BATCH = 128


def classifier_file(config: Config, source: ImageSource) -> str:
    """The file of a data set's classifier, `<output>/classifier-<key>.safetensors`. source: the training images."""
    settings, data = config.evaluate, copy.copy(config.data)
    data.train, data.test, data.views = "", None, 1  # the fingerprint tells the images, wherever they are
    training = [settings.classifier_epochs, settings.classifier_size, settings.seed]
    key = configuration.digest("classifier", source.fingerprint(), source.class_names, data, *training)
    return storage.join(config.output, f"classifier-{key}.safetensors")


def train_data_classifier(config: Config, path: str) -> None:
    """Train the data set's classifier into a file (path or URL), in a Ray task."""
    set_threads(config.cluster)
    settings, data = config.evaluate, config.data
    source = open_source(data, "train")
    images = source.count()
    batch_size = min(BATCH, max(2, images // 4))
    bar = progress(round(images * settings.classifier_epochs), "classifier", "image")

    def batches(epoch: int) -> Iterator[dict[str, Any]]:
        stream = image_batches(
            config, source, epoch=epoch, rank=0, world=1, batch_size=batch_size, seed=settings.seed, random_views=False
        )
        # No more than the epoch holds: for one batch beyond it the stream would begin to read the images again.
        return itertools.islice(stream, max(1, images // batch_size))

    classifier = train_classifier(
        batches,
        images_per_epoch=images,
        num_classes=data.num_classes,
        channels=data.channels,
        size=settings.classifier_size,
        epochs=settings.classifier_epochs,
        seed=settings.seed,
        device=device_of(config.cluster),
        on_step=lambda images, loss: bar.update(images),
    )
    bar.close()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "classifier.safetensors"
        save_classifier(classifier, file)
        storage.write_bytes(path, file.read_bytes())
