"""experiments/next_scale: its quantizer, mask, cache and guidance against slow or plain forms, and the whole once."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import randomized
from experiments.next_scale import __main__ as experiment
from experiments.next_scale import bench, tasks
from experiments.next_scale.bench import HEAD, TOKENIZER_HEAD, Bench
from experiments.next_scale.models import (
    COUNTED,
    GRANULARITY,
    MODELS,
    OF_SCALES,
    REFERENCE,
    SCALES,
    Tokenizer,
    sampling_flops,
    steps_at_equal_flops,
    training_flops,
)
from experiments.next_scale.quantizer import ScaleQuantizer, ScaleSequence
from experiments.next_scale.sampler import ScaleSampler
from experiments.next_scale.tasks import batches_of, cpu_seconds, fit
from experiments.next_scale.transformer import NextScale
from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.describe import flops
from nvg.generator.noise import CONTENT, draw
from nvg.generator.nucleus import pick
from nvg.granularity import structure_codes
from tests.support.pictures import write_idx
from tests.support.threads import one_thread
from tests.support.toy_config import toy_config

__all__ = ["one_thread"]

GRID = 4
SMALL = (1, 2, 3, 4)  # three cells do not divide four positions
IMAGES, CLASSES = 3, 2
ROOT = experiment.HERE


@pytest.fixture(scope="module")
def config():
    return toy_config(tokenizer={"widths": [16, 16]}, content={"depth": 2}, train={"steps": 4, "batch_size": 4})


@pytest.fixture(scope="module")
def tokenizer(config):
    torch.manual_seed(0)
    tokenizer = Autoencoder(config.tokenizer)
    tokenizer.quantizer = ScaleQuantizer(config.tokenizer, SMALL)
    for convolution in tokenizer.quantizer.convolutions:  # not the identity any more
        torch.nn.init.normal_(convolution.weight, std=0.2)
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def quantizer(tokenizer):
    return tokenizer.quantizer


@pytest.fixture(scope="module")
def latents(config):
    return torch.randn(IMAGES, GRID**2, config.tokenizer.code_width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(config):
    torch.manual_seed(2)
    return randomized(NextScale(config.content, SMALL))


def cubic(x):
    """Keys' kernel with a = -3/4, as torch's bicubic interpolation has it."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_up(values, grid):
    """Bicubic interpolation of (n, n, e) to (grid, grid, e), position by position; beyond the edge is the edge."""
    side = len(values)
    result = torch.zeros(grid, grid, values.shape[2])
    for y, x in itertools.product(range(grid), repeat=2):
        row, column = ((place + 0.5) * side / grid - 0.5 for place in (y, x))
        for i, j in itertools.product(range(-1, 3), repeat=2):
            near_row, near_column = math.floor(row) + i, math.floor(column) + j
            weight = cubic(row - near_row) * cubic(column - near_column)
            result[y, x] += weight * values[min(max(near_row, 0), side - 1), min(max(near_column, 0), side - 1)]
    return result


def slow_quantize(quantizer, latent):
    """Tokens and canvases of one latent (grid, grid, e), cell by cell and entry by entry."""
    grid, canvas = len(latent), torch.zeros_like(latent)
    content, canvases = [], []
    for scale, side in enumerate(quantizer.scales):
        tokens = torch.zeros(side, side, dtype=torch.int64)
        for i, j in itertools.product(range(side), repeat=2):
            rows, columns = (slice(k * grid // side, math.ceil((k + 1) * grid / side)) for k in (i, j))
            mean = (latent - canvas)[rows, columns].flatten(0, 1).mean(dim=0)
            tokens[i, j] = min(
                range(len(quantizer.codebook)), key=lambda v: float((quantizer.codebook[v] - mean).norm())
            )
        vectors = slow_up(quantizer.codebook[tokens], grid) if side < grid else quantizer.codebook[tokens]
        convolution = quantizer.convolutions[scale](vectors.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        canvas = canvas + 0.5 * vectors + 0.5 * convolution
        content.append(tokens.flatten())
        canvases.append(canvas.flatten(0, 1))
    return content, canvases


def test_the_quantizer_is_the_slow_one(quantizer, latents):
    output, sequence = quantizer(latents), quantizer.encode(latents)
    canvases = quantizer.canvases(sequence)
    commitment = []
    for image, latent in enumerate(latents):
        content, expected = slow_quantize(quantizer, latent.unflatten(0, (GRID, GRID)))
        for scale in range(len(SMALL)):
            assert sequence.content[scale][image].equal(content[scale])
            torch.testing.assert_close(canvases[scale + 1][image], expected[scale], atol=1e-5, rtol=1e-5)
        commitment += [(latent - one).square().mean() for one in expected]
    assert output.sequence.flat_content().equal(sequence.flat_content())
    torch.testing.assert_close(output.canvas, canvases[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.commitment, torch.stack(commitment).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.codebook_loss, output.commitment)


def test_the_quantizers_gradients_reach_the_encoder_and_the_entries_that_were_used(config, latents):
    torch.manual_seed(0)
    quantizer, given = ScaleQuantizer(config.tokenizer, SMALL), latents.clone().requires_grad_(True)
    output = quantizer(given)
    (output.canvas.sum() + output.codebook_loss).backward()
    torch.testing.assert_close(given.grad, torch.ones_like(given))  # straight through
    used = set(output.sequence.flat_content().unique().tolist())
    assert {row for row, gradient in enumerate(quantizer.codebook.grad) if gradient.any()} == used


def test_inputs_are_the_canvas_before_each_scale_over_its_cells(quantizer, latents):
    sequence = quantizer.encode(latents)
    canvases, inputs = quantizer.canvases(sequence), quantizer.inputs(sequence)
    assert [one.shape[1] for one in inputs] == [side**2 for side in SMALL] and not inputs[0].any()
    torch.testing.assert_close(inputs[-1], canvases[-2])  # the last scale has a cell a position
    torch.testing.assert_close(inputs[1].mean(dim=1), canvases[1].mean(dim=1))
    assert ScaleSequence.from_flat(sequence.flat_content(), SMALL).content[2].equal(sequence.content[2])


@pytest.mark.parametrize("scales", [(1, 2, 3), (1, 3, 2, 4), (1, 1, 4)])
def test_scales_that_do_not_rise_to_the_grid_are_refused(config, scales):
    with pytest.raises(ValueError, match="must rise to the latent grid, which is 4"):
        ScaleQuantizer(config.tokenizer, scales)


def test_losses_that_it_does_not_have_are_refused(quantizer, latents):
    for choice in ({"soft": True}, {"entropy": True}):
        with pytest.raises(ValueError, match="index_backprop_epochs=0 and entropy_weight=0"):
            quantizer(latents, **choice)


def test_a_later_scale_changes_no_earlier_logits_and_its_own(network, quantizer, latents):
    inputs, labels = quantizer.inputs(quantizer.encode(latents)), torch.tensor([0, 1, CLASSES])
    with torch.no_grad():
        before = network(inputs, labels)
        for scale in range(1, len(SMALL)):
            changed = [one + torch.randn_like(one) if number == scale else one for number, one in enumerate(inputs)]
            after = network(changed, labels)
            same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            assert same == [number < scale for number in range(len(SMALL))]


def test_attention_by_scales_is_attention_under_the_block_causal_mask(network):
    tokens = sum(side**2 for side in SMALL)
    q, k, v = torch.randn(3, IMAGES, 2, tokens, 64)
    scale = torch.repeat_interleave(torch.arange(len(SMALL)), torch.tensor([side**2 for side in SMALL]))
    lengths = [side**2 for side in SMALL]
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=scale[:, None] >= scale)
    torch.testing.assert_close(network.blocks[0].attend(q, k, v, lengths, lengths), masked)


def test_a_pass_a_scale_with_the_cache_is_the_pass_of_all_scales(network, quantizer, latents):
    inputs, labels = quantizer.inputs(quantizer.encode(latents)), torch.tensor([0, 1, CLASSES])
    with torch.no_grad():
        expected = network(inputs, labels)
        with network.caching():
            found = [network([one], labels, scale)[0] for scale, one in enumerate(inputs)]
        again = network(inputs, labels)  # the cache is gone
    for one, two, three in zip(found, expected, again, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        assert two.equal(three)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_drawn_token_is_the_one_of_guided_uncached_logits(tokenizer, network, quantizer, guidance):
    labels, seeds = torch.tensor([1, 0, 1]), [7, 8, 9]
    sampler = ScaleSampler(tokenizer, network, SamplerConfig(content_guidance=guidance, top_p=0.9))
    canvas, sequence = sampler.draw(labels.tolist(), seed=7, content_temperature=0.8)
    inputs, last = quantizer.inputs(sequence), len(SMALL) - 1
    with torch.no_grad():
        conditional, unconditional = network(inputs, labels), network(inputs, torch.full_like(labels, CLASSES))
    for scale, side in enumerate(SMALL):
        g = 1 + (guidance - 1) * scale / last
        logits = unconditional[scale] + g * (conditional[scale] - unconditional[scale])
        uniform = draw(seeds, scale, CONTENT, (side**2,), torch.rand)
        expected = pick(logits, torch.full((3,), 0.8), torch.full((3,), 0.9), uniform)
        assert sequence.content[scale].equal(expected)
    torch.testing.assert_close(canvas, quantizer.canvases(sequence)[-1])
    pictures = sampler.generate(labels.tolist(), seed=7, content_temperature=0.8)
    assert pictures.shape == (3, 8, 8, 1) and pictures.dtype == np.uint8


def test_a_picture_depends_on_its_seed_and_class_and_not_on_its_place(tokenizer, network):
    sampler = ScaleSampler(tokenizer, network, SamplerConfig())
    both, alone = sampler.draw([0, 1], seed=3)[1].flat_content(), sampler.draw([1], seed=4)[1].flat_content()
    assert both[1:].equal(alone) and not both[:1].equal(sampler.draw([0], seed=4)[1].flat_content())


def test_keys_of_the_pass_without_class_are_kept_from_the_first_scale_on(tokenizer, network):
    """Guidance is 1 at scale 0, and still both passes are made there: 2 N tokens go through at every scale."""
    sampler = ScaleSampler(tokenizer, network, SamplerConfig(content_guidance=3.0))
    seen = []
    handle = network.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:2]))
    sampler.draw([0, 1])
    handle.remove()
    assert seen == [(4, side**2) for side in SMALL]


def test_bits_count_the_structures_that_there_are():
    small = toy_config(data={"image_size": 4}, tokenizer={"codebook_size": 2})
    latents = torch.randn(1000, small.tokenizer.positions, 3, generator=torch.Generator().manual_seed(0))
    assert small.tokenizer.positions == 4
    found = structure_codes(latents).unique(dim=0)  # a first half of two out of four, the other one follows
    assert len(found) == 3 and GRANULARITY.bits(small) == pytest.approx(7 + math.log2(3))


def test_the_token_budgets_are_those_of_the_readme():
    config = configuration.load(ROOT / "fashion_8x8.yaml", [])
    assert (GRANULARITY.tokens(config), OF_SCALES.tokens(config)) == (127, 130)


# ---- equal compute ----


@pytest.mark.parametrize("data", ["fashion_8x8", "emoji_8x8"])
def test_parameters_are_equal_within_three_percent(data):
    config = configuration.load(ROOT / f"{data}.yaml", [])
    sizes = {name: model.size(config) for name, model in MODELS.items()}
    assert sizes["next-scale"] == pytest.approx(sizes["clusters"], rel=0.03)
    assert sizes["positions"] == pytest.approx(sizes["clusters"], rel=0.03)


def by_hand(config, images):
    """Operations of a forward pass of the next-scale transformer: matrix products of blocks, embedding and logits."""
    width, entries = 64 * config.content.depth, config.content.codebook_size
    code_width, tokens = config.content.code_width, sum(side**2 for side in SCALES)
    ends = list(itertools.accumulate(side**2 for side in SCALES))
    attention = sum(2 * 2 * width * side**2 * end for side, end in zip(SCALES, ends, strict=True))
    block = tokens * 2 * 12 * width**2 + len(SCALES) * 2 * 3 * width**2 + attention
    embedding = (tokens - 1) * 2 * (code_width * width + code_width * 128 + 128 * width)
    return images * (
        config.content.depth * block + embedding + len(SCALES) * 2 * 2 * width**2 + tokens * 2 * width * entries
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The smallest configuration on 8x8 latents."""
    folder = tmp_path_factory.mktemp("next_scale")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 24), ("t10k", 12)):
        small = rng.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        write_idx(folder, small.repeat(4, axis=1).repeat(4, axis=2), [n % 2 for n in range(count)], prefix)
    settings = {
        "data.train": folder / "train-images-idx3-ubyte.gz",
        "data.test": folder / "t10k-images-idx3-ubyte.gz",
        **{"data.image_size": 16, "data.num_classes": 2, "data.class_names": "[cat,dog]", "output": folder / "out"},
        **{"tokenizer.widths": "[16]", "tokenizer.code_width": 4, "tokenizer.codebook_size": 16},
        **{"tokenizer_train.steps": 3, "tokenizer_train.batch_size": 4, "tokenizer_train.warmup_steps": 1},
        **{"content.depth": 1, "train.batch_size": 4, "train.warmup_steps": 1, "evaluate.classifier_size": 16},
    }
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def tiny(whole):
    return configuration.load(ROOT / "fashion_8x8.yaml", whole)


def test_operations_of_drawing_with_the_cache_are_those_of_one_pass_of_all_scales(tiny):
    """Twice with guidance, and the convolutions of the canvas."""
    tokenizer, model = OF_SCALES.build(tiny), MODELS["next-scale"]
    sampler = model.sampler(tiny, model.networks(tiny), tokenizer, ["cat", "dog"])
    classes, width = [0, 1, 0, 1], tiny.tokenizer.code_width
    canvas = len(SCALES) * 2 * 9 * width**2 * tiny.tokenizer.positions
    for guidance, passes in ((1.0, 1), (3.0, 2)):
        counted = sampling_flops(model, sampler, classes, {"content_guidance": guidance})
        assert counted == passes * by_hand(tiny, 1) + canvas
    network, labels = model.networks(tiny)["next_scale"], torch.zeros(2, dtype=torch.int64)
    inputs = [torch.zeros(2, side**2, width) for side in SCALES]
    assert flops(lambda: network(inputs, labels)) == by_hand(tiny, 2)


def test_trainings_take_as_many_operations_as_the_references(tiny):
    costs = {name: training_flops(model, tiny) for name, model in MODELS.items()}
    for name, cost in costs.items():
        steps = steps_at_equal_flops(costs, name, 1000)
        assert abs(steps * cost - 1000 * costs[REFERENCE]) <= cost / 2
    assert steps_at_equal_flops(costs, REFERENCE, 1000) == 1000
    assert costs["next-scale"] < costs["clusters"] < costs["positions"]
    forward = by_hand(tiny, COUNTED) / COUNTED
    assert 2.9 * forward < costs["next-scale"] < 3.1 * forward  # backward is two forward passes


@pytest.mark.parametrize(("data", "least", "most"), [("fashion_8x8", 1.02, 1.04), ("emoji_8x8", 0.96, 0.98)])
def test_with_one_pass_of_structure_clusters_draw_by_the_operations_of_next_scale(data, least, most):
    """The README's figures: 3% more on Fashion-MNIST, 3% fewer on emoji."""
    config, costs = configuration.load(ROOT / f"{data}.yaml", []), []
    for model in (MODELS["clusters"], MODELS["next-scale"]):
        *_, settings = model.drawings.values()
        names = [str(label) for label in range(config.data.num_classes)]
        sampler = model.sampler(config, model.networks(config), model.tokenizer.build(config), names)
        costs.append(sampling_flops(model, sampler, [0, 1, 2, 3], {"content_guidance": 3.5, **settings}))
    assert least < costs[0] / costs[1] < most


# ---- the whole ----


@pytest.mark.parametrize("kind", [GRANULARITY, OF_SCALES], ids=lambda kind: kind.name)
def test_an_interrupted_training_goes_on_to_the_same_weights(tiny, tmp_path, monkeypatch, kind: Tokenizer):
    monkeypatch.setattr(tasks, "CHECKPOINT_EVERY", 1)
    images = torch.randint(256, (8, 16, 16, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stream, section = batches_of({"images": images}, 4, 0), tiny.tokenizer_train

    def stopped(step):
        return itertools.chain(itertools.islice(stream(step), 2), (1 / 0 for _ in range(1)))

    def trained(stream, folder):
        return fit(kind.task(tiny, stream, 4), tiny, section, 4, folder)["tokenizer"]

    whole = trained(stream, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        trained(stopped, tmp_path / "parts")
    before = cpu_seconds(tmp_path / "parts")
    parts = trained(stream, tmp_path / "parts")
    assert all(value.equal(parts[name]) for name, value in whole.items())
    assert 0 < before < cpu_seconds(tmp_path / "parts")


def table(text):
    return [text_line.strip("| ").split(" | ") for text_line in text.splitlines() if text_line.startswith("|")]


@pytest.mark.slow  # it runs twice: 20 s of a core
def test_the_whole_experiment_runs_and_keeps_what_is_done(whole, tiny, capsys, monkeypatch):
    small = {"RATES": (0.5, 1.0), "AT_ONCE": 4, "GRIDS": dict.fromkeys(MODELS, {"content_guidance": (2.0,)})}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)
    arguments = ["fashion_8x8", *whole, "--seeds", "0", "--steps", "4", "--samples", "20"]
    experiment.main(arguments)
    rows = table(capsys.readouterr().out)
    tokenizers, models = rows[2:4], rows[6:]
    assert rows[0] == TOKENIZER_HEAD and rows[4] == HEAD
    assert [row[:2] for row in tokenizers] == [["granularity", "127"], ["scales", "130"]]
    assert [row[0] for row in models] == [*MODELS, "clusters, one pass of structure"]
    assert all(len(row) == len(HEAD) for row in models)
    steps, total = ([float(row[HEAD.index(name)]) for row in models] for name in ("steps", "training TFLOP"))
    assert steps[1] == 4 and steps[0] > steps[2] > 4 and max(total) <= 1.2 * min(total)
    files = {path.name for path in Bench.open(tiny, 4, 20).work.iterdir()}
    assert {"table.md", "tokenizer-scales.safetensors", "positions-4-rate.json"} <= files
    assert not [name for name in files if name.endswith(".training")]
    experiment.main(arguments)
    again = capsys.readouterr().out
    assert table(again) == rows and "steps in" not in again  # nothing was trained
    with pytest.raises(SystemExit, match="holds results of other settings"):
        experiment.main([*arguments[:2], "train.lr=1", *arguments[2:]])
