"""Configurations of generators of any depth, and generators whose every parameter has an effect."""

import torch

from nvg.config import ContentConfig, StructureConfig


def content_config(depth, grid=16, **changes):
    settings = dict(
        depth=depth, grid=grid, code_width=32, codebook_size=4096, num_classes=1000, repa_block=None, repa_width=768
    )
    return ContentConfig(**(settings | changes))


def structure_config(depth, grid=16, **changes):
    return StructureConfig(**(dict(depth=depth, grid=grid, code_width=32, num_classes=1000) | changes))


def awake(model):
    """A model begins as the identity with zero gates: give every parameter a value, so that paths show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
