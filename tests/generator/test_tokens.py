"""Cluster tokens against plain loops over clusters and positions, and what holds of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nvg.generator import ContentGenerator, StructureGenerator
from nvg.generator.rope import (
    CLASS,
    CONDITION,
    GENERATED,
    axis_widths,
    class_token_ids,
    cluster_ids,
    rotary_table,
    token_ids,
)
from nvg.generator.tokens import PositionNetwork, cluster_tokens
from nvg.granularity import code_order, structure_codes, structure_embedding, structure_map
from tests.support.generators import awake, content_at, content_config, structure_at, structure_config

GRID, LAST, WIDTH, CODE_WIDTH, IMAGES = 4, 4, 24, 6, 3
POSITIONS = GRID**2


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def codes(rng):
    return structure_codes(torch.randn(IMAGES, POSITIONS, 8, generator=rng))


def clusters_of(codes, stage):
    """Of each image, of each cluster: its positions, from the bits of their codes."""
    return [
        [[p for p in range(POSITIONS) if int(row[p]) >> (LAST - stage) == cluster] for cluster in range(2**stage)]
        for row in codes
    ]


@pytest.mark.parametrize("stage", range(LAST + 1))
@pytest.mark.parametrize("kind", [GENERATED, CONDITION])
def test_ids_of_a_cluster_are_its_kind_the_bits_of_its_number_and_its_middle(stage, kind, codes):
    expected = []
    for image in clusters_of(codes, stage):
        rows = []
        for number, members in enumerate(image):
            bits = [2.0 * int(bit) for bit in f"{number:b}".zfill(stage)] if stage else []
            unknown = [1.0] * (LAST - stage)
            row = sum(p // GRID for p in members) / len(members)
            column = sum(p % GRID for p in members) / len(members)
            rows.append([float(kind), *bits, *unknown, row, column])
        expected.append(rows)
    found = cluster_ids(kind, stage, code_order(codes), GRID)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("stage", range(LAST + 1))
def test_a_cluster_has_the_structure_ids_of_its_positions(stage, codes):
    """The source's ids of a position, known up to the stage, are those of its cluster but for row and column."""
    of_positions = token_ids(GENERATED, structure_embedding(codes, stage), GRID)
    of_clusters = cluster_ids(GENERATED, stage, code_order(codes), GRID)
    labels = structure_map(codes, stage)
    for image in range(IMAGES):
        assert torch.equal(of_clusters[image, labels[image], :-2], of_positions[image, :, :-2])


def test_tables_of_a_generator_of_clusters_are_class_clusters_and_positions(codes):
    content = ContentGenerator(content_config(1, GRID, "clusters"))
    structure = StructureGenerator(structure_config(2, GRID, "clusters"))
    first, order = class_token_ids(IMAGES, LAST, codes.device), code_order(codes)
    assert set(first.flatten().tolist()) == {float(CLASS)}
    widths = axis_widths(LAST)
    for stage in range(LAST + 1):
        ids = torch.cat((first, cluster_ids(GENERATED, stage, order, GRID)), dim=1)
        assert torch.equal(content.rotary(codes, stage), rotary_table(ids, widths))
    for stage in range(1, LAST):
        canvas = cluster_ids(CONDITION, stage - 1, order, GRID)
        generated = token_ids(GENERATED, structure_embedding(codes, stage - 1), GRID)
        ids = torch.cat((first, canvas, generated), dim=1)
        assert torch.equal(structure.rotary(codes, stage), rotary_table(ids, widths))


def test_tokens_are_the_mean_canvas_embedded_and_the_mean_network_of_its_positions(codes, rng):
    embed, network = nn.Linear(CODE_WIDTH, WIDTH), PositionNetwork(POSITIONS, CODE_WIDTH, WIDTH)
    stages = [0, 1, 3, 4]
    canvases = list(torch.randn(len(stages), IMAGES, POSITIONS, CODE_WIDTH, generator=rng))
    found = cluster_tokens(embed, network, canvases, code_order(codes), [2**stage for stage in stages])
    order = code_order(codes)
    ordered = [torch.stack([one[index] for one, index in zip(canvas, order, strict=True)]) for canvas in canvases]
    means = network.means(ordered, order, [2**stage for stage in stages])
    for stage, canvas, tokens, mean in zip(stages, canvases, found, means, strict=True):
        assert tokens.shape == (IMAGES, 2**stage, WIDTH)
        for image, clusters in enumerate(clusters_of(codes, stage)):
            for number, members in enumerate(clusters):
                of_network = [network.out(F.silu(network.canvas(canvas[image, p]) + network.place[p])) for p in members]
                expected = torch.stack(of_network).mean(dim=0)
                torch.testing.assert_close(mean[image, number], expected)
                plain = embed(torch.stack([canvas[image, p] for p in members]).mean(dim=0))
                torch.testing.assert_close(tokens[image, number], plain + expected)


def test_of_single_positions_the_network_is_what_it_gives_each_of_them(codes, rng):
    network = PositionNetwork(POSITIONS, CODE_WIDTH, WIDTH)
    canvas = torch.randn(IMAGES, POSITIONS, CODE_WIDTH, generator=rng)
    order = code_order(codes)
    ordered = torch.stack([one[index] for one, index in zip(canvas, order, strict=True)])
    (means,) = network.means([ordered], order, [POSITIONS])
    expected = torch.stack([one[index] for one, index in zip(network(canvas), order, strict=True)])
    torch.testing.assert_close(means, expected)


def test_at_the_last_stage_clusters_are_the_positions_in_the_order_of_their_codes(codes, rng):
    """A cluster is one position there: both forms have the same tokens and ids, and so compute the same."""
    of_positions = awake(ContentGenerator(content_config(2, GRID, "position network")))
    of_clusters = awake(ContentGenerator(content_config(2, GRID, "clusters")))
    of_clusters.load_state_dict(of_positions.state_dict())
    canvas, labels = torch.randn(IMAGES, POSITIONS, 32, generator=rng), torch.arange(IMAGES)
    (first,), _ = content_at(of_positions, [LAST], [canvas], codes, labels)
    (second,), _ = content_at(of_clusters, [LAST], [canvas], codes, labels)
    for image in range(IMAGES):
        torch.testing.assert_close(second[image, codes[image]], first[image])
    logits = (model.logits(one, codes, LAST) for model, one in ((of_positions, first), (of_clusters, second)))
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_positions_of_a_cluster_may_change_places_with_all_that_belongs_to_them(stage, codes, rng):
    """Canvas, codes and the learned vector of the place go along: a cluster knows its positions by nothing else but
    their mean row and column, which stay. (Their codes differ in later bits alone.)"""
    content = awake(ContentGenerator(content_config(2, GRID, "clusters")))
    one, canvas, label = codes[:1], torch.randn(1, POSITIONS, 32, generator=rng), torch.tensor([1])
    moved = torch.arange(POSITIONS)
    for members in clusters_of(one, stage)[0]:
        moved[members] = torch.tensor(members)[torch.randperm(len(members), generator=rng)]
    assert not torch.equal(moved, torch.arange(POSITIONS))
    (before,), _ = content_at(content, [stage], [canvas], one, label)
    (half,), _ = content_at(content, [stage], [canvas[:, moved]], one[:, moved], label)
    assert (half - before).abs().max() > 1e-3  # the places of the canvas matter
    content.position_network.place.data = content.position_network.place.data[moved]
    (after,), _ = content_at(content, [stage], [canvas[:, moved]], one[:, moved], label)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_other_names_of_the_clusters_name_the_same_tokens(stage, codes, rng):
    embed, network = nn.Linear(CODE_WIDTH, WIDTH), PositionNetwork(POSITIONS, CODE_WIDTH, WIDTH)
    canvas = torch.randn(IMAGES, POSITIONS, CODE_WIDTH, generator=rng)
    names = torch.randperm(2**stage, generator=rng)
    renamed = names[structure_map(codes, stage)] << (LAST - stage)
    (before,), (after,) = (
        cluster_tokens(embed, network, [canvas], code_order(some), [2**stage]) for some in (codes, renamed)
    )
    torch.testing.assert_close(after[:, names], before)


def test_the_mean_of_a_cluster_tells_its_shape_through_the_network_alone(rng):
    """Two halves of the grid with one middle and one mean canvas: rows 0 and 3, or rows 1 and 2."""
    rows = torch.arange(POSITIONS) // GRID
    outer = ((rows == 0) | (rows == 3)).long()[None] << (LAST - 1)
    inner = 8 - outer  # the other way round: 0 <-> 1
    canvas, label = torch.ones(1, POSITIONS, 32), torch.tensor([1])
    content = awake(ContentGenerator(content_config(2, GRID, "clusters")))

    def differences():
        return [content_at(content, [1], [canvas], some, label)[0][0] for some in (outer, inner)]

    assert torch.equal(content.rotary(outer, 1), content.rotary(inner, 1))
    first, second = differences()
    assert (first - second).abs().max() > 1e-3
    content.position_network.place.data.zero_()
    torch.testing.assert_close(*differences())


def test_of_clusters_the_structure_sees_the_canvas_by_its_clusters(codes, rng):
    """What changes neither the mean canvas of a cluster nor, without the network, anything else is not seen."""
    structure = awake(StructureGenerator(structure_config(2, GRID, "clusters")))
    structure.position_network.out.weight.data.zero_()
    canvas = torch.randn(IMAGES, POSITIONS, 32, generator=rng)
    noise, times = torch.randn(IMAGES, POSITIONS, LAST, generator=rng), torch.full((IMAGES, 1), 0.5)
    labels, known = structure_map(codes, 2), torch.arange(IMAGES)
    within = torch.randn(IMAGES, POSITIONS, 32, generator=rng)
    for image in range(IMAGES):
        for cluster in range(4):
            within[image, labels[image] == cluster] -= within[image, labels[image] == cluster].mean(dim=0)

    def velocity(canvas, stage):
        return structure_at(structure, [stage], [noise], times, [canvas], codes, known)[0]

    torch.testing.assert_close(velocity(canvas + within, 3), velocity(canvas, 3), rtol=1e-4, atol=1e-4)
    assert (velocity(canvas + within.roll(1, dims=1), 3) - velocity(canvas, 3)).abs().max() > 1e-3


def test_before_the_first_step_the_network_sees_a_canvas_of_scale_one(rng):
    canvas = 5.0 * torch.randn(IMAGES, POSITIONS, 32, generator=rng)
    structure = StructureGenerator(structure_config(2, GRID, "clusters"))
    both = (structure.embed_canvas.weight, structure.position_network.canvas.weight)
    before = [weight.clone() for weight in both]
    structure.begin(canvas)
    for weight, old in zip(both, before, strict=True):
        torch.testing.assert_close(weight, old / canvas.std())
