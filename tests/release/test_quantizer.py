"""The granularity quantizer against the released system's, on a grid of 16 and one of 4 positions a side."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from nvg.autoencoder import GranularityQuantizer
from nvg.config import TokenizerConfig
from nvg.released.tokenizer import convert_quantizer
from tests.release import checkpoints
from tests.release.recipe import golden

COMMITMENT, CODEBOOK = 0.25, 1.0  # weights of the released loss, and of TokenizerTrainConfig


@cache
def numbers(grid):
    return golden(f"quantizer_{grid}")


def quantizer_of(grid):
    config = TokenizerConfig(
        image_size=grid, channels=3, widths=[16], codebook_size=64, code_width=32, child_order="merge"
    )
    quantizer = GranularityQuantizer(config)
    quantizer.load_state_dict(convert_quantizer(checkpoints.quantizer(config.last_stage + 1)))
    return quantizer


def latents_of(grid):
    return numbers(grid)["latents"].flatten(2).transpose(1, 2).contiguous()


grids = pytest.mark.parametrize("grid", [16, 4])


@grids
def test_maps_and_tokens_are_the_released_ones(grid):
    sequence = quantizer_of(grid).encode(latents_of(grid))
    assert torch.equal(sequence.flat_content(), numbers(grid)["tokens"].long())
    for stage, tokens in enumerate(sequence.content):
        assert torch.equal(sequence.structure_map(stage), numbers(grid)["maps"][:, stage].long())
        placed = tokens.gather(1, sequence.structure_map(stage))
        assert torch.equal(placed, numbers(grid)["indices"][:, stage].long())


@grids
def test_canvases_and_the_loss_of_each_stage_are_the_released_ones(grid):
    quantizer, latents = quantizer_of(grid), latents_of(grid)
    canvases = torch.stack(quantizer.canvases(quantizer.encode(latents)), dim=1)  # (N, S + 1, L, e)
    stored = numbers(grid)["canvases"]
    torch.testing.assert_close(canvases[: len(stored)], stored, rtol=0, atol=2e-6)
    losses = [(COMMITMENT + CODEBOOK) * F.mse_loss(canvas, latents) for canvas in canvases.unbind(1)[1:]]
    torch.testing.assert_close(torch.stack(losses), numbers(grid)["hard.vq_loss_by_stage"], rtol=1e-5, atol=0)


def trained(grid, soft):
    """The quantizer's output and loss, and the gradients of the released probe: loss + sum(probe * canvas)."""
    quantizer, latents = quantizer_of(grid), latents_of(grid).requires_grad_()
    output = quantizer(latents, soft=soft)
    loss = COMMITMENT * output.commitment + CODEBOOK * output.codebook_loss
    probe = numbers(grid)["probe"].flatten(2).transpose(1, 2)
    (loss + (probe * output.canvas).sum()).backward()
    return quantizer, output.canvas.detach(), loss.detach(), latents.grad


@grids
def test_the_hard_training_pass_has_the_released_values_and_gradients(grid):
    quantizer, canvas, loss, gradient = trained(grid, soft=False)
    stored = numbers(grid)
    close = {"rtol": 0, "atol": 5e-5}
    torch.testing.assert_close(canvas.transpose(1, 2).reshape(stored["latents"].shape), stored["hard.quantized"])
    torch.testing.assert_close(loss[None], stored["hard.vq_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.transpose(1, 2).reshape(stored["latents"].shape), stored["hard.grad.latents"])
    torch.testing.assert_close(quantizer.codebook.grad, stored["hard.grad.codebook"], **close)
    if grid == 16:
        torch.testing.assert_close(quantizer.convolutions[0].weight.grad, stored["hard.grad.phi0.weight"], **close)
        torch.testing.assert_close(quantizer.convolutions[8].bias.grad, stored["hard.grad.phi8.bias"], **close)


@grids
def test_the_soft_pass_has_the_released_values(grid):
    """Its gradients differ on purpose: ours divides by a temperature that follows the latents' scale, and lets the
    reconstruction reach the codebook (docs/method.md, tokenizer)."""
    quantizer, canvas, loss, _ = trained(grid, soft=True)
    stored = numbers(grid)
    found = canvas.transpose(1, 2).reshape(stored["latents"].shape)
    torch.testing.assert_close(found, stored["soft.quantized"], rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(loss[None], stored["soft.vq_loss"], rtol=1e-5, atol=0)
    assert (quantizer.codebook.grad.abs().sum(dim=1) > 0).all()  # every entry learns
