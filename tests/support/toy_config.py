"""The smallest configuration that builds every model, and a sampler of it."""

import torch

from nvg import config as configuration
from nvg.artifacts.models import export_sampler
from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator

CONFIG = {
    "name": "toy",
    "output": "unused",
    "data": {"source": "folder", "train": "unused", "image_size": 8, "channels": 1, "num_classes": 2},
    "tokenizer": {"widths": [16, 16], "blocks": 1, "attention": False, "code_width": 4, "codebook_size": 16},
    "content": {"depth": 1},
    "structure": {"depth": 2},
    "sampler": {"flow_steps": 1},  # a training's preview draws 25 otherwise, which takes longer than the training
}


def toy_config(**sections):
    """A fresh one, with sections updated: toy_config(train={"lr": 1e-3})."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values} if isinstance(values, dict) else values
    return configuration.from_dict(content)


def toy_sampler(config, class_names):
    """An untrained sampler of a configuration, of one flow step; the same each time."""
    torch.manual_seed(0)
    networks = (
        Autoencoder(config.tokenizer).eval(),
        ContentGenerator(config.content).eval(),
        StructureGenerator(config.structure).eval(),
    )
    return Sampler(*networks, SamplerConfig(flow_steps=1), class_names)


def write_toy_sampler(folder, config, class_names):
    """The folder of that sampler; returns its path."""
    sampler = toy_sampler(config, class_names)
    export_sampler(
        str(folder),
        tokenizer=sampler.tokenizer.state_dict(),
        parts={"content": sampler.content.state_dict(), "structure": sampler.structure.state_dict()},
        config=config,
        class_names=list(class_names),
        metadata={},
    )
    return str(folder)
