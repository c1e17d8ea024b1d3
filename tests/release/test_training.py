"""One training step against the released one: all losses, stage by stage, and the gradients of seventeen weights."""

import pytest
import torch

from nvg.config import TrainConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.released.generators import generators
from nvg.training import generator_loss
from nvg.training.generator_loss import Generators, content_loss, structure_loss
from tests.release import ours, recipe

pytestmark = pytest.mark.slow  # whole training steps, forwards and backwards
LAST = ours.LAST_STAGE
PROJECTOR = {0: (2048, 128), 2: (2048, 2048), 4: (24, 2048)}  # of representation alignment, after block 1
GRADIENTS = {  # of weights that are only named otherwise
    "cls_head.linear.weight": "content.to_logits.weight",
    "content_blocks.0.linear2.bias": "content.backbone.blocks.0.project_out.bias",
    "content_blocks.0.norm.query_norm.scale": "content.backbone.blocks.0.query_norm.weight",
    "content_blocks.1.modulation.lin.bias": "content.backbone.blocks.1.modulation.bias",
    "content_embed.weight": "content.embed.weight",
    "content_stage_embed.weight": "content.backbone.stage_condition.weight",
    "content_start_embed": "content.start",
    "projector.4.bias": "content.align.4.bias",
    "structure_blocks.0.norm.key_norm.scale": "structure.backbone.blocks.0.key_norm.weight",
    "structure_content_cond_embed.weight": "structure.embed_canvas.weight",
    "structure_embed.weight": "structure.embed_structure.weight",
    "structure_head.linear.weight": "structure.velocity.weight",
    "structure_time_embed.in_layer.weight": "structure.backbone.time_condition.mlp.0.weight",
}


@pytest.fixture(scope="module")
def golden():
    return recipe.golden("training")


@pytest.fixture(scope="module")
def sequence(golden):
    return GranularitySequence.from_flat(golden["codes"], golden["tokens"].long())


@pytest.fixture(scope="module")
def networks():
    """Both generators in training, with the head of alignment, and no block left out."""
    content_config, content_state, structure_config, structure_state = generators(ours.released_state(), grid=ours.GRID)
    content_config.repa_block, content_config.repa_width = 1, 24
    for layer, shape in PROJECTOR.items():
        key = f"nvgformer.projector.{layer}"
        content_state[f"align.{layer}.weight"] = recipe.weight(f"{key}.weight", shape)
        content_state[f"align.{layer}.bias"] = recipe.weight(f"{key}.bias", shape[:1])
    content, structure = ContentGenerator(content_config), StructureGenerator(structure_config)
    for network, state in ((content, content_state), (structure, structure_state)):
        network.load_state_dict(state)
        for block in network.train().backbone.blocks:
            block.drop_rate = 0.0
    return content, structure


def close(found, expected, relative):
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative * float(expected.abs().max()))


@torch.no_grad()
def test_losses_of_every_stage_are_the_released_ones(networks, sequence, golden):
    content, structure = networks
    canvases, labels = ours.quantizer().canvases(sequence), golden["labels"]
    for stage in range(LAST + 1):
        terms = content_loss(content, canvases, labels, sequence, [stage], golden["alignment_targets"])
        for name in ("canvas", "cross_entropy"):
            close(terms[name], golden[f"loss.{name}"][stage], 1e-5)
        close(1 + terms["alignment"], golden["loss.alignment"][stage], 1e-5)  # theirs is 1 - cosine
        codes, table = sequence.codes, content.rotary(sequence.codes, stage)
        ((difference,), _) = content([canvases[stage]], codes, labels, torch.tensor([stage]), [table])
        logits = content.logits(difference, codes, stage)
        right = logits.argmax(dim=-1) == sequence.content[stage]
        assert right.float().mean() == golden["loss.accuracy"][stage]
    for stage in range(1, LAST):
        arguments = (canvases, labels, codes, [stage], golden["noise"], golden["times"][:, stage - 1 : stage])
        close(structure_loss(structure, *arguments)["flow"], golden["loss.structure"][stage - 1], 1e-5)


def test_times_are_logit_normal_as_the_released_ones(golden):
    torch.testing.assert_close(golden["normal"].sigmoid(), golden["times"])
    noise, times = generator_loss.draw_flow(torch.Size((2, 16)), 4, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    assert torch.equal(noise, torch.randn(2, 16, 4, generator=rng))
    assert torch.equal(times, torch.randn(3, 2, generator=rng).sigmoid().T)


def test_the_total_and_its_gradients_are_the_released_ones(networks, sequence, golden, monkeypatch):
    """With class tables that are two here and one there: their gradients are added."""
    monkeypatch.setattr(generator_loss, "draw_flow", lambda *arguments: (golden["noise"], golden["times"]))
    both = Generators(*networks, ours.quantizer(), TrainConfig(class_dropout=0.0), repa_weight=0.5)
    draws = both.draw(len(golden["labels"]), torch.Generator())
    loss, _ = both(sequence, golden["labels"], draws, golden["alignment_targets"])
    close(loss + 0.5, golden["loss.total"][0], 1e-5)  # 0.5 (1 - cosine) there, -0.5 cosine here
    loss.backward()
    found = {name: parameter.grad for name, parameter in both.named_parameters()}
    divisor = float(recipe.golden("sequences_16")["scale_factors"][-1])
    pairs = {theirs: found[name] for theirs, name in GRADIENTS.items()}
    pairs["x0_head.linear.weight"] = found["content.difference.weight"] / divisor
    pairs["structure_stage_embed.weight"] = found["structure.backbone.stage_condition.weight"][1:LAST]
    for part in ("content", "structure"):
        tables = [found[f"{part}.backbone.class_{use}.weight"] for use in ("token", "condition")]
        pairs[f"{part}_class_embed.weight"] = sum(tables)
    assert {f"grad.{theirs}" for theirs in pairs} == {name for name in golden if name.startswith("grad.")}
    for theirs, gradient in pairs.items():
        expected = golden[f"grad.{theirs}"]
        assert (gradient - expected).norm() <= 5e-5 * expected.norm(), theirs
