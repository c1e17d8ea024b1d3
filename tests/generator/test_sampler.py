"""The sampler and its controls: determinism, guidance, schedules, given structure and content."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nvg.config import SamplerConfig
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.generator.controls import given_from_drawing, given_from_sequence
from nvg.generator.nucleus import nucleus_sample
from nvg.generator.schedules import falling_top_p, flow_times, ramp
from nvg.granularity import structure_map
from tests.support.generators import (
    FORMS,
    NAMES,
    awake,
    content_at,
    every_form,
    sampler_of,
)


@pytest.fixture(scope="module", params=FORMS)
def sampler(request):
    return sampler_of(request.param)


@pytest.fixture(scope="module")
def reference(sampler):
    return sampler.tokenizer.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def tokens(sampler, classes, **arguments):
    *_, last = sampler.stages(classes, **arguments)
    return last.sequence


def test_every_stage_is_yielded_with_its_map_and_preview(sampler):
    steps = list(sampler.stages(["cat", 2], seed=5))
    assert [step.stage for step in steps] == [0, 1, 2, 3, 4]
    for step in steps:
        assert step.structure_map.shape == (2, 4, 4)
        for labels in step.structure_map.flatten(1):
            assert labels.bincount(minlength=2**step.stage).tolist() == [16 >> step.stage] * 2**step.stage
        assert step.preview.shape == (2, 16, 16, 3) and step.preview.dtype == np.uint8
    assert np.array_equal(sampler.generate(["cat", 2], seed=5), steps[-1].preview)
    with pytest.raises(ValueError, match="complete after stage 4"):
        _ = steps[1].sequence


def test_a_sample_does_not_depend_on_its_batch_mates(sampler):
    together = tokens(sampler, [0, 1, 2, 1, 0], seed=[3, 4, 5, 6, 7])
    for row, (label, seed) in enumerate([(0, 3), (1, 4), (2, 5), (1, 6), (0, 7)]):
        alone = tokens(sampler, [label], seed=seed)
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.flat_content()[0], together.flat_content()[row])


def test_a_sample_is_the_same_to_the_last_bit_in_a_batch_of_any_size(sampler):
    classes, seeds = [j % 3 for j in range(9)], list(range(9))
    together = list(sampler.stages(classes, seed=seeds))
    for size in range(1, 9):
        for step, whole in zip(sampler.stages(classes[:size], seed=seeds[:size]), together, strict=True):
            assert torch.equal(step.canvas, whole.canvas[:size])
            assert np.array_equal(step.preview, whole.preview[:size])


def test_settings_and_given_stages_may_differ_within_a_batch(sampler, reference):
    whole = given_from_sequence(reference[:1], structure_stages=4, content_stages=3)
    part = given_from_sequence(reference[1:], structure_stages=1)
    images = [
        (dict(content_guidance=1.0, structure_guidance=1.0), None),
        (dict(content_guidance=4.0, structure_guidance=2.0, top_p=0.9), whole),
        (dict(content_temperature=0.7, structure_temperature=0.0, flow_shift=0.0), part),
    ]
    names = sorted({name for settings, _ in images for name in settings})
    each = {name: [settings.get(name, getattr(sampler.settings, name)) for settings, _ in images] for name in names}
    together = sampler.generate([0, 1, 2], seed=[5, 6, 7], given=[given for _, given in images], **each)
    for j, (settings, given) in enumerate(images):
        assert np.array_equal(together[j], sampler.generate([j], seed=5 + j, given=given, **settings)[0])


def test_no_classes_make_no_images(sampler):
    assert sampler.generate([]).shape == (0, 16, 16, 3)


def test_lists_of_settings_and_given_need_one_an_image(sampler, reference):
    with pytest.raises(ValueError, match="3 values of top_p for 2 images"):
        sampler.generate([0, 1], top_p=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="flow_steps.* for all images alike"):
        sampler.generate([0, 1], flow_steps=[1, 2])
    with pytest.raises(ValueError, match="1 given for 2 images"):
        sampler.generate([0, 1], given=[None])
    with pytest.raises(ValueError, match=r"shape \(2, 16\)"):
        sampler.generate([0], given=[given_from_sequence(reference, structure_stages=1)])


def test_seeds_and_classes_change_the_sample_and_one_seed_counts_up(sampler):
    base = tokens(sampler, [1, 1], seed=10).flat_content()
    assert torch.equal(base, tokens(sampler, [1, 1], seed=[10, 11]).flat_content())
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base[0], tokens(sampler, [2], seed=10).flat_content()[0])


@pytest.mark.parametrize("flow_steps", [1, 2, 7])
def test_any_number_of_flow_steps_gives_a_complete_sequence(sampler, flow_steps):
    codes = tokens(sampler, [0], flow_steps=flow_steps).codes
    assert codes.sort().values.tolist() == [list(range(16))]


def fresh(sampler):
    """The same networks, nothing kept of earlier draws."""
    return Sampler(sampler.tokenizer, sampler.content, sampler.structure, sampler.settings, NAMES)


def test_guidance_one_is_the_conditional_model_in_a_single_pass(sampler):
    sampler, calls = fresh(sampler), []
    handle = sampler.content.register_forward_hook(lambda module, inputs, output: calls.append(inputs[2].shape[0]))
    tokens(sampler, [0, 1], content_guidance=1.0)
    single = list(calls)
    calls.clear()
    tokens(sampler, [0, 1], content_guidance=3.0)
    handle.remove()
    assert single == [2] * 5
    assert calls == [4, 4, 4, 4]  # stage 0 has scale 1, and its logits are those of a moment ago


def test_the_logits_of_stage_0_are_computed_once_a_class(sampler):
    sampler, calls = fresh(sampler), []
    handle = sampler.content.register_forward_hook(lambda module, inputs, output: calls.append(inputs[2].tolist()))
    first = tokens(sampler, [1, 1, 0], seed=5, content_guidance=1.0)
    computed = list(calls)
    calls.clear()
    again = tokens(sampler, [2, 0, 1], seed=5, content_guidance=1.0)
    handle.remove()
    assert computed[0] == [1, 0] and len(computed) == 5
    assert calls[0] == [2] and len(calls) == 5
    other = fresh(sampler)
    assert torch.equal(tokens(other, [2, 0, 1], seed=5, content_guidance=1.0).flat_content(), again.flat_content())
    assert first.flat_content()[2, 0] == tokens(other, [0], seed=7, content_guidance=1.0).flat_content()[0, 0]


def test_guidance_that_is_folded_into_the_content_takes_one_pass_a_stage(sampler):
    content = awake(ContentGenerator(replace(sampler.content.config, guided=True)))
    folded = Sampler(sampler.tokenizer, content, sampler.structure, SamplerConfig(flow_steps=2), NAMES)
    calls = []
    handle = content.register_forward_pre_hook(
        lambda module, inputs, named: calls.append((inputs[2].tolist(), named["guidance"].tolist())), with_kwargs=True
    )
    tokens(folded, [0, 1], content_guidance=[3.0, 2.0])
    handle.remove()
    ramps = [[1.0, 1.0], [1.5, 1.25], [2.0, 1.5], [2.5, 1.75], [3.0, 2.0]]
    assert calls == [([0, 1], scales) for scales in ramps]
    with pytest.raises(ValueError, match="content_guidance=4.5: .* 1 ... 4"):
        tokens(folded, [0], content_guidance=4.5)


def test_blocks_in_bfloat16_leave_pictures_much_the_same_and_heads_as_they_were(sampler):
    whole = copy.deepcopy(sampler)
    half = copy.deepcopy(sampler).to("cpu", dtype=torch.bfloat16)
    assert {value.dtype for value in half.content.backbone.parameters()} == {torch.bfloat16}
    assert half.content.to_logits.weight.dtype == half.tokenizer.quantizer.codebook.dtype == torch.float32
    assert half.structure.backbone.time_condition.frequency.dtype == torch.float32
    inputs = [1, 2], [torch.randn(2, 16, 32)] * 2, torch.arange(16).expand(2, -1), torch.tensor([0, 1])
    each = (content_at(one.content, *inputs)[0] for one in (whole, half))
    for exact, near in zip(*each, strict=True):
        assert near.dtype == torch.float32 and 0 < (near - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert half.generate([0, 1], seed=0).shape == whole.generate([0, 1], seed=0).shape


# ---- compiled ----


@pytest.fixture
def two_shapes():
    """torch compiles a function for two shapes unless it is told otherwise; of itself for eight."""
    with torch._dynamo.config.patch(recompile_limit=2):
        yield


def counting(graphs):
    """A backend: the code that torch.compile would go on to translate, run as it is. graphs: is filled with it."""

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    return backend


def networks_of(graphs):
    """The graphs of generators and of the decoder, which alone have attention."""
    return [one for one in graphs if any("dot_product_attention" in str(node.target) for node in one.graph.nodes)]


@pytest.mark.slow
@every_form
def test_a_sampler_is_compiled_whole_before_its_first_picture(form, two_shapes):
    """Without a graph break, and draws what it draws without: batches of another size are filled up to a size that is
    compiled, so that no later one waits. Of clusters a stage is a shape of its own; with fullgraph=True one more than
    torch compiles is an error."""
    sampler, graphs = sampler_of(form), []
    torch._dynamo.reset()  # graphs of another form
    compiled = copy.deepcopy(sampler).compile(sizes=(2,), backend=counting(graphs), fullgraph=True)
    count = len(graphs)
    # A graph for each of 5 contents and 3 structures, or 1 for all of position tokens, with 4 rows for guidance and 2
    # without; the first content and the first structure have 2 rows alone. And the decoder's.
    assert len(networks_of(graphs)) == (15 if form == "clusters" else 5)
    for classes, seed in (([0, 1], 0), ([2], 3)):
        expected, found = (tokens(one, classes, seed=seed) for one in (sampler, compiled))
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.flat_content(), expected.flat_content())
        pixels = [one.generate(classes, seed=seed).astype(int) for one in (sampler, compiled)]
        assert pixels[0].shape == pixels[1].shape and abs(pixels[0] - pixels[1]).max() <= 1
    part = given_from_sequence(found, structure_stages=2, content_stages=1)
    compiled.generate([0, 1], given=[None, part])
    assert len(graphs) == count
    assert torch._dynamo.config.recompile_limit >= 9 * 16  # K = 8: nine stages, of sixteen batch sizes


def test_a_few_step_structure_takes_one_pass_a_step_and_none_twice(sampler):
    structure = awake(StructureGenerator(replace(sampler.structure.config, few_step=True, max_guidance=3.0)))
    few = Sampler(sampler.tokenizer, sampler.content, structure, SamplerConfig(flow_steps=1), NAMES)
    calls = []
    handle = structure.register_forward_pre_hook(
        lambda module, inputs, named: calls.append(
            (inputs[4].tolist(), named["steps"][:, 0].tolist(), named["guidance"])
        ),
        with_kwargs=True,
    )
    tokens(few, [0, 1], structure_guidance=[2.0, 1.0])
    assert [(labels, step) for labels, step, _ in calls] == [([0, 1], [1.0, 1.0])] * 3  # stages 1, 2, 3
    assert [guidance[:, 0].tolist() for *_, guidance in calls] == [[1.0, 1.0], [1.25, 1.0], [1.5, 1.0]]
    shifted, equal = (tokens(few, [0, 1], flow_steps=2, flow_shift=shift) for shift in (2.0, 0.0))
    assert torch.equal(shifted.codes, equal.codes)  # it was taught equal steps
    calls.clear()
    tokens(few, [0], flow_steps=4)
    assert [step for _, step, _ in calls] == [[0.25]] * 12
    calls.clear()
    tokens(few, [0], flow_steps=3)  # not one of the sizes that are learned: the flow itself
    handle.remove()
    assert [step for _, step, _ in calls] == [[0.0]] * 9
    together = tokens(few, [0, 1, 2], seed=[3, 4, 5], structure_guidance=[1.0, 2.0, 3.0])
    alone = tokens(few, [1], seed=4, structure_guidance=2.0)
    assert torch.equal(together.codes[1], alone.codes[0])
    for scale in (0.5, 3.5):
        with pytest.raises(ValueError, match=f"structure_guidance={scale}: .* 1 ... 3"):
            tokens(few, [0], structure_guidance=scale)


def test_the_guidance_ramp_and_its_ends():
    scale = torch.tensor([3.0, 1.0])
    assert [ramp(scale, stage, 4).tolist() for stage in range(5)] == [[value, 1.0] for value in (1, 1.5, 2, 2.5, 3)]


def test_top_p_falls_from_one_slowly_first():
    found = [falling_top_p(torch.tensor([0.5, 1.0]), stage, 4).tolist() for stage in range(5)]
    assert found[0] == [1.0, 1.0] and found[4] == [0.5, 1.0] and all(row[1] == 1.0 for row in found)
    assert found[2][0] == pytest.approx(0.5 + 0.5 * (4 - 2) / 3)
    steps = torch.tensor([row[0] for row in found]).diff()
    assert (steps.diff() < 0).all() and (steps < 0).all()
    assert falling_top_p(torch.tensor([0.5]), 1, 1) == 0.5


def test_flow_times_shift_towards_the_noise_and_zero_means_equal_steps_exactly():
    shift = torch.tensor([0.0, 0.5, 2.0])
    for positions in (16, 256):
        times = flow_times(4, shift, positions)
        assert torch.equal(times[:, 0], torch.linspace(1.0, 0.0, 5))
        assert (times[0] == 1).all() and (times[-1] == 0).all() and (times.diff(dim=0) < 0).all()
        assert (times[1:-1].diff(dim=1) > 0).all()
    s = math.exp(0.5)
    assert flow_times(4, shift, 256)[2, 1] == pytest.approx(s * 0.5 / (1 + (s - 1) * 0.5))
    assert flow_times(4, shift, 16)[2, 1] < flow_times(4, shift, 256)[2, 1]


def test_all_flows_of_an_image_begin_with_one_noise(sampler):
    sampler, calls = fresh(sampler), []
    handle = sampler.structure.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0][0][0].clone()))
    tokens(sampler, [1], seed=3, flow_steps=1, structure_guidance=1.0)
    handle.remove()
    first, second, third = calls  # of stages 1, 2, 3
    assert torch.equal(second[:, 1:], first[:, 1:]) and torch.equal(third[:, 2:], first[:, 2:])
    for z, known in ((second, 1), (third, 2)):
        assert set(z[:, :known].flatten().tolist()) == {-1.0, 1.0}


def test_nucleus_sampling_follows_the_distribution_cut_at_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    uniform = (torch.arange(20000) + 0.5) / 20000

    def shares(top_p):
        rows = nucleus_sample(logits.expand(1, 20000, -1), torch.tensor([top_p]), uniform[None])[0]
        return rows.bincount(minlength=4) / 20000

    torch.testing.assert_close(shares(1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=1e-3, rtol=0)
    torch.testing.assert_close(shares(0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert shares(0.01).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_given_structure_is_kept_and_the_rest_generated(sampler, reference, stages):
    given = given_from_sequence(reference, structure_stages=stages)
    made = tokens(sampler, ["cat", "dog"], given=given)
    assert torch.equal(made.structure_map(stages), reference.structure_map(stages))
    assert not torch.equal(made.flat_content(), reference.flat_content())
    if stages < 3:
        assert not torch.equal(made.codes, reference.codes)


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_given_structure_and_content_are_kept(sampler, reference, stages):
    given = given_from_sequence(reference, structure_stages=stages - 1, content_stages=stages)
    made = tokens(sampler, ["cat", "dog"], given=given)
    for stage in range(stages):
        assert torch.equal(made.content[stage], reference.content[stage])
        assert torch.equal(made.structure_map(stage), reference.structure_map(stage))
    if stages == 5:  # everything given: the reconstruction of the reference
        pixels = sampler.generate(["cat", "dog"], given=given)
        decoded = sampler.tokenizer.decode(reference)
        assert np.abs(pixels / 127.5 - 1 - decoded.permute(0, 2, 3, 1).numpy()).max() < 0.02


def test_one_reference_serves_many_classes(sampler, reference):
    given = given_from_sequence(reference[:1], structure_stages=3, content_stages=2)
    made = tokens(sampler, [0, 1, 2], given=given)
    assert torch.equal(made.structure_map(3), reference[:1].structure_map(3).expand(3, -1))


def test_a_balanced_drawing_is_stage_1_as_drawn(sampler):
    drawing = torch.zeros(1, 64, 64)
    drawing[:, :, 32:] = 1
    given = given_from_drawing(drawing, 4)
    assert given.moved.tolist() == [0]
    left_right = torch.tensor([0, 0, 1, 1]).repeat(4)
    assert torch.equal(structure_map(given.codes, 1)[0], left_right)
    assert torch.equal(tokens(sampler, ["owl"], given=given).structure_map(1)[0], left_right)


def test_an_unbalanced_drawing_is_rebalanced_along_its_border_and_says_so():
    drawing = torch.zeros(1, 8, 8)
    drawing[:, 3:5, 3:5] = 1  # 4 of 64
    given = given_from_drawing(drawing, 8)
    assert given.moved.tolist() == [28]
    half = structure_map(given.codes, 1).view(8, 8) == 1
    assert half.sum() == 32 and half[2:6, 2:6].all()  # it grew from its border outwards
    far = [(0, 0), (0, 7), (7, 0), (7, 7)]
    assert not any(half[place] for place in far)


def test_a_drawing_that_shrinks_keeps_its_core_and_its_complement_is_the_same_partition():
    drawing = torch.ones(1, 8, 8)
    drawing[:, :, :1] = 0
    given = given_from_drawing(drawing, 8)
    assert given.moved.tolist() == [24]
    assert torch.equal(given.codes, given_from_drawing(1 - drawing, 8).codes)


@pytest.mark.parametrize(("value", "word"), [(0.0, "empty"), (1.0, "full")])
def test_a_drawing_without_a_border_is_refused(value, word):
    with pytest.raises(ValueError, match=word):
        given_from_drawing(torch.full((1, 8, 8), value), 4)


def test_wrong_requests_are_refused_by_name(sampler, reference):
    with pytest.raises(ValueError, match="no class 'horse'; the classes are cat, dog, owl"):
        sampler.generate(["horse"])
    with pytest.raises(ValueError, match="class 3 is none of 0"):
        sampler.generate([3])
    with pytest.raises(ValueError, match="no sampler setting 'steps'"):
        sampler.generate([0], steps=3)
    with pytest.raises(ValueError, match="flow_steps=0"):
        sampler.generate([0], flow_steps=0)
    with pytest.raises(ValueError, match="2 seeds for 1 images"):
        sampler.generate([0], seed=[1, 2])
    with pytest.raises(ValueError, match="structure_stages=9"):
        given_from_sequence(reference, structure_stages=9)
    with pytest.raises(ValueError, match="content_stages=4"):
        given_from_sequence(reference, structure_stages=2, content_stages=4)
    with pytest.raises(ValueError, match="3 images of this model need"):
        sampler.generate([0, 1, 2], given=given_from_sequence(reference, structure_stages=1))


def test_halves_that_keep_the_names_of_their_preferences_are_a_valid_sequence(sampler):
    other = copy.copy(sampler)
    other.tokenizer = copy.deepcopy(sampler.tokenizer)
    other.tokenizer.config.child_order = "merge"
    made = tokens(other, [0, 1, 2], seed=3)
    assert torch.equal(made.codes.sort(dim=1).values, torch.arange(16).expand(3, 16))
    assert not torch.equal(made.codes, tokens(sampler, [0, 1, 2], seed=3).codes)


@pytest.mark.parametrize("label", [1.7, 1.0, None, b"1", [1]])
def test_a_label_that_is_neither_a_name_nor_a_whole_number_is_refused(sampler, label):
    with pytest.raises(ValueError, match="is neither a name nor a whole number"):
        sampler.class_index(label)
    assert sampler.class_index(np.int64(1)) == 1


# ---- seeds and classes that are none ----


@pytest.mark.parametrize("seed", [-1, 2**31, 2**40, True, np.True_, 1.0, np.float64(1), "1", None, math.nan])
@pytest.mark.parametrize("many", [False, True])
def test_a_seed_is_a_whole_number_of_31_bits(sampler, seed, many):
    """torch reads 32 bits of it: 2**40 drew the image of 0."""
    with pytest.raises(ValueError, match=r"seed=.* must be a whole number from 0 to 2147483647"):
        sampler.generate([0], seed=[seed] if many else seed)


@pytest.mark.parametrize(
    "whole", [np.int64, np.int32, np.uint8, torch.tensor], ids=["int64", "int32", "uint8", "tensor"]
)
def test_whole_numbers_of_other_libraries_are_seeds_classes_and_settings(sampler, whole):
    expected = sampler.generate([1, 2], seed=7, flow_steps=2, top_p=1)
    assert np.array_equal(
        sampler.generate([whole(1), whole(2)], seed=whole(7), flow_steps=whole(2)),
        sampler.generate([1, 2], seed=7, flow_steps=2),
    )
    assert np.array_equal(sampler.generate([1, 2], seed=[whole(7), whole(8)], flow_steps=2, top_p=whole(1)), expected)


def test_seeds_may_be_an_array_and_go_on_from_the_largest_at_0(sampler):
    base = sampler.generate([1, 1], seed=[2**31 - 1, 0])
    assert np.array_equal(sampler.generate([1, 1], seed=2**31 - 1), base)
    assert np.array_equal(sampler.generate([1, 1], seed=np.array([2**31 - 1, 0], np.int64)), base)
    with pytest.raises(ValueError, match="2 seeds for 1 images"):
        sampler.generate([0], seed=(1, 2))


@pytest.mark.parametrize("label", [True, np.True_, 1.0, 1.7, None, math.nan, 3, -1, "fox", "", [0]])
def test_a_class_that_is_none_is_refused(sampler, label):
    with pytest.raises(ValueError, match="class"):
        sampler.generate([label])


@pytest.mark.parametrize("classes", ["cat", "12"])
def test_a_text_is_no_list_of_classes(sampler, classes):
    with pytest.raises(
        ValueError, match=rf"classes='{classes}': give a list of names or indices, such as \['{classes}'\]"
    ):
        sampler.generate(classes)


@pytest.mark.parametrize("value", [True, "0.5", None, [True], ["1"]])
@pytest.mark.parametrize("name", ["flow_steps", "top_p", "content_guidance"])
def test_a_setting_that_is_no_number_is_refused(sampler, name, value):
    with pytest.raises(ValueError, match=f"{name}|1 images"):
        sampler.generate([0], **{name: value})


@pytest.mark.parametrize("name", ["structure_guidance", "content_guidance"])
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_a_model_trained_without_guidance_takes_scale_one_alone(sampler, name, scale):
    plain = Sampler(
        sampler.tokenizer, sampler.content, sampler.structure, sampler.settings, NAMES, knows_no_class=False
    )
    one = {"structure_guidance": 1.0, "content_guidance": 1.0}
    assert np.array_equal(plain.generate([0], **one), sampler.generate([0], **one))
    with pytest.raises(ValueError, match=rf"{name}={scale:g} must be 1: .*\(train.class_dropout=0\)"):
        plain.generate([0], **(one | {name: scale}))
