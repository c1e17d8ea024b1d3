"""conf/smoke.yaml for tests: on drawn images, in an output of their own, tracked in a database beside the images."""

from pathlib import Path

import torch

from nvg import config as configuration
from nvg.artifacts.models import save_tokenizer
from nvg.autoencoder import Autoencoder

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "conf" / "smoke.yaml"


def smoke(output, images, *overrides):
    """conf/smoke.yaml on images that were drawn for the test; the runs of an output are an experiment.

    The database is beside the images, one for all tests: making one takes MLflow seconds.
    """
    return configuration.load(SMOKE, [*settings(output, images), *overrides])


def settings(output, images):
    name = "-".join(Path(output).parts[-2:])
    tracking = [f"tracking.uri={database(images)}", f"tracking.experiment={name}"]
    return [f"output={output}", f"data.train={images}", *tracking]


def database(images):
    return f"sqlite:///{Path(images).parent}/mlflow.db"


def untrained_tokenizer(config, folder, seed, classes=("a", "b", "c")):
    """Write the folder of a tokenizer that was not trained; returns its path."""
    torch.manual_seed(seed)
    weights = Autoencoder(config.tokenizer).state_dict()
    save_tokenizer(str(folder), weights, config, class_names=list(classes), metadata={})
    return str(folder)
