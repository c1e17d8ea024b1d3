"""experiments/few_step_rivals: each rival trained for a step or two and sampled, and its formulas."""

import pytest
import torch

import nvg
from experiments.few_step_rivals import __main__ as table
from experiments.few_step_rivals.data import Tokens
from experiments.few_step_rivals.measures import boundaries, drawn, structure_errors
from experiments.few_step_rivals.samplers import (
    SCHEDULES,
    bit_logits,
    bit_split,
    flow_times,
    integrate,
    unknown_channels,
    velocity_of_rows,
)
from experiments.few_step_rivals.training import trained, untrained
from nvg.artifacts.models import sampler_folder
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference
from nvg.generator.structure import signed_bits
from nvg.granularity import last_stage, structure_codes, structure_map
from tests.support.threads import one_thread

__all__ = ["one_thread"]

pytestmark = pytest.mark.slow  # a finished experiment: each rival is trained and drawn
IMAGES, POSITIONS, LAST = 12, 16, 4
VARIANTS = {variant.name: variant for variant in table.variants()}


@pytest.fixture(scope="module")
def teacher():
    return nvg.load("fashion-mnist")


@pytest.fixture(scope="module")
def tokens(teacher):
    rng = torch.Generator().manual_seed(0)
    codes = structure_codes(torch.randn(IMAGES, POSITIONS, 16, generator=rng))
    content = torch.randint(1024, (IMAGES, 2 * POSITIONS - 1), generator=rng)
    return Tokens.of(teacher, codes, content, torch.arange(IMAGES) % 10)


def rows(tokens):
    """Every image at one of the stages 1 ... 3."""
    image = torch.arange(IMAGES)
    return tokens.inputs(image, image % (LAST - 1) + 1)


def test_rows_of_mixed_stages_are_calls_of_one_stage_each(teacher, tokens):
    inputs, z, time = rows(tokens), torch.randn(IMAGES, POSITIONS, LAST), torch.rand(IMAGES)
    with torch.no_grad():
        together = velocity_of_rows(teacher.structure, z, time, inputs)
        for row in range(IMAGES):
            one = tuple(value[row : row + 1] for value in inputs)
            alone = velocity_of_rows(teacher.structure, z[row : row + 1], time[row : row + 1], one)
            torch.testing.assert_close(together[row : row + 1], alone)


def test_euler_at_even_times_is_the_samplers_own_flow(teacher):
    rival = table.sampler_of(VARIANTS["teacher, euler, 2 guided"], teacher, teacher.structure)
    images = teacher.generate([0, 3, 8], seed=5, flow_steps=2, flow_shift=0.0)
    assert (rival.generate([0, 3, 8], seed=5) == images).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_fall_from_one_to_zero(name):
    times = torch.tensor(flow_times(4, name))
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_have_their_order_and_leave_known_channels_alone(tokens, solver, order):
    inputs = rows(tokens)
    noise = torch.randn(IMAGES, POSITIONS, LAST)
    unknown = unknown_channels(inputs[2], LAST)

    def error(steps):
        """Of dz/dt = z, whose z(0) is z(1) / e."""
        z = integrate(lambda z, time: z, noise, inputs, flow_times(steps), solver)
        torch.testing.assert_close(z.where(~unknown, 0.0), signed_bits(inputs[3], inputs[2] - 1).where(~unknown, 0.0))
        return float(((z - noise / torch.e) * unknown).abs().max())

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", ["shortcut", "bits", "reflow", "meanflow"])
def test_a_rival_trains_and_every_variant_of_it_draws(teacher, tokens, name):
    before = untrained(name, teacher.structure).state_dict()
    network = trained(name, teacher, tokens, 2, paired=4)
    moved = [key for key, value in network.state_dict().items() if not value.equal(before[key])]
    assert any(key.startswith("backbone") for key in moved)
    for variant in VARIANTS.values():
        if variant.network == name:
            images, codes = drawn(table.sampler_of(variant, teacher, network), 3, images=True, **variant.settings)
            assert images.shape == (3, 32, 32, 1)
            assert codes.sort(dim=1).values.equal(torch.arange(POSITIONS).expand(3, -1))  # all halves were equal


def test_bits_know_what_is_decided_and_not_what_is_not(teacher, tokens):
    canvas, labels, stage, codes = rows(tokens)
    decided = torch.rand(IMAGES, POSITIONS) < 0.5
    other = codes ^ ((1 << (LAST - stage))[:, None] * ~decided)  # other bits where they are undecided

    def logits(codes, decided):
        with torch.no_grad():
            return bit_logits(labels, canvas, stage, codes, decided, network=teacher.structure)

    assert logits(codes, decided).equal(logits(other, decided))
    assert not logits(codes, decided).equal(logits(codes, torch.zeros_like(decided)))


@pytest.mark.parametrize("rounds", [1, 3])
def test_bits_halve_every_cluster_in_any_number_of_rounds(teacher, tokens, rounds):
    for stage in range(1, LAST):
        inputs = tokens.inputs(torch.arange(IMAGES), torch.full((IMAGES,), stage))
        parents = structure_map(inputs[3], stage - 1) << (LAST + 1 - stage)
        one = torch.ones(IMAGES)
        with torch.no_grad():
            codes = bit_split(
                teacher.structure, stage, (*inputs[:3], parents), 2 * one, one, list(range(IMAGES)), rounds=rounds
            )
        assert (codes >> (LAST + 1 - stage)).equal(parents >> (LAST + 1 - stage))
        sizes = torch.stack([row.bincount(minlength=2**stage) for row in codes >> (LAST - stage)])
        assert (sizes == POSITIONS >> stage).all()


def test_structure_errors_are_zero_for_the_same_maps_and_see_a_boundary_elsewhere():
    across = torch.arange(POSITIONS)[None] // 8 << 3  # stage 1: upper and lower half
    down = torch.arange(POSITIONS)[None] % 4 // 2 << 3  # left and right half
    assert last_stage(POSITIONS) == LAST
    assert boundaries(across)[0, 0].sum() == 4
    label = torch.zeros(1, dtype=torch.int64)
    assert structure_errors(across, label, across, label) == {"boundary": 0.0, "edges": 0.0}
    found = structure_errors(across, label, down, label)
    assert found["boundary"] == 0.0 and found["edges"] == pytest.approx(8 / 24)


def test_a_row_is_measured_once_and_kept(teacher, tmp_path):
    folder = sampler_folder("fashion-mnist")
    rng = torch.Generator().manual_seed(0)
    codes = structure_codes(torch.randn(200, POSITIONS, 16, generator=rng))
    content = torch.randint(1024, (200, 2 * POSITIONS - 1), generator=rng)
    encoded = {"codes": codes, "content": content, "labels": torch.arange(200) % 10}
    bench = table.Bench(
        tmp_path,
        steps=2,
        samples=20,
        teacher=teacher,
        classifier=NetworkFile("classifier", f"{folder}/classifier.safetensors").load(),
        reference=load_reference(f"{folder}/reference.safetensors"),
        encoded={"train": encoded, "test": encoded},
    )
    cells = bench.row(VARIANTS["shortcut, 1"])
    assert len(cells) == len(table.HEAD) == len(bench.floor()) and cells[:3] == ["shortcut, 1", "1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shortcut-2.safetensors", "shortcut_1-2-20.json"]
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert bench.row(VARIANTS["shortcut, 1"]) == cells
