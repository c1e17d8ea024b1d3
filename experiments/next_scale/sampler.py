"""Drawing pictures scale by scale, with the same face as nvg.generator.Sampler.

Guidance rises linearly over the scales from 1 at the first one, as ours does over the stages and as the recipe has it;
top-p is the same at all scales (the recipe's; ours falls). Keys and values of the scales before are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.next_scale.quantizer import ScaleQuantizer, ScaleSequence
from experiments.next_scale.transformer import NextScale
from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.generator.batches import to_pixels
from nvg.generator.guidance import guided
from nvg.generator.noise import CONTENT, draw
from nvg.generator.nucleus import pick
from nvg.generator.schedules import ramp
from nvg.generator.seeds import image_seeds


class ScaleSampler:
    """A tokenizer of scales and its generator, ready to draw by content_guidance, content_temperature and top_p."""

    def __init__(self, tokenizer: Autoencoder, network: NextScale, settings: SamplerConfig) -> None:
        assert isinstance(tokenizer.quantizer, ScaleQuantizer)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.quantizer = tokenizer.quantizer
        self.network = network.eval().requires_grad_(False)
        self.settings = settings

    @torch.inference_mode()
    def generate(self, classes: Sequence[int], *, seed: int = 0, **settings: float) -> np.ndarray:
        """Draw one picture per class index, the first one with `seed`: uint8 (N, H, W, C)."""
        canvas, _ = self.draw(classes, seed, **settings)
        return to_pixels(self.tokenizer.decode_canvas(canvas))

    @torch.inference_mode()
    def draw(self, classes: Sequence[int], seed: int = 0, **settings: Any) -> tuple[Tensor, ScaleSequence]:
        """The final canvases (N, L, e) and tokens of pictures, without the decoder."""
        chosen = replace(self.settings, **settings)
        count, seeds, last = len(classes), image_seeds(seed, len(classes)), len(self.quantizer.scales) - 1
        labels = torch.tensor(list(classes))
        final, temperature, top_p = (
            torch.full((count,), float(value))
            for value in (chosen.content_guidance, chosen.content_temperature, chosen.top_p)
        )
        shape = self.tokenizer.config
        canvas, content = torch.zeros(count, shape.positions, shape.code_width), list[Tensor]()
        with self.network.caching():
            for scale, side in enumerate(self.quantizer.scales):
                seen = self.quantizer.cells(canvas, scale)
                # The pass without class is made at scale 0 too: later scales attend to its keys.
                logits = self._logits(scale, labels, seen, ramp(final, scale, last), chosen.content_guidance != 1)
                uniform = draw(seeds, scale, CONTENT, (side**2,), torch.rand)
                content.append(pick(logits, temperature, top_p, uniform))
                canvas = canvas + self.quantizer.scale_increment(scale, content[-1])
        return canvas, ScaleSequence(content)

    def _logits(self, scale: int, labels: Tensor, seen: Tensor, guidance: Tensor, both: bool) -> Tensor:
        """Guided logits of a scale, (N, n^2, V): guidance (N,); both: whether a pass without class is made at all."""

        def network(labels: Tensor, seen: Tensor) -> Tensor:
            return self.network([seen], labels, scale)[0]

        if not both:
            return network(labels, seen)
        return guided(network, labels, (seen,), guidance, self.network.config.num_classes)
