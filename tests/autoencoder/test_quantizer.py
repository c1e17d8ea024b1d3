"""The granularity quantizer: the residual formulas, and what training needs of it."""

import pytest
import torch

from nvg.autoencoder import Autoencoder, GranularityQuantizer
from nvg.autoencoder.quantizer import CACHED_DISTANCES, first_least
from nvg.config import TokenizerConfig
from nvg.granularity import assign, cluster_means, structure_codes

CONFIG = TokenizerConfig(image_size=16, channels=3, patch=2, widths=[16, 16], blocks=1, code_width=6, codebook_size=40)


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    quantizer = GranularityQuantizer(CONFIG)
    with torch.no_grad():
        for convolution in quantizer.convolutions:
            convolution.weight.add_(0.1 * torch.randn_like(convolution.weight))
            convolution.bias.add_(0.1 * torch.randn_like(convolution.bias))
    return quantizer


@pytest.fixture
def latents():
    return torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(1))


def plain_quantization(quantizer, latent):
    """The formulas of the method for one latent (L, e), position by position and code by code."""
    codes = structure_codes(latent[None])[0]
    canvas = torch.zeros_like(latent)
    content = []
    for stage in range(quantizer.last_stage + 1):
        labels = codes >> (quantizer.last_stage - stage)
        residual = latent - canvas
        placed = torch.zeros_like(latent)
        tokens = []
        for cluster in range(2**stage):
            mean = residual[labels == cluster].mean(dim=0)
            token = min(range(40), key=lambda code: (quantizer.codebook[code] - mean).square().sum().item())
            tokens.append(token)
            placed[labels == cluster] = quantizer.codebook[token].detach()
        planes = placed.T.reshape(1, 6, 4, 4)
        convolved = quantizer.convolutions[stage](planes).reshape(6, 16).T
        canvas = canvas + 0.5 * placed + 0.5 * convolved
        content.append(tokens)
    return codes, content, canvas.detach()


def test_tokens_and_canvas_are_those_of_the_formulas(quantizer, latents):
    sequence = quantizer.encode(latents)
    final = quantizer.canvases(sequence)[-1]
    for row in range(3):
        codes, content, canvas = plain_quantization(quantizer, latents[row])
        assert torch.equal(sequence.codes[row], codes)
        assert [tokens[row].tolist() for tokens in sequence.content] == content
        torch.testing.assert_close(final[row], canvas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codes", [1, 7, 32, 40, 512])
def test_the_first_least_is_the_lowest_index_of_the_least_number_of_a_row(codes):
    values = torch.randint(0, 5, (30, 2, codes), generator=torch.Generator().manual_seed(codes)).float()
    for row, indices in zip(values.tolist(), first_least(values).tolist(), strict=True):
        assert indices == [numbers.index(min(numbers)) for numbers in row]


def test_many_vectors_have_the_codes_that_they_have_alone(quantizer):
    """More than are looked up at a time."""
    vectors = torch.randn(CACHED_DISTANCES // 40 + 5, 6, generator=torch.Generator().manual_seed(2))
    tokens = quantizer.nearest(vectors)
    rows = [0, 1, 12345, CACHED_DISTANCES // 40 - 1, CACHED_DISTANCES // 40, len(vectors) - 1]
    for row in rows:
        assert tokens[row] == (quantizer.codebook - vectors[row]).square().sum(dim=1).argmin()
        assert quantizer.nearest(vectors[row]) == tokens[row]  # of a single one, (e,)


def test_an_increment_is_phi_of_the_clusters_vectors_at_their_positions(quantizer, latents):
    sequence = quantizer.encode(latents)
    for stage, tokens in enumerate(sequence.content):
        labels = sequence.structure_map(stage)
        placed = assign(quantizer.codebook[tokens], labels)
        assert torch.equal(quantizer.increment(stage, tokens, labels), quantizer.phi(stage, placed))


def test_training_and_encoding_agree(quantizer, latents):
    output = quantizer(latents)
    sequence = quantizer.encode(latents)
    assert torch.equal(output.sequence.flat_content(), sequence.flat_content())
    torch.testing.assert_close(output.canvas, quantizer.canvases(sequence)[-1])
    assert output.residual_means.shape == (3 * 31, 6)
    torch.testing.assert_close(output.residual_means[:3], latents.mean(dim=1))  # stage 0: one cluster


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_a_training_pass_is_one_graph_of_the_eager_values_and_gradients(quantizer, latents, soft):
    torch._dynamo.reset()
    results = []
    for run in (quantizer, torch.compile(quantizer, dynamic=False, fullgraph=True, backend="aot_eager")):
        quantizer.zero_grad()
        z = latents.clone().requires_grad_()
        output = run(z, soft=soft, entropy=soft)
        (output.canvas.square().sum() + output.commitment + output.codebook_loss + output.entropy).backward()
        gradients = [z.grad, *(parameter.grad for parameter in quantizer.parameters())]
        results.append([output.sequence.codes, output.sequence.flat_content(), output.canvas.detach(), *gradients])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_latents_that_are_not_finite_make_a_training_loss_that_is_not_and_no_tokens(quantizer, latents, value):
    """Training looks at its loss, and does not wait for the latents' numbers."""
    latents[1, 3, 2], latents[1, 4, 2] = value, -value
    output = quantizer(latents)
    assert not (output.commitment + output.codebook_loss).isfinite()
    with pytest.raises(ValueError, match="latents hold NaN"):
        quantizer.encode(latents)


def test_losses_are_the_mean_squared_distances_over_the_stages(quantizer, latents):
    output = quantizer(latents)
    canvases = quantizer.canvases(output.sequence)[1:]
    expected = sum((latents - canvas).square().mean() for canvas in canvases) / 5
    torch.testing.assert_close(output.commitment, expected)
    torch.testing.assert_close(output.codebook_loss, expected)


def test_gradients_go_where_the_method_sends_them(quantizer, latents):
    latents.requires_grad_()
    output = quantizer(latents)
    (gradient,) = torch.autograd.grad(output.canvas.sum(), latents, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(latents))  # straight through
    (gradient,) = torch.autograd.grad(output.commitment, latents, retain_graph=True)
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(output.commitment, quantizer.codebook, allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(output.codebook_loss, quantizer.codebook)
    used = torch.zeros(40, dtype=torch.bool)
    used[output.sequence.flat_content().flatten()] = True
    assert torch.equal(gradient.abs().sum(dim=1) > 0, used)


def test_index_backpropagation_reaches_every_code_and_changes_no_value(quantizer, latents):
    hard, soft = quantizer(latents), quantizer(latents, soft=True)
    torch.testing.assert_close(hard.canvas, soft.canvas, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(soft.canvas.square().sum(), quantizer.codebook)
    assert (gradient.abs().sum(dim=1) > 0).all()
    used = hard.sequence.flat_content().unique()
    assert used.numel() < 40  # so that the line above says something


def test_the_entropy_term_is_lowest_for_confident_and_even_use(quantizer, latents):
    from nvg.autoencoder.quantizer import _entropy_term

    even = torch.eye(4)
    uniform = torch.full((4, 4), 0.25)
    one_code = torch.eye(4)[[0, 0, 0, 0]]
    log4 = torch.tensor(4.0).log()
    torch.testing.assert_close(_entropy_term(even), -log4, atol=1e-5, rtol=0)
    torch.testing.assert_close(_entropy_term(uniform), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(_entropy_term(one_code), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert quantizer(latents, entropy=True).entropy != 0 and quantizer(latents).entropy == 0


def test_unused_codes_are_put_on_residuals_and_others_left_alone(quantizer, latents):
    before = quantizer.codebook.detach().clone()
    unused = torch.zeros(40, dtype=torch.bool)
    unused[[3, 7]] = True
    seeds = torch.full((5, 6), 9.0) + torch.arange(5)[:, None]
    assert quantizer.revive(unused, seeds, torch.Generator().manual_seed(0)) == 2
    assert torch.equal(quantizer.codebook[~unused], before[~unused])
    assert (quantizer.codebook[unused] > 8.5).all()


def test_a_seeded_codebook_quantizes_better_than_a_random_one(latents):
    torch.manual_seed(0)
    quantizer = GranularityQuantizer(CONFIG)
    many = torch.randn(64, 16, 6) * 3
    before = quantizer(many).commitment
    quantizer.seed_codebook(many, torch.Generator().manual_seed(0))
    assert quantizer(many).commitment < 0.9 * before


def test_an_n_stage_preview_is_the_decoded_canvas_after_n_stages():
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    sequence = model.encode(images)
    canvases = model.quantizer.canvases(sequence)
    for stages in range(6):
        expected = model.decode_canvas(canvases[stages]).clamp(-1, 1)
        torch.testing.assert_close(model.decode(sequence, stages), expected)
    torch.testing.assert_close(model.decode(sequence), model.decode(sequence, 5))
    with pytest.raises(ValueError, match="stage_count=6"):
        model.decode(sequence, 6)


def test_an_image_has_the_same_sequence_in_every_batch():
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).eval()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    together = model.encode(images)
    for row in range(5):
        alone = model.encode(images[row : row + 1])
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.flat_content()[0], together.flat_content()[row])


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"takes \(3, 16, 16\)"):
        Autoencoder(CONFIG).encode(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(("size", "patch", "widths"), [(32, 1, [16, 32, 32]), (16, 4, [16]), (64, 2, [16, 16, 16, 32])])
def test_encoder_and_decoder_fit_each_other(size, patch, widths):
    config = TokenizerConfig(
        image_size=size, channels=1, patch=patch, widths=widths, blocks=1, code_width=6, codebook_size=8
    )
    model = Autoencoder(config).eval()
    images = torch.zeros(1, 1, size, size)
    latents = model.latents(images)
    assert latents.shape == (1, config.positions, 6)
    assert model.decode_canvas(latents).shape == images.shape


def test_cluster_means_are_what_a_stage_quantizes(quantizer, latents):
    codes = structure_codes(latents)
    tokens = quantizer.tokenize(latents, codes).content[0]
    assert torch.equal(tokens, quantizer.nearest(cluster_means(latents, codes * 0, 1)))
