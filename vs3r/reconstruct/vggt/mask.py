"""From cues of motion to masks (VGGT4D, section 3.2 and 3.3): groups of alike patches, a threshold, and geometry.

The cues are normalised within every frame, so something always stands out. What counts as moving is therefore only what
also contradicts a still world: seen from where the other frames were taken, it is not where, or not of the colour that,
it should be. A window in which nothing moves has an empty mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vs3r.geometry import rigid_inverse
from vs3r.reconstruct.vggt.cues import OFFSETS, normalised, sources_of
from vs3r.types import DoubleArray

CLUSTERS = 64
_ROUNDS = 30
_BINS = 256
_MAX_CLASSES = 4
# What a still world may be off by, as a multiple of what it is off by at the median, and at least.
_NOISE = 3.0
_DEPTH_FLOOR = 0.02
_COLOUR_FLOOR = 0.06
# Share of the views that must contradict a patch and its group, on average, beyond this multiple of what contradicts
# patches that do not stand out: errors of depth and poses do so everywhere.
CONTRADICTED = 0.1
_STILL = 1.5
# Fewer of all cells than these are taken for errors.
_FEWEST = 0.003


def clusters(features: Tensor, count: int = CLUSTERS) -> Tensor:
    """k-means, the same every time.

    Args:
        features: (T, C).
        count: how many groups, where there are as many points.
    Returns:
        (T,) group of each point.
    """
    x = features.float()
    x = x - x.mean(0)
    length = x.square().sum(1)
    random = torch.Generator().manual_seed(0)

    def distance(centres: Tensor) -> Tensor:
        return (length[:, None] - 2 * x @ centres.T + centres.square().sum(1)).clamp_min(0)

    # The next centre: a point drawn with the probability of its squared distance from those there are (k-means++), as
    # the largest of distances over exponential random numbers.
    centres = x[:1]
    near = distance(centres)[:, 0]
    for _ in range(min(count, len(x)) - 1):
        luck = torch.empty(len(x)).exponential_(generator=random).to(x)
        chosen = x[(near / luck).argmax()][None]
        centres = torch.cat([centres, chosen])
        near = torch.minimum(near, distance(chosen)[:, 0])
    labels = distance(centres).argmin(1)
    for _ in range(_ROUNDS):
        # A product, because sums at indices come in any order on a GPU.
        member = F.one_hot(labels, len(centres)).to(x.dtype)
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, member.T @ x / size.clamp_min(1), centres)
        before, labels = labels, distance(centres).argmin(1)
        if torch.equal(before, labels):
            break
    return labels


def otsu_thresholds(values: DoubleArray, classes: int) -> DoubleArray:
    """Thresholds between classes of largest variance between them (Otsu 1979), over a histogram of 256 bins."""
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.concatenate([[0], np.cumsum(counts)]) / len(values)
    moment = np.concatenate([[0], np.cumsum(counts * centres)]) / len(values)
    # gain[a, b] of a class of the bins from a to before b: its share of the variance between classes.
    share = weight[None, :] - weight[:, None]
    gain = np.where(share > 0, (moment[None, :] - moment[:, None]) ** 2 / np.where(share > 0, share, 1), 0)
    gain[np.tril_indices(_BINS + 1)] = -np.inf
    best, cuts = gain[0], []
    for _ in range(classes - 1):
        total = best[:, None] + gain
        cuts.append(total.argmax(0))
        best = total.max(0)
    ends, end = [], _BINS
    for cut in reversed(cuts):
        end = int(cut[end])
        ends.append(end)
    return np.asarray(edges[ends[::-1]], np.float64)


def upper_threshold(values: DoubleArray) -> float:
    """Above it lies the highest of 2 to 4 classes, as many as differ most in their means; infinite for one value."""
    if np.ptp(values) < 1e-6:
        return float("inf")
    best, found = -1.0, float("inf")
    for classes in range(2, _MAX_CLASSES + 1):
        thresholds = otsu_thresholds(values, classes)
        labels = np.digitize(values, thresholds)
        means = [values[labels == k].mean() for k in range(classes) if (labels == k).any()]
        score = float(np.var(means)) / classes**0.5
        if score > best:
            best, found = score, float(thresholds[-1])
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Patches of a window that stand out."""

    standing_out: Tensor
    """(S, rows, cols) bool."""
    score: Tensor
    """(S, rows, cols) minus the threshold: above 0 what stands out."""
    group: Tensor
    """(S, rows, cols) group of alike patches."""


def candidates(dynamic: Tensor, features: Tensor, grid: tuple[int, int]) -> Candidates:
    """Patches that stand out with the group of patches, alike in the whole window, that they are of.

    Args:
        dynamic: (S, n) see Cues.dynamic.
        features: (S, n, C) of the patches.
        grid: rows and columns of patches.
    """
    group = clusters(features.flatten(0, 1)).view(dynamic.shape)
    member = F.one_hot(group.flatten(), CLUSTERS).to(dynamic.dtype)
    mean = member.T @ dynamic.flatten() / member.sum(0).clamp_min(1)
    score = normalised(mean[group])
    score = score - min(upper_threshold(score.flatten().double().cpu().numpy()), 2.0)
    score, group = (torch.unflatten(x, 1, grid) for x in (score, group))
    return Candidates(standing_out=score >= 0, score=score, group=group)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Geometry:
    """A window of S frames as a still world."""

    pictures: Tensor
    """(S, 3, H, W) in [0, 1]."""
    depth: Tensor
    """(S, H, W)."""
    cam_from_world: Tensor
    """(S, 4, 4) float64."""
    focal: Tensor
    """(S, 2) float64, in pixels, x first."""


def contradiction(world: Geometry, step: int) -> Tensor:
    """How far other frames contradict that what a frame sees stood still.

    Args:
        world: the window.
        step: side in pixels of the cells that are looked at, at their centres.
    Returns:
        (S, H / step, W / step) share of the frames which see that place, and see through it or see another colour at
        its depth; 0 where no frame sees it.
    """
    frames, height, width = world.depth.shape
    around = _Surroundings(world)
    checks = [
        _Check(world, around, [r for r in range(frames) if r + o in sources_of(r, frames)], o, step)
        for o in sorted({*OFFSETS, -1, 1})
        if any(r + o in sources_of(r, frames) for r in range(frames))
    ]
    votes = world.depth.new_zeros(frames, height // step, width // step)
    if not checks:
        return votes
    count = torch.zeros_like(votes)
    off = torch.cat([check.depth_off[check.in_view].abs() for check in checks])
    depth_tau = max(_DEPTH_FLOOR, _NOISE * float(off.median())) if len(off) else _DEPTH_FLOOR
    colour = torch.cat([check.colour_off[check.in_view & (check.depth_off.abs() < depth_tau)] for check in checks])
    colour_tau = max(_COLOUR_FLOOR, _NOISE * float(colour.median())) if len(colour) else _COLOUR_FLOOR
    for check in checks:
        seen = check.in_view & (check.depth_off < depth_tau)  # what is farther than something else is hidden
        through = _vote(-check.depth_off / depth_tau)
        other = _vote(check.colour_off / colour_tau) * (check.depth_off.abs() < depth_tau)
        votes[check.frames] += seen * torch.maximum(through, other)
        count[check.frames] += seen
    return votes / count.clamp_min(1)


def _vote(excess: Tensor) -> Tensor:
    """Rises softly from 0 to 1 about 1.5, as that of the hybrid mask."""
    return torch.sigmoid(4 * (excess - 1.5))


class _Surroundings:
    """The lowest and highest values around every pixel: neither depth nor poses are exact to the pixel."""

    def __init__(self, world: Geometry) -> None:
        depth, pictures = world.depth[:, None], world.pictures
        self.nearest, self.farthest = -F.max_pool2d(-depth, 3, 1, 1), F.max_pool2d(depth, 3, 1, 1)
        self.darkest, self.brightest = -F.max_pool2d(-pictures, 3, 1, 1), F.max_pool2d(pictures, 3, 1, 1)


class _Check:
    """Cells of some frames seen from the frames at an offset."""

    def __init__(self, world: Geometry, around: _Surroundings, frames: list[int], offset: int, step: int) -> None:
        others = [r + offset for r in frames]
        self.frames = frames
        _, height, width = world.depth.shape
        half, device = step // 2, world.depth.device
        y = torch.arange(half, height - height % step, step, device=device)
        x = torch.arange(half, width - width % step, step, device=device)
        centre = torch.tensor([width / 2, height / 2], device=device)
        z = world.depth[frames][:, y][:, :, x]
        place = torch.stack(torch.meshgrid(x + 0.5, y + 0.5, indexing="xy"), -1) - centre
        focal = world.focal.to(z)
        ray = place / focal[frames][:, None, None]
        points = torch.cat([ray, torch.ones_like(ray[..., :1])], -1) * z[..., None]
        cam_from_cam = (world.cam_from_world[others] @ rigid_inverse(world.cam_from_world[frames])).to(z)
        moved = torch.einsum("rij,rhwj->rhwi", cam_from_cam[:, :3, :3], points) + cam_from_cam[:, None, None, :3, 3]
        depth = moved[..., 2].clamp_min(1e-6)
        seen_at = moved[..., :2] / depth[..., None] * focal[others][:, None, None]
        at = seen_at / centre
        self.in_view = (moved[..., 2] > 1e-6) & (seen_at.abs() < centre - 2).all(-1)

        def sampled(values: Tensor) -> Tensor:
            return F.grid_sample(values[others], at, mode="nearest", padding_mode="border", align_corners=False)

        nearer, farther = (
            torch.log(depth / sampled(around.nearest)[:, 0]),
            torch.log(depth / sampled(around.farthest)[:, 0]),
        )
        self.depth_off = farther.clamp_min(0) + nearer.clamp_max(0)
        colour = world.pictures[frames][:, :, y][:, :, :, x]
        brighter, darker = colour - sampled(around.brightest), sampled(around.darkest) - colour
        self.colour_off = torch.maximum(brighter, darker).clamp_min(0).amax(1)


def confirmed(found: Candidates, against: Tensor) -> Tensor:
    """The candidates that geometry contradicts: they move.

    Args:
        found: patches that stand out.
        against: (S, k rows, k cols) see `contradiction`; k cells a patch.
    Returns:
        (S, k rows, k cols) bool. A cell beside a candidate counts as one: that gives the mask its outline.
    """
    finer = against.shape[1] // found.group.shape[1]
    group = found.group.repeat_interleave(finer, 1).repeat_interleave(finer, 2)
    score = F.interpolate(found.score[:, None], size=against.shape[1:], mode="bilinear")
    member = F.one_hot(group.flatten(), CLUSTERS).to(against.dtype)
    # Of a group only what stands out.
    inside = (score[:, 0] >= 0).flatten()
    weight = inside.to(against.dtype)
    mean = member.T @ (weight * against.flatten()) / (member.T @ weight).clamp_min(1)
    near = F.avg_pool2d(against[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    still = near.flatten()[~inside]
    limit = CONTRADICTED + _STILL * (float(still.median()) if len(still) else 0.0)
    inner = (torch.minimum((near + mean[group]) / 2, mean[group]) > limit) & (score[:, 0] >= 0)
    if float(inner.float().mean()) < _FEWEST:
        return torch.zeros_like(inner)
    beside = F.max_pool2d(inner[:, None].float(), 3, 1, 1)[:, 0] > 0
    return inner | (beside & (near > 2 * limit))
