"""The matching on a GPU against the plain one. Without a GPU, Triton's interpreter runs the kernel on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nvg import granularity

triton = pytest.importorskip("triton")

# In a process of its own: Triton reads TRITON_INTERPRET as it is imported.
SCRIPT = """
import json
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from nvg import granularity, pairing_kernel
from nvg.pairing_kernel import kernel_partners

plain_partners = granularity.greedy_partners
pairing_kernel.TILE = 64  # several tiles a latent, as 256 positions have
rng = torch.Generator().manual_seed(0)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def latents(kind, samples, positions, width):
    values = torch.randn(samples, positions, width, generator=rng)
    return {"random": values, "ties": values.round(), "constant": torch.zeros_like(values)}[kind]


def pairs_and_codes(kind, samples, positions, width):
    z = latents(kind, samples, positions, width)
    found = []
    for partners in (plain_partners, kernel_partners):
        granularity.greedy_partners = partners
        found.append([*partners(z), *(granularity.structure_codes(z, order) for order in granularity.CHILD_ORDERS)])
    return [kind, samples, positions, all(map(torch.equal, *found))]


def operations(positions):
    z = latents("random", 1, positions, 3)
    found = {}
    for name, partners in (("plain", plain_partners), ("kernel", kernel_partners)):
        granularity.greedy_partners = partners
        with Operations() as seen:
            granularity._structure_codes(z, False)
        found[name] = seen.names
    return found


sizes = [(2, 2, 1), (4, 4, 3), (2, 16, 3)]
cases = [(kind, *size) for size in sizes for kind in ("random", "ties", "constant")]
print(json.dumps({
    "equal": [pairs_and_codes(*case) for case in [*cases, ("ties", 1, 32, 8), ("random", 1, 32, 4)]],
    "float64": bool(torch.equal(
        *(partners(torch.full((2, 16, 3), 0.1, dtype=torch.float64).cumsum(1))[0]
          for partners in (plain_partners, kernel_partners)))),
    "operations": operations(16),
}))
"""


@pytest.fixture(scope="module")
def interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_the_kernel_gives_the_plain_pairs_distances_and_codes_to_the_last_bit(interpreted):
    assert len(interpreted["equal"]) == 11 and interpreted["float64"]
    for kind, samples, positions, same in interpreted["equal"]:
        assert same, f"{samples} latents of {positions} positions, {kind}"


@pytest.mark.slow
def test_a_level_is_a_few_launches_and_no_wait_whatever_the_rounds(interpreted):
    """16 positions: 4 levels. The interpreter's own copies are no launches, and the kernel is one each."""
    plain, kernel = interpreted["operations"]["plain"], interpreted["operations"]["kernel"]
    waits = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default", "aten.item.default"}
    assert waits & set(plain) and not waits & set(kernel)
    launches = [name for name in kernel if not name.startswith(("aten.set_.", "aten.copy_."))]
    assert len(launches) <= 4 * 23 + 2 < len(plain) / 3


@pytest.mark.parametrize("count", [2, 16, 256])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_a_gpu_with_its_barriers_and_without_fused_multiply_add(count, capability):
    """A fused multiply-add rounds once where the plain form rounds twice: other distances, and ties that are none."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nvg.pairing_kernel import launch_options, match

    names = {"channels": "*fp32", "distances": "*fp32", "nearest": "*i32", "partner": "*i64", "width": "i32"}
    constants, options = launch_options(count)
    signature = names | dict.fromkeys(constants, "constexpr")
    source = ASTSource(match, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    code, fused = (
        triton.compile(source, target=target, options=options | fusion).asm["ptx"]
        for fusion in ({}, {"enable_fp_fusion": True})
    )
    assert "fma.rn" not in code and "fma.rn" in fused
    assert code.count("bar.sync") >= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("order", granularity.CHILD_ORDERS)
@pytest.mark.parametrize("positions", [2, 16, 64, 256, 1024])
def test_codes_on_a_gpu_are_those_of_the_cpu_and_nothing_waits(order, positions):
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(33, positions, 7, generator=rng)
    for z in (values, values.round(), torch.zeros_like(values)):
        there = z.cuda()
        granularity.structure_codes(there, order)  # the kernel is compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            codes = granularity.structure_codes(there, order, checked=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(codes.cpu(), granularity.structure_codes(z, order))
