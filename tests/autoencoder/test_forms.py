"""Encoder and decoder under torch.compile and in bfloat16: what is fused, and what half precision does to pixels."""

import numpy as np
import pytest
import torch

import nvg
from benchmarks.autoencoder_forms import levels
from nvg.autoencoder import Autoencoder
from nvg.config import TokenizerConfig
from nvg.data.images import to_float


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_group_norm_and_silu_are_one_kernel_between_two_convolutions(part):
    """Compiled, no more kernels are generated than there are convolutions, one in front of each: norm, SiLU, skip."""
    from benchmarks.kernels import Kernels  # here: inductor takes seconds of every process that only collects tests

    torch._dynamo.reset()
    config = TokenizerConfig(image_size=16, channels=3, widths=[16, 16], blocks=1, code_width=6, attention=False)
    module = getattr(Autoencoder(config).eval(), part)
    kernels = Kernels()
    inputs = torch.randn(2, 3, 16, 16) if part == "encoder" else torch.randn(2, 6, 8, 8)
    written = torch._inductor.config.patch({"cpp.vec_isa_ok": False})  # no try of g++ on this machine's instructions
    with torch.inference_mode(), written:
        torch.compile(module, dynamic=False, fullgraph=True, backend=kernels)(inputs)
    convolutions = sum(isinstance(one, torch.nn.Conv2d) for one in module.modules())
    assert convolutions > 6
    assert kernels.launched["library"] == convolutions
    assert kernels.launched["generated"] <= convolutions + 1


@torch.inference_mode()
def test_a_decoder_in_bfloat16_would_move_pixels_by_more_than_one_level():
    """Which is why it stays in float32: if this fails, bfloat16 has become exact enough to be used."""
    sampler = nvg.load("fashion-mnist")
    tokenizer = sampler.tokenizer
    sequence = tokenizer.encode(to_float(np.asarray(sampler.generate(list(range(10))))))
    canvas = tokenizer.quantizer.canvases(sequence)[-1]
    plain = tokenizer.decode_canvas(canvas)
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.decode_canvas(canvas)
    assert 1 < levels(half, plain) <= 4
    assert levels(plain, plain) == 0
