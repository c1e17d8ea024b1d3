"""The tokenizer's training loss (docs/method.md, tokenizer), as a function of (autoencoder, batch)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.autoencoder import Autoencoder, AutoencoderOutput
from nvg.config import TokenizerTrainConfig


def tokenizer_loss(
    autoencoder: nn.Module,
    images: Tensor,
    config: TokenizerTrainConfig,
    *,
    warm_up: bool,
    lpips: nn.Module | None = None,
) -> tuple[Tensor, dict[str, Tensor], AutoencoderOutput]:
    """l1 + l2 + LPIPS + commitment + codebook + entropy; the task adds the adversarial term.

    autoencoder: an Autoencoder, possibly wrapped for data parallelism. images: float (N, C, H, W) in [-1, 1].
    warm_up: train every entry of the codebook through a soft assignment (index backpropagation), the first epoch.
    """
    output: AutoencoderOutput = autoencoder(images, soft=warm_up, entropy=config.entropy_weight > 0)
    reconstruction = output.reconstruction.float()
    terms = {
        "l1": F.l1_loss(reconstruction, images),
        "l2": F.mse_loss(reconstruction, images),
        "commitment": output.quantized.commitment,
        "codebook": output.quantized.codebook_loss,
    }
    loss = (
        config.l1_weight * terms["l1"]
        + config.l2_weight * terms["l2"]
        + config.commitment_weight * terms["commitment"]
        + config.codebook_weight * terms["codebook"]
    )
    if config.entropy_weight > 0:
        terms["entropy"] = output.quantized.entropy
        loss = loss + config.entropy_weight * terms["entropy"]
    if lpips is not None:
        terms["lpips"] = lpips(reconstruction, images).mean()
        loss = loss + config.lpips_weight * terms["lpips"]
    return loss, terms, output


def entry_counts(output: AutoencoderOutput, codebook_size: int) -> Tensor:
    """How often a batch uses each entry of the codebook: (V,) int64."""
    return torch.bincount(output.quantized.sequence.flat_content().flatten(), minlength=codebook_size)


def seed_codebook(autoencoder: Autoencoder, images: Tensor, rng: torch.Generator) -> None:
    """Put the codebook's entries onto residuals of a batch, before the first step."""
    with torch.no_grad():
        autoencoder.quantizer.seed_codebook(autoencoder.latents(images), rng)
