"""Our modules with the released system's random weights, as the small golden runs have them: d = 2, 64 codes."""

import torch

from nvg.artifacts.files import Unfilled
from nvg.autoencoder import Autoencoder, GranularityQuantizer
from nvg.config import TokenizerConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence
from nvg.released.generators import generators
from tests.release import recipe

GRID, LAST_STAGE, NO_CLASS = 16, 8, 10
BUFFERS = ("rope_ids", "scale_factors")  # which no recipe makes
# 16 x 16 latents of 64 x 64 pixels; `merge` names the halves of a sampled cluster as their preferences do.
TOKENIZER = TokenizerConfig(
    image_size=64, channels=3, widths=[16, 16, 16], blocks=1, attention=False, codebook_size=64, child_order="merge"
)


def released_state():
    """The state of the released generators, keys without their prefix `nvgformer.`."""
    shapes = recipe.keys_and_shapes("generators")
    state = recipe.weights({key: shape for key, shape in shapes.items() if key.split(".")[1] not in BUFFERS})
    state |= recipe.codebook_head()
    state["nvgformer.scale_factors"] = recipe.golden("sequences_16")["scale_factors"]
    state["nvgformer.rope_ids"] = torch.zeros(shapes["nvgformer.rope_ids"])
    return {key.removeprefix("nvgformer."): value for key, value in state.items()}


def both_generators():
    """Content and structure generator for use."""
    return built(generators(released_state(), grid=GRID))


def built(converted):
    """Modules of what `nvg.released.generators.generators` gives."""
    content_config, content, structure_config, structure = converted
    with Unfilled():
        modules = ContentGenerator(content_config), StructureGenerator(structure_config)
    for module, state in zip(modules, (content, structure), strict=True):
        module.load_state_dict(state)
        module.eval().requires_grad_(False)
    return modules


def quantizer():
    """The quantizer: phi_i(v) = v + conv_i(v) / 2 there, (v + conv_i(v)) / 2 here, so ours has the identity more."""
    ours = GranularityQuantizer(TOKENIZER)
    fill(ours)
    return ours


def tokenizer():
    """A tokenizer with that quantizer. Its encoder and decoder are ours, with random weights."""
    torch.manual_seed(0)
    ours = Autoencoder(TOKENIZER).eval().requires_grad_(False)
    fill(ours.quantizer)
    return ours


@torch.no_grad()
def fill(quantizer):
    quantizer.codebook.copy_(recipe.falling_codebook())
    identity = torch.nn.init.dirac_(torch.empty(32, 32, 3, 3))
    for stage, convolution in enumerate(quantizer.convolutions):
        key = f"quantize.quant_resi.{stage}"
        convolution.weight.copy_(recipe.weight(f"{key}.weight", (32, 32, 3, 3)) + identity)
        convolution.bias.copy_(recipe.weight(f"{key}.bias", (32,)))
    quantizer.requires_grad_(False)


def sequences():
    """The three images that most golden numbers are of."""
    numbers = recipe.golden("sequences_16")
    return GranularitySequence.from_flat(numbers["codes"].long(), numbers["tokens"].long())
