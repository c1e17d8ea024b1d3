"""The generators' training loss: stage draws, and the terms against their formulas, image by image."""

import pytest
import torch
import torch.nn.functional as F

from nvg.autoencoder import GranularityQuantizer
from nvg.config import TokenizerConfig, TrainConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import structure_embedding
from nvg.training.generator_loss import Generators, content_loss, draw_flow, draw_stages, structure_loss
from tests.support.generators import awake, content_config, structure_config

TOKENIZER = TokenizerConfig(image_size=16, channels=1, patch=4, widths=[16], blocks=1, code_width=32, codebook_size=50)


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return GranularityQuantizer(TOKENIZER)


@pytest.fixture
def sequence(quantizer):
    return quantizer.encode(torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(0)))


def test_stages_are_drawn_equally_often():
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(9, dtype=torch.int64)
    for _ in range(200):
        counts = draw_stages(20, 1, 7, rng).bincount(minlength=9)
        assert counts[0] == counts[8] == 0 and counts[1:8].min() >= 2 and counts[1:8].max() <= 3
        total += counts
    assert total[1:8].min() > 0.9 * total[1:8].max()


def test_the_content_loss_is_that_of_the_method_image_by_image(quantizer, sequence):
    content = awake(ContentGenerator(content_config(1, 4, codebook_size=50)))
    canvases = torch.stack(quantizer.canvases(sequence)).detach()
    stages = torch.tensor([0, 1, 2, 3, 4, 2, 0])
    labels = torch.arange(7)
    canvas = canvases[stages, torch.arange(7)]
    terms = content_loss(content, canvas, canvases[-1], labels, stages, sequence, None)
    squared, entropy = [], []
    for row, stage in enumerate(stages.tolist()):
        one = slice(row, row + 1)
        estimate, _ = content(canvas[one], labels[one], stages[one], content.rotary(sequence.codes[one], stages[one]))
        squared.append((estimate - canvases[-1][one]).square().mean())
        difference = (estimate - canvas[one])[0]
        s_i = sequence.structure_map(stage)[row]
        per_cluster = [
            F.cross_entropy(
                content.log_gain[stage].exp() * content.to_logits(difference[s_i == cluster].mean(dim=0)),
                sequence.content[stage][row, cluster],
            )
            for cluster in range(2**stage)
        ]
        entropy.append(torch.stack(per_cluster).mean())
    torch.testing.assert_close(terms["canvas"], torch.stack(squared).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["cross_entropy"], torch.stack(entropy).mean(), rtol=1e-4, atol=1e-5)


def test_the_flow_loss_is_that_of_the_method_over_all_channels(sequence):
    structure = awake(StructureGenerator(structure_config(2, 4)))
    rng = torch.Generator().manual_seed(5)
    canvas, noise = torch.randn(7, 16, 32, generator=rng), torch.randn(7, 16, 4, generator=rng)
    stage, labels, time = torch.tensor([1, 2, 3, 1, 2, 3, 2]), torch.arange(7), torch.rand(7, generator=rng)
    seen = []
    handle = structure.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = structure_loss(structure, canvas, labels, stage, sequence.codes, noise, time)["flow"]
    handle.remove()
    bits = structure_embedding(sequence.codes, 4) - 1
    total = 0.0
    for row in range(7):
        known, one = int(stage[row]) - 1, slice(row, row + 1)
        z = time[row] * noise[row] + (1 - time[row]) * bits[row]
        target = noise[row] - bits[row]
        z[:, :known], target[:, :known] = bits[row, :, :known], 0
        torch.testing.assert_close(seen[0][row], z)
        assert torch.equal(seen[0][row, :, :known], bits[row, :, :known])  # what is known is exactly clean
        table = structure.rotary(sequence.codes[one], stage[one])
        v = structure(z[None], time[one], canvas[one], labels[one], stage[one], table)[0]
        total += (v - target).square().mean() / 7
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)


def test_one_step_trains_every_parameter_of_both_and_none_of_the_quantizer(quantizer, sequence):
    content, structure = (
        ContentGenerator(content_config(1, 4, codebook_size=50)),
        StructureGenerator(structure_config(2, 4)),
    )
    generators = Generators(awake(content).train(), awake(structure).train(), quantizer, TrainConfig())
    loss, terms = generators(sequence, torch.arange(7), torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, terms["canvas"] + terms["cross_entropy"] + terms["flow"])
    loss.backward()
    for name, parameter in generators.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert quantizer.codebook.grad is None
    assert not any("quantizer" in name for name in generators.state_dict())


def test_the_same_generator_state_gives_the_same_loss(quantizer, sequence):
    generators = Generators(
        awake(ContentGenerator(content_config(1, 4, codebook_size=50))), None, quantizer, TrainConfig()
    )
    first, second, other = (
        generators(sequence, torch.arange(7), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_classes_are_dropped_at_the_given_rate(quantizer, sequence):
    content = awake(ContentGenerator(content_config(1, 4, codebook_size=50)))
    seen = []
    content.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    generators = Generators(content, None, quantizer, TrainConfig(class_dropout=0.3))
    for seed in range(150):
        generators(sequence, torch.arange(7), torch.Generator().manual_seed(seed))
    rate = (torch.cat(seen) == 1000).float().mean()
    assert 0.25 < rate < 0.35


def test_alignment_pulls_towards_the_features_and_asks_for_them(quantizer, sequence):
    content = awake(ContentGenerator(content_config(2, 4, codebook_size=50, repa_block=1, repa_width=5))).train()
    generators = Generators(content, None, quantizer, TrainConfig(), repa_weight=0.5)
    features = torch.randn(7, 16, 5)
    loss, terms = generators(sequence, torch.arange(7), torch.Generator().manual_seed(0), features)
    assert -1 <= terms["alignment"] <= 1
    torch.testing.assert_close(loss, terms["canvas"] + terms["cross_entropy"] + 0.5 * terms["alignment"])
    with pytest.raises(ValueError, match="repa.weights"):
        generators(sequence, torch.arange(7), torch.Generator().manual_seed(0))


def test_before_the_first_step_the_logits_are_the_quantizers_own_rule(quantizer, sequence):
    content = ContentGenerator(content_config(1, 4, codebook_size=50))
    structure = StructureGenerator(structure_config(2, 4))
    Generators(content, structure, quantizer, TrainConfig()).begin(sequence)
    canvas = torch.zeros(7, 16, 32)
    wanted = torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(3))
    labels = sequence.structure_map(4)
    assert torch.equal(content.logits(wanted, canvas, labels, 4).argmax(dim=-1), _nearest(quantizer, wanted, labels))
    stage = torch.full((7,), 2)
    table = content.rotary(sequence.codes, stage)
    estimate, _ = content(quantizer.canvases(sequence)[2], torch.arange(7), stage, table)
    torch.testing.assert_close(estimate, quantizer.canvases(sequence)[2])  # the first estimate is the canvas itself
    for i, canvas in enumerate(quantizer.canvases(sequence)[1:5], start=1):
        assert (canvas * content.input_scales[i]).std().item() == pytest.approx(1.0, abs=1e-4)
    assert content.input_scales[0] == 1 and not content.start.any()


def _nearest(quantizer, values, labels):
    ordered = torch.stack([row[label.argsort()] for row, label in zip(values, labels, strict=True)])
    return quantizer.nearest(ordered)


def test_with_all_stages_each_image_counts_at_each_stage(quantizer, sequence):
    """The mean over all stages is the mean of the losses of single stages."""
    content = awake(ContentGenerator(content_config(1, 4, codebook_size=50)))
    labels = torch.arange(7)
    config = TrainConfig(all_stages=True, class_dropout=0.0)
    _, terms = Generators(content, None, quantizer, config)(sequence, labels, torch.Generator().manual_seed(0))
    canvases = torch.stack(quantizer.canvases(sequence)).detach()
    single = [
        content_loss(content, canvases[stage], canvases[-1], labels, torch.full((7,), stage), sequence, None)
        for stage in range(5)
    ]
    for name in ("canvas", "cross_entropy"):
        mean = torch.stack([one[name] for one in single]).mean()
        torch.testing.assert_close(terms[name], mean, rtol=1e-4, atol=1e-5)


def test_an_image_has_one_noise_and_one_dropped_class_for_all_its_stages_and_both_generators(quantizer, sequence):
    content, structure = (
        ContentGenerator(content_config(1, 4, codebook_size=50)),
        StructureGenerator(structure_config(2, 4)),
    )
    seen = {}
    for name, module, labels in (("content", content, 1), ("structure", structure, 3)):
        module.register_forward_pre_hook(
            lambda module, inputs, name=name, labels=labels: seen.__setitem__(name, (inputs[0], inputs[labels]))
        )
    config = TrainConfig(all_stages=True, class_dropout=0.5)
    rng = torch.Generator().manual_seed(0)
    Generators(content, structure, quantizer, config)(sequence, torch.arange(7), rng)
    dropped = seen["content"][1].unflatten(0, (5, 7))
    assert (dropped == dropped[0]).all() and 0 < int((dropped[0] == 1000).sum()) < 7
    assert (seen["structure"][1].unflatten(0, (3, 7)) == dropped[0]).all()
    rng = torch.Generator().manual_seed(0)
    torch.rand(7, generator=rng)  # the dropped classes
    noise, time = draw_flow(sequence.codes.shape, 4, 21, rng)
    bits = structure_embedding(sequence.codes, 4) - 1
    for stage in (1, 2, 3):
        rows = slice(7 * (stage - 1), 7 * stage)
        z = bits + time[rows, None, None] * (noise - bits)
        unknown = slice(stage - 1, None)
        torch.testing.assert_close(seen["structure"][0][rows][..., unknown], z[..., unknown])
