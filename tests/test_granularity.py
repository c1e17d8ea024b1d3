"""The granularity sequence: the batched greedy matching against a sequential one, and its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg import granularity
from nvg.granularity import (
    GranularitySequence,
    assign,
    cluster_means,
    code_order,
    codes_from_map,
    labels_from_embedding,
    neighbour_means,
    positions_of_codes,
    split_codes,
    structure_codes,
    structure_embedding,
    structure_map,
    take,
)
from tests.support.reference import sequential_codes, sequential_pairs

powers = st.integers(2, 6)  # K: 4 to 64 positions


@st.composite
def latents(draw, kinds=("random", "ties", "constant")):
    """A batch of latents: random ones, ones on a coarse lattice (full of ties), constant ones."""
    stages = draw(powers)
    samples = draw(st.integers(1, 4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(samples, 2**stages, draw(st.integers(1, 5)), generator=rng)
    kind = draw(st.sampled_from(kinds))
    return {"random": values, "ties": values.round(), "constant": torch.zeros_like(values) + values[:1, :1]}[kind]


def test_batched_matching_equals_the_sequential_one_on_a_thousand_random_latents():
    rng = torch.Generator().manual_seed(0)
    for positions, samples in ((4, 300), (8, 300), (16, 300), (32, 90), (64, 10)):
        z = torch.randn(samples, positions, 4, generator=rng)
        codes = structure_codes(z)
        for row, latent in zip(codes, z, strict=True):
            assert torch.equal(row, sequential_codes(latent))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_batched_matching_equals_the_sequential_one_on_latents_full_of_ties(levels):
    rng = torch.Generator().manual_seed(levels)
    z = torch.randint(0, levels, (100, 16, 2), generator=rng).float()  # levels = 1: constant
    for row, latent in zip(structure_codes(z), z, strict=True):
        assert torch.equal(row, sequential_codes(latent))


def test_pairs_of_many_equal_distances_are_those_of_the_greedy_rule():
    rng = torch.Generator().manual_seed(3)
    upper = torch.randint(0, 4, (200, 12, 12), generator=rng).float().triu(1)
    distances = upper + upper.transpose(1, 2)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    for partner, one in zip(granularity.matching(distances).tolist(), distances, strict=True):
        assert [(a, b) for a, b in enumerate(partner) if a < b] == sorted(sequential_pairs(one))


@pytest.mark.parametrize("stages", range(2, 11))
def test_every_size_from_4_to_1024_positions_gives_a_bijection(stages):
    z = torch.randn(2, 2**stages, 3, generator=torch.Generator().manual_seed(stages))
    codes = structure_codes(z)
    assert torch.equal(codes.sort(dim=1).values, torch.arange(2**stages).expand(2, -1))


@settings(deadline=None, max_examples=60)
@given(latents())
def test_clusters_have_equal_sizes_and_nest(z):
    codes = structure_codes(z)
    stages = granularity.last_stage(z.shape[1])
    for stage in range(stages + 1):
        labels = structure_map(codes, stage)
        for row in labels:
            assert row.bincount(minlength=2**stage).tolist() == [z.shape[1] >> stage] * 2**stage
        if stage > 0:
            assert torch.equal(labels >> 1, structure_map(codes, stage - 1))


@settings(deadline=None, max_examples=60)
@given(latents())
def test_the_child_with_the_first_position_gets_bit_0(z):
    codes = structure_codes(z)
    for stage in range(1, granularity.last_stage(z.shape[1]) + 1):
        for row in structure_map(codes, stage):
            first = {}
            for position, label in enumerate(row.tolist()):
                first.setdefault(label, position)
            assert all(first[2 * parent] < first[2 * parent + 1] for parent in range(2 ** (stage - 1)))


@settings(deadline=None, max_examples=60)
@given(latents(kinds=("random",)), st.randoms(use_true_random=False))
def test_codes_are_a_function_of_the_partition_alone(z, random):
    """Moving the latents about moves the partition with them, and codes can be named again from it."""
    codes = structure_codes(z)
    positions = z.shape[1]
    order = list(range(positions))
    random.shuffle(order)
    moved = structure_codes(z[:, order])
    stages = granularity.last_stage(positions)
    for stage in range(stages + 1):
        before, after = structure_map(codes, stage)[:, order], structure_map(moved, stage)
        assert torch.equal(before[:, :, None] == before[:, None, :], after[:, :, None] == after[:, None, :])
    # Names follow from the partition: scrambling the names and naming again by split_codes gives the same codes.
    named = torch.zeros_like(codes)
    for stage in range(1, stages + 1):
        flipped = 1 - (structure_map(codes, stage) & 1)
        named = split_codes(named, stage, flipped.float())
    assert torch.equal(named, codes)


@settings(deadline=None, max_examples=40)
@given(latents())
def test_a_latent_has_the_same_codes_in_every_batch(z):
    together = structure_codes(z)
    for row in range(z.shape[0]):
        assert torch.equal(structure_codes(z[row : row + 1])[0], together[row])


def test_bfloat16_latents_give_the_codes_of_their_float32_values():
    z = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(structure_codes(z), structure_codes(z.float()))


@settings(deadline=None, max_examples=60)
@given(latents())
def test_the_structure_embedding_and_its_labels_are_each_others_inverse(z):
    codes = structure_codes(z)
    stages = granularity.last_stage(z.shape[1])
    for stage in range(stages + 1):
        embedding = structure_embedding(codes, stage)
        labels = structure_map(codes, stage)
        for channel in range(stages):  # the formula of the method, literally
            if channel < stage:
                assert torch.equal(embedding[..., channel], 2.0 * ((labels // 2 ** (stage - 1 - channel)) % 2))
            else:
                assert (embedding[..., channel] == 1).all()
        assert torch.equal(labels_from_embedding(embedding, stage), labels)
        assert torch.equal(structure_map(codes_from_map(labels, stage), stage), labels)


def test_the_structure_embedding_takes_a_stage_for_each_sample():
    codes = structure_codes(torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0)))
    together = structure_embedding(codes, torch.tensor([0, 2, 4]))
    for row, stage in enumerate((0, 2, 4)):
        assert torch.equal(together[row], structure_embedding(codes[row : row + 1], stage)[0])


@settings(deadline=None, max_examples=40)
@given(latents(kinds=("random",)), st.integers(0, 6))
def test_cluster_means_are_the_plain_means_and_assign_puts_them_back(z, stage):
    stage = min(stage, granularity.last_stage(z.shape[1]))
    labels = structure_map(structure_codes(z), stage)
    means = cluster_means(z, labels, 2**stage)
    for sample in range(z.shape[0]):
        for cluster in range(2**stage):
            plain = z[sample][labels[sample] == cluster].mean(dim=0)
            torch.testing.assert_close(means[sample, cluster], plain)
    placed = assign(means, labels)
    for sample in range(z.shape[0]):
        assert torch.equal(placed[sample], means[sample][labels[sample]])


@settings(deadline=None, max_examples=30)
@given(latents(kinds=("random",)))
def test_in_the_order_of_their_codes_a_clusters_positions_are_neighbours(z):
    codes = structure_codes(z)
    positions = positions_of_codes(codes)
    assert torch.equal(codes.gather(1, positions), torch.arange(z.shape[1]).expand_as(codes))
    taken = take(z, positions)
    for sample in range(z.shape[0]):
        assert torch.equal(taken[sample], z[sample][positions[sample]])
    for stage in range(granularity.last_stage(z.shape[1]) + 1):
        means = taken.unflatten(1, (2**stage, -1)).mean(dim=2)
        torch.testing.assert_close(means, cluster_means(z, structure_map(codes, stage), 2**stage))


@settings(deadline=None, max_examples=40)
@given(latents(), st.integers(0, 6))
def test_means_of_neighbours_in_the_order_of_codes_are_the_cluster_means(z, stage):
    """Of codes that are known up to the stage, and of complete ones alike."""
    codes = structure_codes(z)
    last = z.shape[1].bit_length() - 1
    stage = min(stage, last)
    assert torch.equal(code_order(codes), positions_of_codes(codes))
    expected = cluster_means(z, structure_map(codes, stage), 2**stage)
    for known in (codes, codes_from_map(structure_map(codes, stage), stage)):
        order = code_order(known)
        assert torch.equal(order.sort(dim=1).values, torch.arange(2**last).expand_as(order))
        inside = take(structure_map(codes, stage)[..., None], order)[..., 0]
        assert torch.equal(inside, torch.arange(2**stage).repeat_interleave(2 ** (last - stage)).expand_as(inside))
        torch.testing.assert_close(neighbour_means(take(z, order), 2**stage), expected)
    assert (order.unflatten(1, (2**stage, -1)).diff(dim=2) > 0).all()  # those of one code in raster order


def test_distances_are_the_plain_sums_to_the_last_bit_and_symmetric():
    z = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    distances = granularity.pairwise_distances(z)
    assert torch.equal(distances, distances.transpose(1, 2))
    for sample in range(2):
        for a in range(16):
            for b in range(16):
                plain = sum((z[sample, a, c] - z[sample, b, c]) ** 2 for c in range(3))
                assert distances[sample, a, b] == (plain if a != b else torch.inf)


@settings(deadline=None, max_examples=60)
@given(powers, st.integers(0, 2**31))
def test_splitting_halves_every_cluster_by_preference(stages, seed):
    rng = torch.Generator().manual_seed(seed)
    codes = torch.zeros(3, 2**stages, dtype=torch.int64)
    for stage in range(1, stages + 1):
        preference = torch.randn(3, 2**stages, generator=rng)
        parent = structure_map(codes, stage - 1)
        codes = split_codes(codes, stage, preference)
        labels = structure_map(codes, stage)
        assert torch.equal(labels >> 1, parent)
        for row in range(3):
            assert labels[row].bincount(minlength=2**stage).tolist() == [2 ** (stages - stage)] * 2**stage
            for cluster in range(2 ** (stage - 1)):
                inside = parent[row] == cluster
                high = labels[row][inside] & 1 == (0 if _swapped(labels[row], preference[row], inside) else 1)
                assert preference[row][inside][high].min() > preference[row][inside][~high].max()


def _swapped(labels, preference, inside):
    """Whether the half that prefers bit 1 was named 0, because it holds the parent's first position."""
    half = preference[inside].median()
    return bool(preference[inside.nonzero()[0, 0]] > half)


def test_a_sequence_goes_flat_and_back():
    codes = structure_codes(torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0)))
    content = [torch.randint(0, 9, (2, 2**i)) for i in range(5)]
    sequence = GranularitySequence(codes, content)
    back = GranularitySequence.from_flat(codes, sequence.flat_content())
    assert all(torch.equal(a, b) for a, b in zip(back.content, content, strict=True))
    assert torch.equal(back.structure_map(2), codes >> 2)


@pytest.mark.parametrize("positions", [1, 3, 12, 100])
def test_a_number_of_positions_that_is_no_power_of_two_is_refused(positions):
    with pytest.raises(ValueError, match="power of two"):
        structure_codes(torch.zeros(1, positions, 2))


def not_finite(value, dtype=torch.float32):
    """Latents of four positions, of which the distances of two are not finite."""
    z = torch.zeros(1, 4, 2, dtype=dtype)
    z[0, 1:3, 0] = torch.tensor([value, -value], dtype=dtype)
    return z


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_latents_without_finite_distances_are_refused(value, dtype):
    z = not_finite(1e308 if dtype == torch.float64 and value == 3e38 else value, dtype)
    with pytest.raises(ValueError, match="latents hold NaN, infinite or far too large values"):
        structure_codes(z)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_unchecked_they_count_as_0_and_leave_complete_codes(value):
    z = not_finite(value)
    codes = structure_codes(z, checked=False)
    assert torch.equal(codes.sort(dim=1).values, torch.arange(4)[None])
    assert torch.equal(codes, structure_codes(z.where(z.abs() < 1e30, 0.0)))


def test_the_greatest_latents_that_are_taken_have_finite_distances():
    for width in (1, 3, 32):
        bound = (torch.finfo(torch.float32).max / (8 * width)) ** 0.5
        z = torch.full((1, 4, width), 0.999 * bound)
        z[0, 1::2] *= -1.0
        distances = granularity.pairwise_distances(z)
        assert (distances.isfinite() | torch.eye(4, dtype=torch.bool)).all()
        assert structure_codes(z).tolist() == [[0, 2, 1, 3]]


def test_a_matching_of_distances_that_are_not_finite_is_refused():
    with pytest.raises(ValueError, match="no greedy matching"):
        granularity.matching(torch.full((1, 4, 4), torch.inf))


@pytest.mark.parametrize("order", granularity.CHILD_ORDERS)
def test_under_torch_compile_the_clustering_is_one_operation_of_one_graph(order):
    torch._dynamo.reset()
    z = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0)).round()
    whole = torch.compile(structure_codes, dynamic=False, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(z, order, checked=False), structure_codes(z, order))


def test_unchecked_nothing_of_the_clustering_is_read_from_the_device():
    """The meta device has no numbers: reading one raises there. (The kernel: tests/test_pairing_kernel.py.)"""
    z = torch.empty(3, 16, 4, device="meta")
    assert structure_codes(z, checked=False).shape == (3, 16)
    with pytest.raises((RuntimeError, NotImplementedError)):
        structure_codes(z)


# ---- names of children ----


def test_merge_names_are_those_of_the_sequential_matching():
    rng = torch.Generator().manual_seed(0)
    for positions, samples in ((4, 100), (8, 100), (16, 100), (64, 10)):
        for z in (
            torch.randn(samples, positions, 4, generator=rng),
            torch.randint(0, 3, (samples, positions, 2), generator=rng).float(),  # full of ties
        ):
            for row, latent in zip(structure_codes(z, "merge"), z, strict=True):
                assert torch.equal(row, sequential_codes(latent, "merge"))


def test_merge_changes_names_and_no_partition():
    z = torch.randn(5, 64, 3, generator=torch.Generator().manual_seed(0))
    raster, codes = structure_codes(z), structure_codes(z, "merge")
    assert not torch.equal(codes, raster) and torch.equal(codes.sort(dim=1).values, torch.arange(64).expand(5, 64))
    for stage in range(7):
        one, other = structure_map(raster, stage), structure_map(codes, stage)
        for a, b in zip(one, other, strict=True):  # a bijection between the labels of a stage
            assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 2**stage
    # The last split is named by position: its children are positions.
    assert torch.equal(codes & 1, raster & 1)


def test_merge_gives_bit_0_to_the_child_whose_halves_are_closer():
    z = torch.randn(5, 64, 3, generator=torch.Generator().manual_seed(1))
    codes = structure_codes(z, "merge")
    for stage in range(1, 6):
        halves = cluster_means(z, structure_map(codes, stage + 1), 2 ** (stage + 1)).unflatten(1, (-1, 2))
        apart = (halves[:, :, 0] - halves[:, :, 1]).square().sum(dim=2)  # (N, 2^i)
        assert (apart[:, 0::2] <= apart[:, 1::2] + 1e-5).all()


def test_an_unknown_order_of_children_is_refused():
    with pytest.raises(ValueError, match="'colour' is none of raster, merge"):
        structure_codes(torch.zeros(1, 4, 2), "colour")


def test_a_split_without_renaming_is_named_by_its_preference():
    preference = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    codes = torch.zeros(1, 4, dtype=torch.int64)
    assert structure_map(split_codes(codes, 1, preference, rename=False), 1).tolist() == [[1, 0, 1, 0]]
    assert structure_map(split_codes(codes, 1, preference), 1).tolist() == [[0, 1, 0, 1]]
