"""The whole sampler against the released one, with the published settings: maps and tokens equal at every stage."""

import pytest
import torch

from nvg.config import SamplerConfig
from nvg.generator import Sampler
from nvg.generator import sampler as module
from nvg.granularity import split_codes, structure_map
from tests.release import ours, recipe

PUBLISHED = SamplerConfig(flow_steps=25, structure_guidance=2.5, content_guidance=3.5, top_p=0.5, flow_shift=0.5)


class Released(Sampler):
    """Ours with the released system's last split, by the noise, where ours names the two positions in raster order."""

    def _sample_structure(self, stage, state):
        if stage < self.last_stage:
            return super()._sample_structure(stage, state)
        return split_codes(state.codes, stage, state.noise[..., -1], rename=False)


class Watched(Released):
    """It keeps the logits that tokens are drawn from, and the flow's states."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def _logits(self, stage, state, guidance):
        self.seen.append(super()._logits(stage, state, guidance))
        return self.seen[-1]


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("sampler")


@pytest.fixture
def sampler(generators):
    settings = PUBLISHED.__class__(**{**vars(PUBLISHED), "structure_temperature": 0.0})
    return Watched(ours.tokenizer(), *generators, settings, [str(label) for label in range(ours.NO_CLASS)])


def drawn(sampler, golden, uniform, monkeypatch):
    """The stages of a run whose random numbers are the golden ones."""
    numbers = {module.FLOW: golden["noise"], module.HALVING: torch.full((2, 256), 0.5)}

    def draw(seeds, stage, purpose, shape, distribution):
        found = uniform[:, 2**stage - 1 : 2 ** (stage + 1) - 1] if purpose == module.CONTENT else numbers[purpose]
        assert found.shape == (2, *shape)
        return found.clone()

    monkeypatch.setattr(module, "draw", draw)
    return list(sampler.stages(golden["labels"].tolist()))


@pytest.mark.parametrize("run", ["argmax", "nucleus"])
def test_maps_tokens_and_canvases_are_the_released_samplers(run, sampler, golden, monkeypatch):
    uniform = golden["uniform"] if run == "nucleus" else torch.zeros(2, 511)  # 0: the likeliest code
    steps = drawn(sampler, golden, uniform, monkeypatch)
    for stage, step in enumerate(steps):
        assert torch.equal(structure_map(step.sequence_codes, stage), golden[f"{run}.maps"][:, stage].long()), stage
        tokens = golden[f"{run}.tokens"][:, 2**stage - 1 : 2 ** (stage + 1) - 1]
        assert torch.equal(step.content[stage], tokens.long()), stage
    torch.testing.assert_close(steps[-1].canvas, golden[f"{run}.final"], rtol=0, atol=2e-6)
    if run == "argmax":
        torch.testing.assert_close(torch.cat(sampler.seen, dim=1), golden["argmax.logits"], rtol=0, atol=2e-4)
