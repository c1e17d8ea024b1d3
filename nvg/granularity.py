"""The granularity sequence: equal-size clusterings of a latent grid, coarse to fine. Pure tensor functions.

Words and shapes (docs/method.md): a latent Z is (N, L, e) with L = 2^K positions in raster order. Stage i = 0 ... K has
2^i clusters of L / 2^i positions. The structure code of a position is a K-bit number whose top i bits are its cluster
at stage i, so one (N, L) integer tensor holds the structure maps of all stages. Everything runs on CPU and CUDA alike,
in batched steps, and is a function of each sample alone: batch mates never change a result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def last_stage(positions: int) -> int:
    """K = log2 L. Raises ValueError when L is no power of two of at least 2."""
    if positions < 2 or positions & (positions - 1):
        raise ValueError(f"{positions} positions: clusters are halved at every stage, so L must be a power of two >= 2")
    return positions.bit_length() - 1


@dataclass(frozen=True)
class GranularitySequence:
    """All stages of N images: {(c_i, s_i)}, i = 0 ... K.

    codes: (N, L) int64 structure codes. content: K + 1 tensors, stage i (N, 2^i) int64 codebook indices.
    """

    codes: Tensor
    content: list[Tensor]

    @property
    def last_stage(self) -> int:
        """The last stage's number, K. Stages are 0 ... K."""
        return last_stage(self.codes.shape[1])

    def structure_map(self, stage: int) -> Tensor:
        """s_i, (N, L) int64 in [0, 2^i)."""
        return structure_map(self.codes, stage)

    def flat_content(self) -> Tensor:
        """The content of all stages side by side, coarse to fine: (N, 2L - 1)."""
        return torch.cat(self.content, dim=1)

    @staticmethod
    def from_flat(codes: Tensor, flat_content: Tensor) -> GranularitySequence:
        """The inverse of `flat_content`: codes (N, L), flat_content (N, 2L - 1)."""
        stage_count = last_stage(codes.shape[1]) + 1
        if flat_content.shape[1] != 2**stage_count - 1:
            raise ValueError(f"{flat_content.shape[1]} content tokens do not fit {codes.shape[1]} positions")
        return GranularitySequence(codes, list(flat_content.split([2**i for i in range(stage_count)], dim=1)))

    def __getitem__(self, rows: slice | Tensor) -> GranularitySequence:
        """The sequences of some of the images."""
        return GranularitySequence(self.codes[rows], [tokens[rows] for tokens in self.content])


# ---- structure: greedy pairing, bottom-up (docs/method.md, section 1) ----


CHILD_ORDERS = ("raster", "merge")


def structure_codes(latents: Tensor, child_order: str = "raster", *, checked: bool = True) -> Tensor:
    """Structure codes of latents by greedy matching: (N, L, e) float -> (N, L) int64, stage 1 in the top bit.

    From K down to 1: pair the clusters greedily by least l2 distance of their features, merge each pair, its feature
    the mean. Ties go to the lower indices, and of a pair the lower index gets bit 0. child_order says how merged
    clusters are numbered, and so which child that is. raster: by their first position; bit 0 is the child that holds
    the parent's first position, and the code is a function of the partition. merge: in the order in which greedy
    matching takes the pairs; bit 0 is the child whose own halves are closer to each other. The last split has raster
    names in both, for its children are positions. Distances are taken in float32 or wider. Raises ValueError when L is
    no power of two, the order is none of CHILD_ORDERS, or a distance is not finite (a NaN has no nearest neighbour).
    To look at that, the host waits for the device; a training looks at its loss in any case. checked=False: numbers
    without finite distances count as 0, and nothing waits.
    """
    if child_order not in CHILD_ORDERS:
        raise ValueError(f"child order {child_order!r} is none of {', '.join(CHILD_ORDERS)}")
    last_stage(latents.shape[1])
    values = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
    # A distance is at most 4 e m^2, m the greatest magnitude; the other half is for rounding.
    bound = (torch.finfo(values.dtype).max / (8 * values.shape[2])) ** 0.5
    if not checked:
        values = torch.where(values.abs() <= bound, values, 0.0)
    elif not all(abs(end) <= bound for end in torch.stack(values.aminmax()).tolist()):
        raise ValueError("latents hold NaN, infinite or far too large values: their nearest neighbours are not defined")
    return torch.ops.nvg.structure_codes(values, child_order == "merge")


def _structure_codes(features: Tensor, merge: bool) -> Tensor:
    """The operation behind `structure_codes`: (N, L, e) float32 or wider, with finite distances -> (N, L) int64."""
    samples, positions, _ = features.shape
    codes = torch.zeros(samples, positions, dtype=torch.int64, device=features.device)
    cluster = torch.arange(positions, device=features.device).expand(samples, positions)  # of each position, now
    for bit in range(last_stage(positions)):  # bit 0 is stage K, the last split
        partner, distances = greedy_partners(features)  # (N, n), (N, n, n)
        index = torch.arange(partner.shape[1], device=features.device).expand_as(partner)
        lower = torch.minimum(index, partner)
        # The number of each one's pair, in raster order of the merged clusters: of their lower indices.
        merged = (index < partner).cumsum(1).sub_(1).gather(1, lower)  # (N, n)
        first = torch.empty_like(merged[:, ::2]).scatter_(1, merged, lower)  # (N, n/2), by number
        if merge:  # pairs of equal distance keep their order
            apart = distances.gather(2, partner[..., None])[..., 0]
            order = apart.gather(1, first).sort(dim=1, stable=True).indices
            first, merged = first.gather(1, order), positions_of_codes(order).gather(1, merged)
        codes |= (index > partner).gather(1, cluster).long() << bit
        cluster = merged.gather(1, cluster)
        features = (take(features, first) + take(features, partner.gather(1, first))) / 2
    return codes


# One operation for torch.compile, whose graphs need not break at its rounds, and whose code does not round otherwise.
_LIBRARY = torch.library.Library("nvg", "DEF")
_LIBRARY.define("structure_codes(Tensor features, bool merge) -> Tensor")
_LIBRARY.impl("structure_codes", _structure_codes, "CompositeExplicitAutograd")


@torch.library.register_fake("nvg::structure_codes", lib=_LIBRARY)
def _shape_of_codes(features: Tensor, merge: bool) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.int64)


def greedy_partners(features: Tensor) -> tuple[Tensor, Tensor]:
    """The matching of the greedy rule "take the closest pair, take it out, go on", by squared l2 distance.

    features: (N, n, e), n even, with finite distances (on a GPU n is a power of two). Returns each item's partner,
    (N, n) int64, and the distances (N, n, n), infinite on the diagonal: the same on every device to the last bit.
    """
    if features.is_cuda:
        from nvg.pairing_kernel import kernel_partners

        return kernel_partners(features)
    distances = pairwise_distances(features)
    return matching(distances), distances


def take(values: Tensor, index: Tensor) -> Tensor:
    """Some of each sample's rows: (N, n, e), index (N, m) in [0, n) -> (N, m, e)."""
    samples, count, _ = values.shape
    first = torch.arange(0, samples * count, count, device=index.device)[:, None]  # of each sample
    # A whole row at once: gather would look an index up for each of its numbers.
    return values.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, (samples, -1))


def pairwise_distances(features: Tensor) -> Tensor:
    """Squared l2 distances: (N, n, e) -> (N, n, n), exactly symmetric, infinite on the diagonal.

    Taken channel by channel and not by |a|^2 + |b|^2 - 2ab: that form rounds two equal distances to different
    numbers, and ties must be ties. In memory the N samples lie side by side (the result is a view of (n, n, N)): rows
    of n = 2 ... 16 are too short for vector instructions, samples are many.
    """
    samples, count, _ = features.shape
    channels = features.permute(2, 1, 0).contiguous()  # (e, n, N)
    distances = features.new_zeros(count, count, samples)
    for channel in channels:
        distances += (channel[:, None] - channel[None]).square_()
    distances.diagonal(dim1=0, dim2=1).fill_(torch.inf)
    return distances.permute(2, 0, 1)


def matching(distances: Tensor) -> Tensor:
    """Each item's partner in the greedy matching: symmetric finite distances (N, n, n) -> (N, n) int64.

    Rounds of mutual nearest neighbours: a pair whose members are each other's nearest among those left stays so until
    greedy reaches it, whatever greedy takes before. Ties are ordered by (distance, lower index, higher index); a row's
    nearest with ties to the lowest partner follows that same order, so each round takes exactly greedy pairs and the
    closest pair of all is always among them: at most n/2 rounds, a handful for real latents. Raises ValueError on
    distances that are not finite.
    """
    samples, count, _ = distances.shape
    left = distances.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)  # (n, n, N), as they lie in memory
    index = torch.arange(count, device=distances.device)[:, None]
    partner = torch.full((count, samples), -1, dtype=torch.int64, device=distances.device)
    for _ in range(count // 2):
        nearest = _nearest(left)  # (n, N)
        mutual = (nearest.gather(0, nearest) == index) & (partner < 0)
        partner = torch.where(mutual, nearest, partner)
        matched = partner >= 0
        if bool(matched.all()):
            return partner.T.contiguous()
        taken = torch.zeros_like(left[0]).masked_fill_(matched, torch.inf)
        left += taken[:, None]
        left += taken[None]
    raise ValueError("distances that are not finite have no greedy matching")


def _nearest(distances: Tensor) -> Tensor:
    """The first index of each least distance along dimension 0: (n, n, N) -> (n, N).

    Item a's candidates b are compared as unordered pairs (min(a, b), max(a, b)): the lowest b gives the lowest pair.
    Candidates at the least distance get the number n - b, others 0, and the greatest number wins: torch's own min with
    indices takes six times as long, and so do comparisons that are not into floats.
    """
    count = distances.shape[0]
    number = torch.arange(count, 0, -1, dtype=distances.dtype, device=distances.device)[:, None, None]
    numbers = distances.clone().eq_(distances.amin(dim=0)).mul_(number)
    return (count - numbers.amax(dim=0).clamp_min_(1)).long()


# ---- labels, codes and the structure embedding ----


def structure_map(codes: Tensor, stage: int) -> Tensor:
    """s_i, the top i bits of the codes: (N, L) -> (N, L) in [0, 2^i)."""
    last = last_stage(codes.shape[1])
    if not 0 <= stage <= last:
        raise ValueError(f"stage {stage} is none of 0 ... {last}")
    return codes >> (last - stage)


def codes_from_map(structure_map: Tensor, stage: int) -> Tensor:
    """Codes whose top i bits are the labels of stage i, the other bits 0: (N, L) -> (N, L)."""
    return structure_map << (last_stage(structure_map.shape[1]) - stage)


def structure_embedding(codes: Tensor, stage: int | Tensor) -> Tensor:
    """se: codes (N, L) -> (N, L, K) float32, known up to `stage`: 0 or 2 for a known bit, 1 for an unknown one.

    se_j = 2 * (floor(s / 2^(i-1-j)) mod 2) for j < i and 1 for j >= i; on codes that is bit K-1-j, whatever i.
    `stage` is one number or an (N,) tensor.
    """
    last = last_stage(codes.shape[1])
    channel = torch.arange(last, device=codes.device)
    bits = (codes[..., None] >> (last - 1 - channel)) & 1  # (N, L, K)
    known = channel < (stage.reshape(-1, 1, 1) if isinstance(stage, Tensor) else stage)
    return torch.where(known, 2.0 * bits, 1.0)


def labels_from_embedding(embedding: Tensor, stage: int) -> Tensor:
    """s = sum over j < i of se_j * 2^(i-j-2): (N, L, K) with channels j < i in {0, 2} -> (N, L) int64."""
    channel = torch.arange(stage, device=embedding.device)
    weights = 2.0 ** (stage - 2 - channel)
    return (embedding[..., :stage] * weights).sum(dim=-1).round().to(torch.int64)


# ---- clusters of a stage ----


def cluster_means(values: Tensor, structure_map: Tensor, clusters: int) -> Tensor:
    """Mean of the values over each cluster: (N, L, e), (N, L) labels in [0, clusters) -> (N, clusters, e).

    Clusters have equal sizes, so the divisor is L / clusters.
    """
    index = structure_map[..., None].expand_as(values)
    sums = values.new_zeros(values.shape[0], clusters, values.shape[2]).scatter_add(1, index, values)
    return sums * (clusters / values.shape[1])


def assign(vectors: Tensor, structure_map: Tensor) -> Tensor:
    """Each cluster's vector at its positions: (N, clusters, e), (N, L) -> (N, L, e)."""
    return vectors.gather(1, structure_map[..., None].expand(-1, -1, vectors.shape[2]))


def positions_of_codes(codes: Tensor) -> Tensor:
    """Which position has code 0, 1, ... L - 1: codes (N, L), complete, -> (N, L). In this order the positions of a
    cluster of stage i are L / 2^i neighbours."""
    position = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
    return torch.empty_like(codes).scatter_(1, codes, position)


def code_order(codes: Tensor) -> Tensor:
    """The positions in the order of their codes, those of one code in raster order: codes (N, L), of which later bits
    may be 0, -> (N, L). In this order the positions of a cluster of a known stage i are L / 2^i neighbours."""
    return codes.argsort(dim=1, stable=True)


def neighbour_means(values: Tensor, clusters: int) -> Tensor:
    """Mean over each cluster of values that stand in the order of codes: (..., L, e) -> (..., clusters, e)."""
    return values.unflatten(-2, (clusters, -1)).mean(dim=-2)


def split_codes(codes: Tensor, stage: int, preference: Tensor, *, rename: bool = True) -> Tensor:
    """Halve every cluster of stage-1 by preference, giving the codes of `stage`: the children that prefer bit 1 most.

    codes: (N, L) of which the top stage-1 bits are set. preference: (N, L) float, higher = rather bit 1. Equal halves
    exactly; ties go to bit 0 for the lower position. rename: the child that holds the parent's first position is then
    named 0 (as in `structure_codes`), which changes names and not the partition; without it the preference names them.
    """
    last = last_stage(codes.shape[1])
    if not 1 <= stage <= last:
        raise ValueError(f"stage {stage} is none of 1 ... {last}: stage 0 is one cluster")
    samples, positions = codes.shape
    parent = structure_map(codes, stage - 1)
    # Order by (parent, preference, position): stable sorts, the last key first.
    by_preference = preference.sort(dim=1, stable=True).indices
    order = by_preference.gather(1, parent.gather(1, by_preference).sort(dim=1, stable=True).indices)
    size = positions >> (stage - 1)
    upper = (torch.arange(positions, device=codes.device) % size >= size // 2).to(torch.int64).expand_as(codes)
    bit = torch.zeros_like(codes).scatter(1, order, upper)
    if not rename:
        return codes | (bit << (last - stage))
    # Name the halves: where the parent's first position has bit 1, swap.
    position = torch.arange(positions, device=codes.device).expand_as(codes)
    first = torch.full((samples, 2 ** (stage - 1)), positions, dtype=torch.int64, device=codes.device)
    first = first.scatter_reduce(1, parent, position, "amin")  # (N, 2^(i-1))
    swap = bit.gather(1, first).gather(1, parent)
    return codes | ((bit ^ swap) << (last - stage))


def raster_codes(codes: Tensor, stage: int) -> Tensor:
    """The same clusters of stages 1 ... `stage` by their raster names: codes (N, L) -> (N, L), the later bits 0."""
    last = last_stage(codes.shape[1])
    renamed = torch.zeros_like(codes)
    for split in range(1, stage + 1):
        renamed = split_codes(renamed, split, ((codes >> (last - split)) & 1).float())
    return renamed
