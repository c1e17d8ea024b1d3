"""Encoder and decoder under torch.compile and in bfloat16: what is fused, and what half precision does to pixels."""

import numpy as np
import pytest
import torch

import nvg
from benchmarks.autoencoder_forms import EndInFloat32, levels
from nvg.autoencoder import Autoencoder
from nvg.autoencoder.layers import Decoder
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
    planes = canvas.transpose(1, 2).unflatten(2, (tokenizer.config.grid,) * 2)
    assert 1 < levels(EndInFloat32(tokenizer.decoder)(planes), plain) <= 4  # with its last block in float32 too
    assert levels(plain, plain) == 0


@torch.inference_mode()
def test_a_decoder_whose_end_is_in_float32_computes_what_the_decoder_does():
    """The form that benchmarks measure."""
    sizes = TokenizerConfig(image_size=16, channels=3, patch=2, widths=[16, 16], blocks=1, code_width=6, attention=True)
    decoder, canvas = Decoder(sizes).eval(), torch.randn(1, 6, 4, 4)
    mixed = EndInFloat32(decoder, 0)
    assert {one.dtype for one in mixed.start.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in mixed.end.parameters()} == {torch.float32}
    expected = decoder(canvas)
    assert mixed(canvas).dtype == torch.float32
    torch.testing.assert_close(mixed(canvas), expected, rtol=0.05, atol=0.05)
