"""Density-peak clustering of ragged batches (Rodriguez and Laio, Science 2014, k-nearest variant).

SparseVLM merges recycled tokens with it.  The official code breaks ties between equal densities by
random noise of 1e-6; here the lower index wins, so that a result never depends on a seed.
Distances are float32 whatever the model's dtype: in half precision the densities of real tokens
collapse to a handful of values.
"""

from __future__ import annotations

import torch


def density_peaks(
    points: torch.Tensor, length: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster each row's points around its density peaks.

    Parameters
    ----------
    points : Tensor [B, N, D]
        Left-aligned points.
    length : Tensor [B] int64
        Valid points per row.
    count : Tensor [B] int64
        Clusters per row, at most ``length``; also the number of neighbours that a density averages
        over, the point itself included.

    Returns
    -------
    tuple of Tensor
        Centres [B, C] int64 (indices into the points, best first) and the cluster [B, N] int64 of
        every point; entries past ``count`` and ``length`` are meaningless.
    """
    size = points.shape[1]
    index = torch.arange(size, device=points.device)
    valid = index < length[:, None]
    pair = valid[:, :, None] & valid[:, None, :]
    points = points.float()
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / points.shape[-1] ** 0.5
    nearest = distance.masked_fill(~pair, float("inf")).sort(2).values
    averaged = (index < count[:, None])[:, None] & pair
    mean = nearest.square().masked_fill(~averaged, 0).sum(2) / count.clamp(min=1)[:, None]
    density = (-mean).exp().masked_fill(~valid, -1.0)

    other, own = density[:, None, :], density[:, :, None]
    denser = (other > own) | ((other == own) & (index[None, :] < index[:, None]))
    farthest = distance.masked_fill(~pair, 0).flatten(1).amax(1)[:, None]
    to_denser = distance.masked_fill(~(denser & pair), float("inf")).amin(2)
    separation = torch.minimum(to_denser, farthest)

    # With equal products the denser point is the peak, then the lower index.
    peak = (separation * density).masked_fill(~valid, -1.0)
    order = torch.argsort(peak, dim=1, descending=True, stable=True)
    centres = order[:, : int(count.max())] if size else order
    slot = torch.arange(centres.shape[1], device=points.device)
    to_centre = distance.gather(2, centres[:, None].expand(-1, size, -1))
    absent = slot >= count[:, None]
    assigned = to_centre.masked_fill(absent[:, None], float("inf")).argmin(2)
    # A centre belongs to itself even where another centre lies at distance 0.
    own_cluster = torch.where(absent, assigned.gather(1, centres), slot.expand_as(centres))
    return centres, assigned.scatter(1, centres, own_cluster)


def cluster_means(
    points: torch.Tensor, length: torch.Tensor, assigned: torch.Tensor, clusters: int
) -> torch.Tensor:
    """Return [B, clusters, D] float32: the plain mean of each cluster's members.

    The denominator has the official code's 1e-6 added; an empty cluster is zero.
    """
    index = torch.arange(points.shape[1], device=points.device)
    member = torch.nn.functional.one_hot(assigned, clusters).float()
    member = member * (index < length[:, None])[..., None]
    weight = member / (member.sum(1, keepdim=True) + 1e-6)
    return weight.transpose(1, 2) @ points.float()
