"""The whole sampler against the released one, with the published settings: maps and tokens equal at every stage."""

import pytest
import torch

from nvg.config import SamplerConfig
from nvg.generator import Sampler, noise
from nvg.granularity import split_codes, structure_map
from tests.release import ours, recipe

# 25 steps of seven flows, with guidance, on 256 positions: 15 s each run.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rotation")]

SETTINGS = SamplerConfig(
    flow_steps=25,
    flow_shift=0.5,
    structure_guidance=2.5,
    content_guidance=3.5,
    top_p=0.5,
    structure_temperature=0.0,
)


class Released(Sampler):
    """Ours with the released system's last split, by the noise, where ours names the two positions in raster order.

    It keeps the logits that tokens are drawn from, the ends of the flows, and our own last split.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.logits, self.flow_ends, self.last_split = [], [], None

    def _sample_structure(self, stage, state):
        codes = super()._sample_structure(stage, state)
        if stage < self.last_stage:
            return codes
        self.last_split = codes
        return split_codes(state.codes, stage, state.noise[..., -1], rename=False)

    def _integrate(self, stage, state):
        z = super()._integrate(stage, state)
        self.flow_ends.append(z[..., stage - 1])
        return z

    def _logits(self, stage, state, guidance):
        self.logits.append(super()._logits(stage, state, guidance))
        return self.logits[-1]


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("sampler")


@pytest.fixture
def sampler(generators):
    return Released(ours.tokenizer(), *generators, SETTINGS, [str(label) for label in range(ours.NO_CLASS)])


def drawn(sampler, golden, uniform, monkeypatch):
    """The stages of a run whose random numbers are the golden ones."""
    numbers = {noise.FLOW: golden["noise"], noise.HALVING: torch.full((2, 256), 0.5)}

    def draw(seeds, stage, purpose, shape, distribution):
        found = uniform[:, 2**stage - 1 : 2 ** (stage + 1) - 1] if purpose == noise.CONTENT else numbers[purpose]
        assert found.shape == (2, *shape)
        return found.clone()

    monkeypatch.setattr(noise, "draw", draw)
    return list(sampler.stages(golden["labels"].tolist()))


@pytest.mark.parametrize("run", ["argmax", "nucleus"])
def test_every_stage_is_the_released_samplers(run, sampler, golden, monkeypatch):
    """Maps and tokens equal; canvases, the halvings' preferences and the guided logits to rounding."""
    before = []  # z of image 0 before each step of the flow that makes stage 3
    handle = sampler.structure.register_forward_pre_hook(
        lambda network, inputs: before.append(inputs[0][0][0].clone()) if inputs[5][0] == 3 else None
    )
    uniform = golden["uniform"] if run == "nucleus" else torch.zeros(2, 511)  # 0: the likeliest code
    steps = drawn(sampler, golden, uniform, monkeypatch)
    handle.remove()
    for stage, step in enumerate(steps):
        assert torch.equal(structure_map(step.sequence_codes, stage), golden[f"{run}.maps"][:, stage].long()), stage
        tokens = golden[f"{run}.tokens"][:, 2**stage - 1 : 2 ** (stage + 1) - 1]
        assert torch.equal(step.content[stage], tokens.long()), stage
    torch.testing.assert_close(steps[-1].canvas, golden[f"{run}.final"], rtol=0, atol=2e-6)
    preferences = torch.stack(sampler.flow_ends, dim=1)  # of stages 1 ... 7; stage 8 has the noise
    torch.testing.assert_close(preferences, golden[f"{run}.preferences"][:, :-1], rtol=0, atol=5e-6)
    if run == "argmax":
        torch.testing.assert_close(torch.cat(sampler.logits, dim=1), golden["argmax.logits"], rtol=0, atol=2e-4)
        torch.testing.assert_close(torch.stack(before), golden["trajectory"], rtol=0, atol=5e-6)

    # Our last split makes the same pairs, and names the first position of two in raster order 0.
    assert torch.equal(sampler.last_split >> 1, steps[-1].sequence_codes >> 1)
    pairs = sampler.last_split.argsort(dim=1).unflatten(1, (128, 2))
    assert (pairs[..., 0] < pairs[..., 1]).all() and not torch.equal(sampler.last_split, steps[-1].sequence_codes)
