"""The tokenizer as one module: images <-> granularity sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvg.autoencoder.layers import Decoder, Encoder
from nvg.autoencoder.quantizer import GranularityQuantizer, QuantizerOutput
from nvg.config import TokenizerConfig
from nvg.granularity import GranularitySequence


@dataclass
class AutoencoderOutput:
    """The results of a training pass: the reconstruction (N, C, H, W) in about [-1, 1], and the quantizer's output."""

    reconstruction: Tensor
    quantized: QuantizerOutput


class Autoencoder(nn.Module):
    """Encoder, granularity quantizer, decoder. Images are float (N, C, H, W) in [-1, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = GranularityQuantizer(config)
        self.decoder = Decoder(config)

    def latents(self, images: Tensor) -> Tensor:
        """Z: (N, C, H, W) -> (N, L, e), positions in raster order. Raises ValueError on another image shape."""
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images of shape {tuple(images.shape[1:])}: this tokenizer takes {expected}")
        return self.encoder(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor, *, soft: bool = False, entropy: bool = False) -> AutoencoderOutput:
        """Reconstruct images for training. GranularityQuantizer.forward explains `soft` and `entropy`."""
        latents = self.latents(images)
        with torch.autocast(images.device.type, enabled=False):  # the nearest entry in bfloat16 is often another one
            quantized = self.quantizer(latents.float(), soft=soft, entropy=entropy)
        return AutoencoderOutput(self.decode_canvas(quantized.canvas), quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> GranularitySequence:
        """The granularity sequence of images (N, C, H, W) in [-1, 1]."""
        return self.quantizer.encode(self.latents(images))

    def decode_canvas(self, canvas: Tensor) -> Tensor:
        """Images of canvases: (N, L, e) -> (N, C, H, W), not clamped."""
        return self.decoder(canvas.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid)))

    @torch.no_grad()
    def decode(self, sequence: GranularitySequence, stage_count: int | None = None) -> Tensor:
        """Images of the first `stage_count` stages (all by default): (N, C, H, W) in [-1, 1]."""
        return self.decode_canvas(self.quantizer.canvases(sequence, stage_count)[-1]).clamp(-1.0, 1.0)
