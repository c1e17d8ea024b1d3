"""Trainings of both generators on drawn images, and what two of them must have in common."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from nvg import storage
from nvg.training.checkpoint import list_checkpoints
from tests.support.smoke import database, smoke


def train_on_ray(output, images, tokenizer, tokens, *overrides):
    """Train both generators as the pipeline's step does; returns the figures and the folder."""
    from pipelines.train import train_generators

    config = smoke(output, images, *overrides)
    return train_generators(config, tokenizer, tokens, f"{output}/generators"), output / "generators"


def train_in_process(output, images, tokenizer, tokens, *overrides):
    """As `train_on_ray`, in this process and without Ray Train: quicker, where that is not what is tested."""
    from nvg.training import jobs
    from nvg.training.loop import Place

    config = smoke(output, images, *overrides)
    folder = f"{output}/generators"
    return jobs.train_generators(config, Place(), tokenizer=tokenizer, tokens=tokens, folder=folder), Path(folder)


def weights(folder):
    """The weights of both generators in a sampler folder, by name."""
    return {
        f"{part}.{name}": value
        for part in ("content", "structure")
        for name, value in load_file(Path(folder) / f"{part}.safetensors").items()
    }


def assert_bit_equal(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def curve(output, images, name="loss"):
    """The points of a curve of the only run of an output: [(step, value)]."""
    from mlflow import MlflowClient

    client = MlflowClient(database(images))
    experiment = client.get_experiment_by_name("-".join(Path(output).parts[-2:]))
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def newest_checkpoint(folder, accept):
    """The step of the newest checkpoint of both generators whose metadata `accept` takes, None where there is none."""
    for path in reversed(list_checkpoints(f"{folder}/checkpoints-content-structure")):
        metadata = storage.read_json(f"{path}/metadata.json")
        if accept(metadata):
            return metadata["step"]
    return None
