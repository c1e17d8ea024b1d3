"""The generators' training loss: the terms against their formulas, image by image and stage by stage."""

import pytest
import torch
import torch.nn.functional as F

from nvg.autoencoder import GranularityQuantizer
from nvg.config import TokenizerConfig, TrainConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import cluster_means, structure_embedding
from nvg.training.generator_loss import Generators, content_loss, draw_flow, structure_loss
from tests.support.generators import (
    awake,
    content_at,
    content_config,
    every_form,
    structure_at,
    structure_config,
)

TOKENIZER = TokenizerConfig(image_size=16, channels=1, patch=4, widths=[16], blocks=1, code_width=32, codebook_size=50)


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return GranularityQuantizer(TOKENIZER)


@pytest.fixture
def sequence(quantizer):
    return quantizer.encode(torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(0)))


def content_of(form="positions", **changes):
    return awake(ContentGenerator(content_config(changes.pop("depth", 1), 4, form, codebook_size=50, **changes)))


def drawn_loss(generators, sequence, labels, seed, features=None):
    draws = generators.draw(len(labels), torch.Generator().manual_seed(seed))
    return generators(sequence, labels, draws, features)


def means_of_clusters(values, sequence, row, stage):
    """Of one image's positions (L, e), by loops: (2^stage, e)."""
    labels = sequence.structure_map(stage)[row]
    return torch.stack([values[labels == cluster].mean(dim=0) for cluster in range(2**stage)])


@every_form
def test_the_content_loss_is_that_of_the_method_image_by_image_and_stage_by_stage(form, quantizer, sequence):
    content = content_of(form)
    canvases = [canvas.detach() for canvas in quantizer.canvases(sequence)]
    labels, stages = torch.arange(7), [0, 1, 3, 4]
    terms = content_loss(content, canvases, labels, sequence, stages)
    squared, entropy = [], []
    for row in range(7):
        one = slice(row, row + 1)
        for stage in stages:
            canvas = canvases[stage][one]
            (difference,), _ = content_at(content, [stage], [canvas], sequence.codes[one], labels[one])
            target = (canvases[-1][one] - canvas)[0]
            if form == "clusters":
                target, means = means_of_clusters(target, sequence, row, stage), difference[0]
            else:
                means = means_of_clusters(difference[0], sequence, row, stage)
            squared.append((difference[0] - target).square().mean())
            logits = content.log_gain[stage].exp() * content.to_logits(means)
            entropy.append(F.cross_entropy(logits, sequence.content[stage][row]))
    assert set(terms) == {"canvas", "cross_entropy"}
    torch.testing.assert_close(terms["canvas"], torch.stack(squared).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["cross_entropy"], torch.stack(entropy).mean(), rtol=1e-4, atol=1e-5)


@every_form
def test_the_flow_loss_is_that_of_the_method_over_all_channels(form, sequence):
    structure = awake(StructureGenerator(structure_config(2, 4, form)))
    rng = torch.Generator().manual_seed(5)
    canvases, noise = list(torch.randn(6, 7, 16, 32, generator=rng)), torch.randn(7, 16, 4, generator=rng)
    stages, labels, times = [1, 2, 3], torch.arange(7), torch.rand(7, 3, generator=rng)
    seen = []
    handle = structure.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = structure_loss(structure, canvases, labels, sequence.codes, stages, noise, times)["flow"]
    handle.remove()
    bits = structure_embedding(sequence.codes, 4) - 1
    errors = []
    for row in range(7):
        one = slice(row, row + 1)
        for index, stage in enumerate(stages):
            known, time = stage - 1, times[row, index]
            z = time * noise[row] + (1 - time) * bits[row]
            target = noise[row] - bits[row]
            z[:, :known], target[:, :known] = bits[row, :, :known], 0
            torch.testing.assert_close(seen[0][index][row], z)
            assert torch.equal(seen[0][index][row, :, :known], bits[row, :, :known])  # what is known is exactly clean
            point = [z[None]], time[None, None], [canvases[stage][one]]
            (v,) = structure_at(structure, [stage], *point, sequence.codes[one], labels[one])
            errors.append((v[0] - target).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@every_form
def test_one_step_trains_every_parameter_of_both_and_none_of_the_quantizer(form, quantizer, sequence):
    content = content_of(form, repa_block=1, repa_width=5).train()
    structure = awake(StructureGenerator(structure_config(2, 4, form))).train()
    generators = Generators(content, structure, quantizer, TrainConfig(), repa_weight=0.5)
    features = torch.randn(7, 16, 5)
    loss, terms = drawn_loss(generators, sequence, torch.arange(7), 0, features)
    expected = terms["canvas"] + terms["cross_entropy"] + 0.5 * terms["alignment"] + terms["flow"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, parameter in generators.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert quantizer.codebook.grad is None
    assert not any("quantizer" in name for name in generators.state_dict())


@every_form
def test_an_image_counts_at_each_stage_alike(form, quantizer, sequence):
    """A step is the mean of the losses of single stages: 0 ... K of the content, 1 ... K-1 of the flow."""
    content, structure = content_of(form), awake(StructureGenerator(structure_config(2, 4, form)))
    labels, canvases = torch.arange(7), [canvas.detach() for canvas in quantizer.canvases(sequence)]
    generators = Generators(content, structure, quantizer, TrainConfig(class_dropout=0.0))
    _, terms = drawn_loss(generators, sequence, labels, 0)
    single = [content_loss(content, canvases, labels, sequence, [stage]) for stage in range(5)]
    rng = torch.Generator().manual_seed(0)
    torch.rand(7, generator=rng)  # the dropped classes
    noise, times = draw_flow(sequence.codes.shape, 4, rng)
    flows = [
        structure_loss(structure, canvases, labels, sequence.codes, [stage], noise, times[:, stage - 1 : stage])["flow"]
        for stage in (1, 2, 3)
    ]
    expected = {name: torch.stack([one[name] for one in single]).mean() for name in ("canvas", "cross_entropy")}
    torch.testing.assert_close(terms, expected | {"flow": torch.stack(flows).mean()}, rtol=1e-4, atol=1e-5)


def test_an_image_has_one_noise_and_one_dropped_class_for_all_its_stages_and_both_generators(quantizer, sequence):
    content, structure = content_of(), StructureGenerator(structure_config(2, 4))
    seen = {}
    for name, module, labels in (("content", content, 2), ("structure", structure, 4)):
        module.register_forward_pre_hook(
            lambda module, inputs, name=name, labels=labels: seen.__setitem__(name, (inputs[0], inputs[labels]))
        )
    rng = torch.Generator().manual_seed(0)
    generators = Generators(content, structure, quantizer, TrainConfig(class_dropout=0.5))
    generators(sequence, torch.arange(7), generators.draw(7, rng))
    dropped = seen["content"][1]
    assert 0 < int((dropped == 1000).sum()) < 7 and torch.equal(seen["structure"][1], dropped)
    assert torch.equal(dropped[dropped < 1000], torch.arange(7)[dropped < 1000])
    rng = torch.Generator().manual_seed(0)
    torch.rand(7, generator=rng)  # the dropped classes
    noise, times = draw_flow(sequence.codes.shape, 4, rng)
    assert noise.shape == (7, 16, 4) and times.shape == (7, 3) and times.min() > 0 and times.max() < 1
    bits = structure_embedding(sequence.codes, 4) - 1
    for stage, found in zip((1, 2, 3), seen["structure"][0], strict=True):
        z = bits + times[:, stage - 1, None, None] * (noise - bits)
        torch.testing.assert_close(found[..., stage - 1 :], z[..., stage - 1 :])


def test_the_same_generator_state_gives_the_same_loss(quantizer, sequence):
    generators = Generators(content_of(), None, quantizer, TrainConfig(class_dropout=0.5))
    first, second, other = (drawn_loss(generators, sequence, torch.arange(7), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_classes_are_dropped_at_the_given_rate(quantizer, sequence):
    content = content_of()
    seen = []
    content.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2]))
    generators = Generators(content, None, quantizer, TrainConfig(class_dropout=0.3))
    for seed in range(150):
        drawn_loss(generators, sequence, torch.arange(7), seed)
    rate = (torch.cat(seen) == 1000).float().mean()
    assert 0.25 < rate < 0.35


@every_form
def test_alignment_pulls_towards_the_features_of_each_token_and_asks_for_them(form, quantizer, sequence):
    content = content_of(form, depth=2, repa_block=1, repa_width=5).train()
    generators = Generators(content, None, quantizer, TrainConfig(class_dropout=0.0), repa_weight=0.5)
    features, aligned = torch.randn(7, 16, 5, generator=torch.Generator().manual_seed(0)), []
    handle = content.register_forward_hook(lambda module, inputs, output: aligned.extend(output[1]))
    loss, terms = drawn_loss(generators, sequence, torch.arange(7), 0, features)
    handle.remove()
    torch.testing.assert_close(loss, terms["canvas"] + terms["cross_entropy"] + 0.5 * terms["alignment"])
    similar = []
    for stage, found in enumerate(aligned):
        for row in range(7):
            expected = means_of_clusters(features[row], sequence, row, stage) if form == "clusters" else features[row]
            similar.append(F.cosine_similarity(found[row], expected, dim=-1).mean())
    assert len(similar) == 5 * 7
    torch.testing.assert_close(terms["alignment"], -torch.stack(similar).mean())
    with pytest.raises(ValueError, match="repa.weights"):
        drawn_loss(generators, sequence, torch.arange(7), 0)


@every_form
def test_before_the_first_step_the_logits_are_the_quantizers_own_rule(form, quantizer, sequence):
    content = ContentGenerator(content_config(1, 4, form, codebook_size=50))
    structure = StructureGenerator(structure_config(2, 4, form))
    Generators(content, structure, quantizer, TrainConfig()).begin(sequence)
    missing = torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(3))
    canvases = quantizer.canvases(sequence)
    for stage in range(5):
        logits = content.logits(content.of_tokens(missing, sequence.codes, stage), sequence.codes, stage)
        means = cluster_means(missing, sequence.structure_map(stage), 2**stage)
        assert torch.equal(logits.argmax(dim=-1), quantizer.nearest(means))
    (difference,), _ = content_at(content, [2], [canvases[2]], sequence.codes, torch.arange(7))
    assert not difference.any()  # the first estimate is the canvas itself
    for i, canvas in enumerate(canvases[1:5], start=1):
        assert (canvas * content.input_scales[i]).std().item() == pytest.approx(1.0, abs=1e-4)
    assert content.input_scales[0] == 1 and not content.start.any()
