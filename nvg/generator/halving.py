"""The structure of a stage: the flow's start and steps, and the halving of every cluster by its end."""

from __future__ import annotations

import torch
from torch import Tensor

from nvg.generator.noise import gumbel
from nvg.generator.structure import signed_bits
from nvg.granularity import assign, cluster_means, split_codes, structure_map


def flow_start(codes: Tensor, noise: Tensor, known: int) -> Tensor:
    """z(1), (N, L, K): the bits of stages 1 ... known of the codes (N, L), and of later ones the noise (N, L, K)."""
    return torch.cat((signed_bits(codes, known)[..., :known], noise[..., known:]), dim=-1)


def euler_step(z: Tensor, flow: Tensor, time: Tensor, known: int) -> Tensor:
    """z after a step of the flow, both (N, L, K), over a time (N,). Channels that are known stay clean."""
    moved = z[..., known:] + time[:, None, None] * flow[..., known:]
    return torch.cat((z[..., :known], moved), dim=-1)


def halving_preference(
    flow_end: Tensor, parents: Tensor, clusters: int, temperature: Tensor, uniform: Tensor
) -> Tensor:
    """How much each position prefers bit 1, (N, L): flow_end z (N, L), map of the parents (N, L) in [0, clusters).

    At temperature T > 0 it is log((clamp(z, -1, 1) + 1) / its sum over the parent + 1e-8) + T g, with Gumbel noise g of
    uniform (N, L); at T = 0 it is z. T is (N,).
    """
    weight = flow_end.clamp(-1.0, 1.0) + 1.0
    mean = assign(cluster_means(weight[..., None], parents, clusters), parents)[..., 0]  # of each position's parent
    share = weight / (mean * (parents.shape[1] // clusters)).clamp_min(1e-8)
    noisy = (share + 1e-8).log() + temperature[:, None] * gumbel(uniform)
    return torch.where(temperature[:, None] > 0, noisy, flow_end)


def halve(stage: int, codes: Tensor, flow_end: Tensor, temperature: Tensor, uniform: Tensor, rename: bool) -> Tensor:
    """The codes (N, L) of `stage` from those before it, by the preferences of `halving_preference`."""
    parents = structure_map(codes, stage - 1)
    preference = halving_preference(flow_end, parents, 2 ** (stage - 1), temperature, uniform)
    return split_codes(codes, stage, preference, rename=rename)
