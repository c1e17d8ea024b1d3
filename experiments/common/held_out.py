"""Losses of our generators on held-out images, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.common.data import Tokens
from nvg.autoencoder import GranularityQuantizer
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.training.generator_loss import content_loss, draw_flow, structure_loss

HELD_OUT = 2000  # images
BATCH = 250


@torch.no_grad()
def held_out(
    network: ContentGenerator | StructureGenerator, quantizer: GranularityQuantizer, tokens: Tokens
) -> list[float]:
    """The loss of each stage on held-out images: of content the cross-entropy in nats, of structure the flow's."""
    last, images = quantizer.last_stage, min(HELD_OUT, len(tokens.labels))
    stages: Sequence[int] = range(last + 1) if isinstance(network, ContentGenerator) else range(1, last)
    rng = torch.Generator().manual_seed(0)
    totals = torch.zeros(len(stages))
    for rows in torch.arange(images).split(BATCH):
        sequence, labels = tokens.rows(rows)
        canvases = quantizer.canvases(sequence)
        noise, times = draw_flow(sequence.codes.shape, last, rng)
        for index, stage in enumerate(stages):
            if isinstance(network, ContentGenerator):
                value = content_loss(network, canvases, labels, sequence, [stage])["cross_entropy"]
            else:
                some = times[:, index : index + 1]
                value = structure_loss(network, canvases, labels, sequence.codes, [stage], noise, some)["flow"]
            totals[index] += value * len(rows) / images
    return [round(value, 4) for value in totals.tolist()]
