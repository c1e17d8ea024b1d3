"""Generators of any depth and form, their calls at some stages, and weights whose every parameter has an effect."""

import pytest
import torch

from nvg.autoencoder import Autoencoder
from nvg.config import ContentConfig, SamplerConfig, StructureConfig, TokenizerConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator

FORMS = {  # what a stage is made of: settings of the content, of the structure
    "positions": ({}, {}),
    "position network": ({"position_network": True}, {}),
    "clusters": ({"tokens": "clusters", "position_network": True}, {"canvas_tokens": "clusters"}),
}
NAMES = ["cat", "dog", "owl"]
every_form = pytest.mark.parametrize("form", FORMS)


def content_config(depth, grid=16, form="positions", **changes):
    settings = dict(
        depth=depth, grid=grid, code_width=32, codebook_size=4096, num_classes=1000, repa_block=None, repa_width=768
    )
    return ContentConfig(**(settings | FORMS[form][0] | changes))


def structure_config(depth, grid=16, form="positions", **changes):
    settings = dict(depth=depth, grid=grid, code_width=32, num_classes=1000)
    return StructureConfig(**(settings | FORMS[form][1] | changes))


def awake(model):
    """A model begins as the identity with zero gates: give every parameter a value, so that paths show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def content_at(content, stages, canvases, codes, labels, **inputs):
    """x_hat - x_i and the alignments, a list of each: canvases (N, L, e), one for each of the stages."""
    tables = [content.rotary(codes, stage) for stage in stages]
    return content(canvases, codes, labels, torch.tensor(stages), tables, **inputs)


def structure_at(structure, stages, noisy, times, canvases, codes, labels, **inputs):
    """The velocities, one for each of the stages that are to be generated."""
    tables = [structure.rotary(codes, stage) for stage in stages]
    return structure(noisy, times, canvases, codes, labels, torch.tensor(stages), tables, **inputs)


def sampler_of(form, names=NAMES):
    """A sampler of 16 x 16 pixels on a grid of 4 x 4, with guidance by two passes and three flow steps."""
    torch.manual_seed(0)
    tokenizer = Autoencoder(
        TokenizerConfig(image_size=16, channels=3, patch=2, widths=[16, 16], blocks=1, code_width=32, codebook_size=64)
    )
    content = awake(ContentGenerator(content_config(1, 4, form, codebook_size=64, num_classes=len(names))))
    structure = awake(StructureGenerator(structure_config(2, 4, form, num_classes=len(names))))
    return Sampler(tokenizer, content, structure, SamplerConfig(flow_steps=3), names)
