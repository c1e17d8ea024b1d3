"""Reconstruction figures against plain computations."""

import math

import pytest
import torch
from torch import Tensor

from nvg.autoencoder import Autoencoder
from nvg.config import TokenizerConfig
from nvg.evaluation.reconstruction import (
    ReconstructionFigures,
    code_counts,
    codebook_use,
    mean_squared_error,
    mse_by_stages,
    psnr,
)
from nvg.granularity import GranularitySequence


def some_images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_sequence(count: int, codebook: int = 10, seed: int = 0) -> GranularitySequence:
    generator = torch.Generator().manual_seed(seed)
    content = [torch.randint(codebook, (count, 2**stage), generator=generator) for stage in range(3)]
    return GranularitySequence(torch.arange(4).expand(count, 4), content)


def test_error_and_psnr_are_their_formulas() -> None:
    images, copies = some_images(3), some_images(3, seed=1)
    error = mean_squared_error(images, copies)
    for number in range(3):
        a, b = images[number].flatten().tolist(), copies[number].flatten().tolist()
        plain = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 64
        assert error[number].item() == pytest.approx(plain, rel=1e-9)
        assert psnr(error)[number].item() == pytest.approx(20 * math.log10(2 / math.sqrt(plain)), rel=1e-9)
    assert torch.isfinite(psnr(mean_squared_error(images, images))).all()
    with pytest.raises(ValueError, match="differ"):
        mean_squared_error(images, copies[:2])


def test_codebook_use_counts_every_token_once() -> None:
    sequence = some_sequence(5)
    counts = code_counts(sequence, 10)
    everything = [tokens.flatten().tolist() for tokens in sequence.content]
    use = codebook_use(counts)
    for stage, tokens in enumerate(everything):
        assert counts[stage].tolist() == [tokens.count(code) for code in range(10)]
        assert use.share_by_stage[stage] == pytest.approx(len(set(tokens)) / 10)
    flat = sum(everything, [])
    assert use.share == pytest.approx(len(set(flat)) / 10)
    entropy = -sum(flat.count(c) / len(flat) * math.log(flat.count(c) / len(flat)) for c in set(flat))
    assert use.perplexity == pytest.approx(math.exp(entropy))


def test_perplexity_is_the_number_of_codes_when_all_are_even_and_one_when_there_is_one() -> None:
    assert codebook_use(torch.full((3, 16), 7)).perplexity == pytest.approx(16)
    single = torch.zeros(3, 16, dtype=torch.int64)
    single[:, 4] = 9
    assert codebook_use(single).perplexity == pytest.approx(1)
    assert codebook_use(single).share == pytest.approx(1 / 16)


def test_error_by_stages_asks_for_each_preview() -> None:
    images, sequence = some_images(2), some_sequence(2)

    def decode(given: GranularitySequence, stages: int) -> Tensor:
        assert given is sequence
        return images + 0.1 * stages

    torch.testing.assert_close(
        mse_by_stages(images, sequence, decode), torch.tensor([[0.01, 0.04, 0.09]] * 2).double(), rtol=1e-5, atol=1e-7
    )


def test_a_meter_over_batches_and_workers_is_one_over_all_images() -> None:
    config = TokenizerConfig(image_size=8, channels=1, widths=[16, 16], blocks=1, attention=False, code_width=4)
    config.codebook_size = 32
    torch.manual_seed(0)
    model = Autoencoder(config).eval()
    images = some_images(10)
    sequence = model.encode(images)
    whole, pieces = ReconstructionFigures(), ReconstructionFigures()
    for figures, parts in ((whole, [slice(0, 10)]), (pieces, [slice(0, 4), slice(4, 7), slice(7, 10)])):
        for rows in parts:
            some = sequence[rows]
            errors = mse_by_stages(images[rows], some, model.decode)
            figures.add(errors, code_counts(some, 32)[None], torch.arange(10.0)[rows])
    found, again = (figures.figures(replicates=20) for figures in (whole, pieces))
    error = (images - model.decode(sequence)).square().mean(dim=(1, 2, 3))
    assert whole.images == pieces.images == 10
    mse = found["reconstruction_mse"]
    assert mse.value == pytest.approx(float(error.mean()), rel=1e-5) and mse.low < mse.value < mse.high
    assert found["reconstruction_psnr"].value == pytest.approx(float((10 * (4 / error).log10()).mean()), rel=1e-5)
    assert found["reconstruction_mse_by_stages"][-1] == pytest.approx(mse.value)
    assert len(found["reconstruction_mse_by_stages"]) == config.last_stage + 1
    assert found["reconstruction_lpips"].value == 4.5
    for name in ("reconstruction_mse", "reconstruction_psnr", "reconstruction_lpips"):
        assert again[name].value == pytest.approx(found[name].value)
        assert again[name].high == pytest.approx(found[name].high)
    assert again["codebook_use"].value == found["codebook_use"].value  # pieces are what is resampled: they alone spread
    assert again["codebook_use"].high > again["codebook_use"].value
    assert again["codebook_use_by_stage"] == found["codebook_use_by_stage"]


def test_figures_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="evaluate.reconstructions"):
        ReconstructionFigures().figures(replicates=2)
