"""Both generators: parameter counts of the method, shapes, and what their inputs may and may not change."""

import math

import pytest
import torch

from nvg.generator import ContentGenerator, StructureGenerator
from nvg.generator.block import Block, TimeEmbedding, drop_rates
from nvg.generator.rope import (
    CONDITION,
    GENERATED,
    Rotary,
    axis_widths,
    class_token_ids,
    rotary_table,
    rotate,
    token_ids,
)
from nvg.granularity import structure_codes, structure_embedding
from tests.support.generators import awake, content_config, structure_config


def block_weights(model):
    return sum(
        weight.numel()
        for name, weight in model.backbone.blocks.named_parameters()
        if name.endswith("weight") and "norm" not in name
    )


@pytest.mark.parametrize("depth", [2, 4, 12, 16, 20, 24])
def test_block_parameters_are_the_methods_to_the_last_one(depth):
    with torch.device("meta"):
        assert block_weights(ContentGenerator(content_config(depth))) == 61_440 * depth**3
        assert block_weights(StructureGenerator(structure_config(depth))) == 15_360 * depth**3


@pytest.mark.parametrize(("depth", "content", "structure"), [(16, 255e6, 64e6), (20, 497e6, 125e6), (24, 856e6, 215e6)])
def test_totals_are_within_two_percent_of_the_published_ones(depth, content, structure):
    with torch.device("meta"):
        models = ContentGenerator(content_config(depth)), StructureGenerator(structure_config(depth))
    for model, published in zip(models, (content, structure), strict=True):
        total = sum(parameter.numel() for parameter in model.parameters())
        assert abs(total / published - 1) < 0.02, f"{total:,}"


def test_the_rotary_axes_share_a_head_as_the_method_says():
    assert axis_widths(8) == [8] + [2] * 8 + [20, 20]
    for stages in range(2, 11):
        widths = axis_widths(stages)
        assert sum(widths) == 64 and all(width % 2 == 0 for width in widths) and len(widths) == stages + 3


def test_rotation_keeps_lengths_and_depends_on_differences_of_ids_alone():
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64, generator=rng)
    widths = axis_widths(8)
    a, b = torch.randint(0, 16, (2, 1, 1, len(widths)), generator=rng)
    rotated = rotate(q, rotary_table(a, widths))
    torch.testing.assert_close(rotated.norm(), q.norm())
    dot = (rotated * rotate(k, rotary_table(b, widths))).sum()
    shifted = (rotate(q, rotary_table(a + 3, widths)) * rotate(k, rotary_table(b + 3, widths))).sum()
    torch.testing.assert_close(dot, shifted, rtol=1e-4, atol=1e-4)


def test_a_rotation_is_the_formula_pair_by_pair():
    rng = torch.Generator().manual_seed(0)
    x, angle = torch.randn(2, 3, 5, 64, generator=rng), torch.randn(2, 1, 5, 32, generator=rng)
    rotated = rotate(x, torch.stack((angle.cos(), angle.sin()), dim=-1))
    even, odd = x[..., 0::2], x[..., 1::2]
    torch.testing.assert_close(rotated[..., 0::2], even * angle.cos() - odd * angle.sin())
    torch.testing.assert_close(rotated[..., 1::2], even * angle.sin() + odd * angle.cos())
    assert rotate(x.bfloat16(), torch.stack((angle.cos(), angle.sin()), dim=-1)).dtype == torch.bfloat16


@pytest.mark.parametrize("kinds", [(GENERATED,), (CONDITION, GENERATED)])
def test_the_table_that_is_made_in_part_beforehand_is_the_formula(kinds):
    codes = structure_codes(torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)))
    known = structure_embedding(codes, torch.tensor([0, 2, 4]))
    ids = [class_token_ids(3, 4, known.device)] + [token_ids(kind, known, 4) for kind in kinds]
    assert torch.equal(Rotary(kinds, 4, 4)(known), rotary_table(torch.cat(ids, dim=1), axis_widths(4)))


def test_a_last_block_that_gives_some_tokens_alone_gives_what_the_whole_one_gives():
    block = Block(128)
    with torch.no_grad():
        block.modulation.weight.normal_(std=0.1)
    rng = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, 9, 128, generator=rng), torch.randn(2, 128, generator=rng)
    table = rotary_table(torch.randint(0, 5, (2, 9, 11), generator=rng), axis_widths(8))
    whole, some = block(x, condition, table), block(x, condition, table, 4)
    torch.testing.assert_close(some, whole[:, -4:])


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_shapes_end_to_end(grid):
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(3, grid**2, 32, generator=rng)
    codes = structure_codes(latents)
    labels = torch.tensor([0, 5, 1000])  # the last is "no class"
    content = ContentGenerator(content_config(1, grid))
    stage = torch.tensor([0, 1, 2])
    estimate, aligned = content(latents, labels, stage, content.rotary(codes, stage))
    assert estimate.shape == latents.shape and aligned is None
    for stage in range(content.last_stage + 1):
        assert content.logits(estimate, latents, codes >> (content.last_stage - stage), stage).shape == (
            3,
            2**stage,
            4096,
        )
    structure = StructureGenerator(structure_config(2, grid))
    noisy = torch.randn(3, grid**2, structure.last_stage, generator=rng)
    stage = torch.tensor([1, 1, 2])
    velocity = structure(noisy, torch.rand(3), latents, labels, stage, structure.rotary(codes, stage))
    assert velocity.shape == noisy.shape


def test_alignment_is_given_in_training_alone_and_has_the_features_width():
    content = ContentGenerator(content_config(2, 4, repa_block=1, repa_width=12))
    stage = torch.tensor([1, 2])
    table = content.rotary(torch.zeros(2, 16, dtype=torch.int64), stage)
    inputs = torch.randn(2, 16, 32), torch.tensor([0, 1]), stage, table
    assert content.train()(*inputs)[1].shape == (2, 16, 12)
    assert content.eval()(*inputs)[1] is None


def test_bits_of_later_stages_do_not_reach_the_output():
    """What is to be generated must not leak in through the rotary ids."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 32, generator=rng)
    codes = structure_codes(latents)
    labels = torch.tensor([1, 2])
    other_low_bits = (codes & 0b1000) | (~codes & 0b0111)  # only stage 1 agrees
    content = awake(ContentGenerator(content_config(2, 4)))

    def estimate(stage, codes):
        return content(latents, labels, stage, content.rotary(codes, stage))[0]

    stage = torch.tensor([1, 1])
    assert torch.equal(estimate(stage, codes), estimate(stage, other_low_bits))
    assert not torch.equal(estimate(stage + 1, codes), estimate(stage + 1, other_low_bits))
    structure = awake(StructureGenerator(structure_config(2, 4)))
    noisy, time, stage = torch.randn(2, 16, 4, generator=rng), torch.rand(2), torch.tensor([2, 2])
    first, second = (
        structure(noisy, time, latents, labels, stage, structure.rotary(those, stage))
        for those in (codes, other_low_bits)
    )
    assert torch.equal(first, second)


def test_structure_reaches_the_output_through_the_rotary_embedding():
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 32, generator=rng)
    codes = structure_codes(latents)
    others = structure_codes(torch.randn(1, 16, 32, generator=rng))
    label, stage = torch.tensor([1]), torch.tensor([4])
    content = awake(ContentGenerator(content_config(2, 4)))
    first, second = (content(latents, label, stage, content.rotary(those, stage))[0] for those in (codes, others))
    assert not torch.equal(first, second)


def test_each_stage_sees_its_own_scale_and_stage_0_the_start_canvas_alone():
    content = awake(ContentGenerator(content_config(1, 4, residual=False)))
    rng = torch.Generator().manual_seed(0)
    canvas, label = torch.randn(1, 16, 32, generator=rng), torch.tensor([1])

    def outputs(canvas):
        """The estimates of all stages, of one and the same canvas."""
        stages = [torch.tensor([stage]) for stage in range(5)]
        codes = torch.zeros(1, 16, dtype=torch.int64)
        return [content(canvas, label, stage, content.rotary(codes, stage))[0] for stage in stages]

    before, tripled = outputs(canvas), outputs(3 * canvas)
    assert [torch.equal(*both) for both in zip(before, tripled, strict=True)] == [True] + [False] * 4
    content.input_scales[2] = 3.0
    scaled = outputs(canvas)
    assert [torch.equal(*both) for both in zip(before, scaled, strict=True)] == [True, True, False, True, True]
    torch.testing.assert_close(scaled[2], tripled[2])
    content.start.data.add_(1.0)
    started = outputs(canvas)
    assert [torch.equal(*both) for both in zip(scaled, started, strict=True)] == [False] + [True] * 4


def test_without_the_residual_path_the_output_is_the_estimate():
    rng = torch.Generator().manual_seed(0)
    with_path, without = (awake(ContentGenerator(content_config(1, 4, residual=on))) for on in (True, False))
    without.load_state_dict(with_path.state_dict())
    canvas, label, stage = torch.randn(1, 16, 32, generator=rng), torch.tensor([1]), torch.tensor([2])
    table = with_path.rotary(torch.zeros(1, 16, dtype=torch.int64), stage)
    first, second = (model(canvas, label, stage, table)[0] for model in (with_path, without))
    torch.testing.assert_close(first, canvas + second)


def test_time_is_64_sinusoids_of_1000_t_cosines_first():
    embedding = TimeEmbedding(64)
    time = torch.tensor([0.0, 0.3, 1.0])
    expected = [
        [function(1000 * t * 10_000 ** (-k / 32)) for function in (math.cos, math.sin) for k in range(32)]
        for t in time.tolist()
    ]
    torch.testing.assert_close(embedding.sinusoids(time), torch.tensor(expected), rtol=0, atol=2e-4)


def test_in_training_whole_rows_skip_a_block_and_the_others_make_up_for_it():
    assert drop_rates(1) == [0.0] and drop_rates(3) == pytest.approx([0.0, 0.00625, 0.0125])
    block = awake(Block(128, drop_rate=0.25))
    rng = torch.Generator().manual_seed(0)
    x, condition = torch.randn(1, 5, 128, generator=rng).expand(400, -1, -1), torch.randn(1, 128, generator=rng)
    table = rotary_table(torch.zeros(1, 5, 11), axis_widths(8))
    arguments = condition.expand(400, -1), table.expand(400, -1, -1, -1, -1)
    with torch.no_grad():
        change = block(x[:4], arguments[0][:4], arguments[1][:4])[0] - x[0]  # in use: no row is left out
        torch.manual_seed(0)
        found = block.train()(x, *arguments) - x
    skipped = (found == 0).all(dim=(1, 2))
    assert 60 < int(skipped.sum()) < 140
    torch.testing.assert_close(found[~skipped], (change / 0.75).expand(400 - int(skipped.sum()), -1, -1))


def test_the_blocks_of_both_generators_are_left_out_ever_more_often():
    with torch.device("meta"):
        models = ContentGenerator(content_config(24)), StructureGenerator(structure_config(24))
    for model in models:
        rates = [block.drop_rate for block in model.backbone.blocks]
        assert rates == pytest.approx([0.1 * block / 23 for block in range(24)])


def test_gradient_checkpointing_changes_no_gradient():
    content = awake(ContentGenerator(content_config(2, 4))).train()
    for block in content.backbone.blocks:
        block.drop_rate = 0.0
    stage = torch.tensor([1, 2])
    table = content.rotary(torch.zeros(2, 16, dtype=torch.int64), stage)
    inputs = torch.randn(2, 16, 32), torch.tensor([0, 1]), stage, table
    gradients = []
    for on in (False, True):
        content.zero_grad()
        content.backbone.gradient_checkpointing = on
        content(*inputs)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in content.parameters() if parameter.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
