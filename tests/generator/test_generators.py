"""Both generators: parameter counts of the method, shapes, and what their inputs may and may not change."""

import math

import pytest
import torch

from nvg.generator import ContentGenerator, StructureGenerator
from nvg.generator.block import Block, HeadNorm, TimeEmbedding, by_rows, drop_rates
from nvg.generator.rope import (
    CONDITION,
    GENERATED,
    Rotary,
    axis_widths,
    class_token_ids,
    rotary_table,
    rotate,
    rotate_in_real_numbers,
    token_ids,
)
from nvg.granularity import structure_codes, structure_embedding
from tests.support.generators import (
    FORMS,
    awake,
    content_at,
    content_config,
    every_form,
    structure_at,
    structure_config,
)


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


@every_form
@pytest.mark.parametrize(("depth", "content", "structure"), [(16, 255e6, 64e6), (20, 497e6, 125e6), (24, 856e6, 215e6)])
def test_totals_are_within_two_percent_of_the_published_ones(depth, content, structure, form):
    with torch.device("meta"):
        models = (
            ContentGenerator(content_config(depth, form=form)),
            StructureGenerator(structure_config(depth, form=form)),
        )
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_a_rotation_in_real_numbers_is_the_complex_one(dtype, tolerance):
    """As CUDA and torch.compile have it. bfloat16: three roundings of 2^-9 each, of numbers up to 4."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 64, generator=rng).clamp(-2, 2).to(dtype)
    table = rotary_table(torch.randint(0, 16, (2, 5, 11), generator=rng), axis_widths(8))
    found = rotate_in_real_numbers(x, table)
    assert found.dtype == dtype
    torch.testing.assert_close(found, rotate(x, table), rtol=0, atol=tolerance)


def test_few_rows_are_filled_up_on_a_cpu_alone():
    rows = []

    def layer(x):
        rows.append(x.shape[0])
        return 2 * x

    assert torch.equal(by_rows(layer, torch.ones(1, 3)), 2 * torch.ones(1, 3))
    assert by_rows(layer, torch.ones(1, 3, device="meta")).shape == (1, 3)
    assert rows == [4, 1]


def test_under_autocast_queries_and_keys_stay_in_its_dtype_without_a_warning(monkeypatch, recwarn):
    """torch warns of a norm's float32 weight beside bfloat16 numbers, and takes its slow path."""
    seen = []
    monkeypatch.setattr(
        "nvg.generator.block.attention", lambda q, k, v, *_: seen.append({q.dtype, k.dtype, v.dtype}) or q
    )
    block = awake(Block(128))
    table = rotary_table(torch.zeros(1, 3, 11), axis_widths(8))
    torch.set_warn_always(True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            block(torch.randn(1, 3, 128), torch.randn(1, 1, 128), table, [3])
    finally:
        torch.set_warn_always(False)
    assert seen == [{torch.bfloat16}]
    assert not [one for one in recwarn if "dtype" in str(one.message)]
    x = torch.randn(5, 64)
    assert torch.equal(HeadNorm()(x), torch.nn.RMSNorm(64, eps=1e-6)(x))


@pytest.mark.parametrize("kinds", [(GENERATED,), (CONDITION, GENERATED)])
def test_the_table_that_is_made_in_part_beforehand_is_the_formula(kinds):
    codes = structure_codes(torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)))
    known = structure_embedding(codes, torch.tensor([0, 2, 4]))
    ids = [class_token_ids(3, 4, known.device)] + [token_ids(kind, known, 4) for kind in kinds]
    assert torch.equal(Rotary(kinds, 4, 4)(known), rotary_table(torch.cat(ids, dim=1), axis_widths(4)))


@pytest.mark.parametrize("lengths", [[9], [4, 5], [4, 1 + 4, 6]])
def test_a_last_block_that_gives_some_tokens_alone_gives_what_the_whole_one_gives(lengths):
    block = awake(Block(128))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, sum(lengths), 128, generator=rng)
    condition = torch.randn(2, len(lengths), 128, generator=rng)
    table = rotary_table(torch.randint(0, 5, (2, sum(lengths), 11), generator=rng), axis_widths(8))
    whole, some = block(x, condition, table, lengths), block(x, condition, table, lengths, 4)
    torch.testing.assert_close(some, torch.cat([one[:, -4:] for one in whole.split(lengths, dim=1)], dim=1))


@pytest.mark.parametrize("keep", [None, 2])
def test_segments_of_a_block_do_not_see_each_other(keep):
    block, lengths = awake(Block(128)), [2, 5, 3]
    rng = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, 10, 128, generator=rng), torch.randn(2, 3, 128, generator=rng)
    table = rotary_table(torch.randint(0, 5, (2, 10, 11), generator=rng), axis_widths(8))
    together = block(x, condition, table, lengths, keep)
    parts = zip(x.split(lengths, 1), condition.split(1, 1), table.split(lengths, 2), lengths, strict=True)
    alone = [block(one, vector, angles, [length], keep) for one, vector, angles, length in parts]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


# ---- both generators, in every form ----


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def some_inputs(rng, images=2, stages=5, width=32):
    """A canvas a stage, codes and labels: of a grid of 4 x 4, K = 4."""
    canvases = list(torch.randn(stages, images, 16, width, generator=rng))
    codes = structure_codes(torch.randn(images, 16, 8, generator=rng))
    return canvases, codes, torch.arange(images) % 3


@every_form
@pytest.mark.parametrize("grid", [2, 4, 8])
def test_shapes_end_to_end(grid, form, rng):
    latents = torch.randn(3, grid**2, 32, generator=rng)
    codes, labels = structure_codes(latents), torch.tensor([0, 5, 1000])  # the last is "no class"
    content = ContentGenerator(content_config(1, grid, form))
    stages = list(range(content.last_stage + 1))
    differences, aligned = content_at(content, stages, [latents] * len(stages), codes, labels)
    assert len(differences) == len(stages) and aligned is None
    for stage, difference in zip(stages, differences, strict=True):
        assert difference.shape == (3, 2**stage if form == "clusters" else grid**2, 32)
        assert content.logits(difference, codes, stage).shape == (3, 2**stage, 4096)
        assert content.of_tokens(latents, codes, stage).shape == difference.shape
    structure = StructureGenerator(structure_config(2, grid, form))
    stages = list(range(1, structure.last_stage))
    noisy = [torch.randn(3, grid**2, structure.last_stage, generator=rng) for _ in stages]
    velocities = structure_at(
        structure, stages, noisy, torch.rand(3, len(stages)), [latents] * len(stages), codes, labels
    )
    assert [one.shape for one in velocities] == [(3, grid**2, structure.last_stage)] * len(stages)


@pytest.mark.parametrize("part", ["content", "structure"])
def test_a_stage_of_clusters_has_a_token_for_each_of_them(part, rng, monkeypatch):
    """2^i of the content; of the structure 2^(i-1) of the canvas and L that are generated. And the class token."""
    lengths = []
    monkeypatch.setattr(
        "nvg.generator.block.attention",
        lambda q, k, v, queries, keys: lengths.append(list(keys)) or torch.zeros_like(q),
    )
    canvases, codes, labels = some_inputs(rng)
    if part == "content":
        content_at(ContentGenerator(content_config(1, 4, "clusters")), [0, 1, 2, 3, 4], canvases, codes, labels)
        assert lengths == [[1 + 2**stage for stage in range(5)]]
    else:
        structure = StructureGenerator(structure_config(2, 4, "clusters"))
        noisy = [torch.randn(2, 16, 4)] * 3
        structure_at(structure, [1, 2, 3], noisy, torch.rand(2, 3), canvases[1:4], codes, labels)
        assert lengths[0] == [1 + 2 ** (stage - 1) + 16 for stage in (1, 2, 3)]


@every_form
def test_alignment_is_given_in_training_alone_and_has_the_features_width(form, rng):
    content = ContentGenerator(content_config(2, 4, form, repa_block=1, repa_width=12))
    canvases, codes, labels = some_inputs(rng)
    inputs = [1, 2], canvases[1:3], codes, labels
    tokens = [2, 4] if form == "clusters" else [16, 16]
    assert [one.shape for one in content_at(content.train(), *inputs)[1]] == [(2, count, 12) for count in tokens]
    assert content_at(content.eval(), *inputs)[1] is None


@every_form
def test_bits_of_later_stages_do_not_reach_the_output(form, rng):
    """What is to be generated must not leak in through the rotary ids. Cluster means add in the order of the codes, so
    there the last bits of a number may differ."""
    canvases, codes, labels = some_inputs(rng)
    other = (codes & 0b1000) | (~codes & 0b0111)  # only stage 1 agrees
    content, structure = (
        awake(ContentGenerator(content_config(2, 4, form))),
        awake(StructureGenerator(structure_config(2, 4, form))),
    )

    def differences(codes):
        return content_at(content, [1, 2], canvases[:2], codes, labels)[0]

    noisy, times = list(torch.randn(2, 2, 16, 4, generator=rng)), torch.rand(2, 2, generator=rng)

    def velocities(codes):
        return structure_at(structure, [2, 3], noisy, times, canvases[:2], codes, labels)

    for outputs in (differences, velocities):
        (first, second), (first_other, second_other) = outputs(codes), outputs(other)
        if form == "clusters":
            torch.testing.assert_close(first, first_other, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(first, first_other)
        assert (second - second_other).abs().max() > 1e-3


@every_form
def test_structure_reaches_the_output(form, rng):
    (canvas, *_), codes, labels = some_inputs(rng)
    others = structure_codes(torch.randn(2, 16, 8, generator=rng))
    content = awake(ContentGenerator(content_config(2, 4, form)))
    first, second = (content_at(content, [4], [canvas], those, labels)[0][0] for those in (codes, others))
    assert (first - second).abs().max() > 1e-3
    structure = awake(StructureGenerator(structure_config(2, 4, form)))
    point = [torch.randn(2, 16, 4, generator=rng)], torch.rand(2, 1, generator=rng), [canvas]
    first, second = (structure_at(structure, [3], *point, those, labels)[0] for those in (codes, others))
    assert (first - second).abs().max() > 1e-3


@every_form
def test_stages_of_one_call_do_not_see_each_other(form, rng):
    """All stages in one call are calls of one stage each, in training too and for the gradient of every parameter."""
    canvases, codes, labels = some_inputs(rng, images=3)
    content = awake(ContentGenerator(content_config(2, 4, form, repa_block=1, repa_width=5))).train()
    structure = awake(StructureGenerator(structure_config(2, 4, form))).train()
    noisy, times = list(torch.randn(3, 3, 16, 4, generator=rng)), torch.rand(3, 3, generator=rng)

    def of_content(stages):
        differences, aligned = content_at(content, stages, [canvases[stage] for stage in stages], codes, labels)
        return [torch.cat((one.flatten(), two.flatten())) for one, two in zip(differences, aligned, strict=True)]

    def of_structure(stages):
        index = [stage - 1 for stage in stages]
        some = [noisy[j] for j in index], times[:, index], [canvases[stage] for stage in stages]
        return structure_at(structure, stages, *some, codes, labels)

    for model, outputs, stages in ((content, of_content, [0, 1, 2, 3, 4]), (structure, of_structure, [1, 2, 3])):
        for block in model.backbone.blocks:
            block.drop_rate = 0.0  # chance
        results, gradients = [], []
        for found in (outputs(stages), [one for stage in stages for one in outputs([stage])]):
            model.zero_grad()
            sum((number + 1) * one.square().mean() for number, one in enumerate(found)).backward()
            results.append(found)
            gradients.append(
                {
                    name: parameter.grad.clone()
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                }
            )
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@every_form
@pytest.mark.parametrize("depth", [2, 4])
def test_an_image_is_the_same_to_the_last_bit_in_a_batch_of_any_size_at_every_stage(form, depth, rng):
    """Stages 0 and 1 of clusters have one and two rows an image: few enough for another matrix product of the CPU."""
    canvases, codes, labels = some_inputs(rng, images=9)
    content = awake(ContentGenerator(content_config(depth, 4, form, guided=True)))
    structure = awake(StructureGenerator(structure_config(depth, 4, form, few_step=True)))
    noisy, times = torch.randn(9, 16, 4, generator=rng), torch.rand(9, 1, generator=rng)
    guidance = 1 + torch.rand(9, generator=rng)

    def of_content(stage, images):
        some = [canvases[stage][:images]], codes[:images], labels[:images]
        (difference,), _ = content_at(content, [stage], *some, guidance=guidance[:images])
        return torch.cat((difference.flatten(1), content.logits(difference, codes[:images], stage).flatten(1)), dim=1)

    def of_structure(stage, images):
        some = [noisy[:images]], times[:images], [canvases[stage][:images]], codes[:images], labels[:images]
        steps = dict(steps=times[:images], guidance=guidance[:images, None])
        return structure_at(structure, [stage], *some, **steps)[0]

    with torch.inference_mode():
        for outputs, stages in ((of_content, range(5)), (of_structure, range(1, 4))):
            for stage in stages:
                whole = outputs(stage, 9)
                for images in range(1, 9):
                    assert torch.equal(outputs(stage, images), whole[:images]), (outputs.__name__, stage, images)


@every_form
def test_each_stage_sees_its_own_scale_and_stage_0_the_start_canvas_alone(form, rng):
    content = awake(ContentGenerator(content_config(1, 4, form)))
    (canvas, *_), codes, labels = some_inputs(rng)

    def outputs(canvas):
        """The differences of all stages, of one and the same canvas."""
        return content_at(content, list(range(5)), [canvas] * 5, codes, labels)[0]

    before, tripled = outputs(canvas), outputs(3 * canvas)
    assert [torch.equal(*both) for both in zip(before, tripled, strict=True)] == [True] + [False] * 4
    content.input_scales[2] = 3.0
    scaled = outputs(canvas)
    assert [torch.equal(*both) for both in zip(before, scaled, strict=True)] == [True, True, False, True, True]
    torch.testing.assert_close(scaled[2], tripled[2])
    content.start.data.add_(1.0)
    started = outputs(canvas)
    assert [torch.equal(*both) for both in zip(scaled, started, strict=True)] == [False] + [True] * 4


@pytest.mark.parametrize("form", [form for form in FORMS if form != "clusters"])
def test_without_the_residual_path_the_output_is_the_estimate(form, rng):
    with_path, without = (awake(ContentGenerator(content_config(1, 4, form, residual=on))) for on in (True, False))
    without.load_state_dict(with_path.state_dict())
    canvases, codes, labels = some_inputs(rng)
    first, second = (content_at(model, [2, 3], canvases[2:4], codes, labels)[0] for model in (with_path, without))
    for output, difference, canvas in zip(first, second, canvases[2:4], strict=True):
        torch.testing.assert_close(output, canvas + difference)


def test_time_is_64_sinusoids_of_1000_t_cosines_first():
    embedding = TimeEmbedding(64)
    time = torch.tensor([0.0, 0.3, 1.0])
    expected = [
        [function(1000 * t * 10_000 ** (-k / 32)) for function in (math.cos, math.sin) for k in range(32)]
        for t in time.tolist()
    ]
    torch.testing.assert_close(embedding.sinusoids(time), torch.tensor(expected), rtol=0, atol=2e-4)


@pytest.mark.parametrize("lengths", [[5], [2, 3]])
def test_in_training_whole_segments_skip_a_block_and_the_others_make_up_for_it(lengths):
    assert drop_rates(1) == [0.0] and drop_rates(3) == pytest.approx([0.0, 0.00625, 0.0125])
    block = awake(Block(128, drop_rate=0.25))
    rng, count = torch.Generator().manual_seed(0), len(lengths)
    x, condition = (torch.randn(1, size, 128, generator=rng) for size in (5, count))
    table = rotary_table(torch.zeros(1, 5, 11), axis_widths(8))
    arguments = condition.expand(400, -1, -1), table.expand(400, -1, -1, -1, -1), lengths
    with torch.no_grad():
        change = block(x, condition, table, lengths) - x  # in use: none is left out
        torch.manual_seed(0)
        found = block.train()(x.expand(400, -1, -1), *arguments) - x
    skips = []
    for one, expected in zip(found.split(lengths, dim=1), change.split(lengths, dim=1), strict=True):
        skipped = (one == 0).all(dim=(1, 2))
        assert 60 < int(skipped.sum()) < 140
        torch.testing.assert_close(one[~skipped], (expected / 0.75).expand(400 - int(skipped.sum()), -1, -1))
        skips.append(skipped)
    assert len(lengths) == 1 or 8 < int((skips[0] & skips[1]).sum()) < 50  # each by its own chance


def test_the_blocks_of_both_generators_are_left_out_ever_more_often():
    with torch.device("meta"):
        models = ContentGenerator(content_config(24)), StructureGenerator(structure_config(24))
    for model in models:
        rates = [block.drop_rate for block in model.backbone.blocks]
        assert rates == pytest.approx([0.1 * block / 23 for block in range(24)])


@every_form
def test_gradient_checkpointing_changes_no_gradient(form, rng):
    canvases, codes, labels = some_inputs(rng)
    content = awake(ContentGenerator(content_config(2, 4, form))).train()
    structure = awake(StructureGenerator(structure_config(2, 4, form))).train()
    point = list(torch.randn(3, 2, 16, 4, generator=rng)), torch.rand(2, 3, generator=rng), canvases[1:4]
    for model, call in (
        (content, lambda: content_at(content, list(range(5)), canvases, codes, labels)[0]),
        (structure, lambda: structure_at(structure, [1, 2, 3], *point, codes, labels)),
    ):
        for block in model.backbone.blocks:
            block.drop_rate = 0.0
        gradients = []
        for on in (False, True):
            model.zero_grad()
            model.backbone.gradient_checkpointing = on
            sum(one.square().sum() for one in call()).backward()
            gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
        torch.testing.assert_close(*gradients)
