"""Flow between frames 1, 2, 4 and 8 apart, sampled on the grids that reconstruction works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.flow import FlowEstimator, analysis_picture
from vs3r.reconstruct.features import Features, align, find_features
from vs3r.types import DoubleArray, FloatArray, Frame

GAPS = (1, 2, 4, 8)
CELL_PX = 12
# Share of the picture on which flow and flow back agree, below which two frames may be of different shots.
CONNECTED = 0.25
# Flow from a picture that is trusted less than this on average: there is nothing to be seen in it.
PLAIN = 0.02
# Flow between neighbours that agrees with the flow back on less than this share of the picture is looked for again.
LOST = 0.5
# A pixel's flow is found where the flow back agrees so well.
FOUND = 0.5
# What then agrees on less than this share says nothing: the alignment of the whole pictures is taken, with this trust.
NOTHING = 0.1
ALIGNED_TRUST = 0.1
# A picture is shown again where it differs by less than this on average, and the flow between them is less than that.
REPEAT_GREY = 0.5
REPEAT_PX = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """Cells of about 12 px that tile the analysis picture, and a finer grid of cells of half that size."""

    width: int
    """Picture width in pixels."""
    height: int
    """Picture height in pixels."""
    cols: int
    """Coarse cells a row."""
    rows: int
    """Coarse cells a column."""

    @staticmethod
    def of(width: int, height: int) -> Grid:
        """The grid of an analysis picture."""
        return Grid(
            width=width, height=height, cols=max(2, round(width / CELL_PX)), rows=max(2, round(height / CELL_PX))
        )

    def centres(self, fine: bool) -> FloatArray:
        """(rows, cols, 2) cell centres in pixels, x first, the first pixel's centre at (0.5, 0.5)."""
        k = 2 if fine else 1
        x = (np.arange(self.cols * k) + 0.5) * self.width / (self.cols * k)
        y = (np.arange(self.rows * k) + 0.5) * self.height / (self.rows * k)
        return np.stack(np.meshgrid(x, y), -1).astype(np.float32)

    def intrinsics(self, focal: float, width: int, height: int) -> DoubleArray:
        """(3, 3) of a focal length in analysis pixels, for the same picture of another width and height."""
        fx, fy = focal * (width / self.width), focal * (height / self.height)
        return np.array([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """What the flow says of one directed pair of frames."""

    src: int
    """Frame number."""
    dst: int
    """Frame number."""
    flow: FloatArray
    """(rows, cols, 2) flow at the coarse cell centres in analysis pixels."""
    weight: FloatArray
    """(rows, cols) trust in it, in [0, 1]."""
    fine_flow: FloatArray
    """(2 rows, 2 cols, 2) flow at the fine cell centres."""
    fine_weight: FloatArray
    """(2 rows, 2 cols) trust: forward-backward consistency only."""
    aligned: bool = False
    """The flow was lost, and features of both pictures agree on how one lies in the other: the same shot."""


def joined(found: list[Observation]) -> bool:
    """The flow between two frames, there and back, is of one shot, and both show something of it: between a scene and a
    plain picture flow may come out as none at all, both ways."""
    return agreement(found) > CONNECTED and min(float(o.weight.mean()) for o in found) > PLAIN


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedFrame:
    """What is known of a frame when it has been seen, in the numbers of all frames seen."""

    index: int
    """Frame number."""
    pts_s: float
    """Time in seconds."""
    exposed_s: float
    """When the picture was taken: the time of the first frame that shows it."""
    first_shown: int
    """Number of that frame."""
    picture: npt.NDArray[np.uint8]
    """(H, W) what analysis sees of it."""
    found: list[Observation]
    """Flow between it and earlier frames."""
    agreement: float
    """Share of the picture on which flow from the frame before and back agree, in [0, 1]."""
    change: float
    """How much the histogram differs from that of the frame before, in [0, 2]."""
    begins: bool = False
    """It is the first of a shot (Shots)."""
    blank: bool = False
    """It shows nothing of its shot (Shots)."""

    def pairs(self) -> dict[int, list[Observation]]:
        """What was found, there and back, by the earlier frame."""
        pairs: dict[int, list[Observation]] = {}
        for found in self.found:
            pairs.setdefault(min(found.src, found.dst), []).append(found)
        return pairs


def sample(image: FloatArray, xy: FloatArray) -> FloatArray:
    """Bilinear samples of image (H, W[, C]) at positions xy (..., 2) in pixels, border replicated."""
    at = xy - np.float32(0.5)
    found = cv2.remap(image, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return np.asarray(found, dtype=np.float32)


def texture(picture: npt.NDArray[np.uint8]) -> FloatArray:
    """(H, W) in [0, 1]: how well the picture around a pixel fixes both components of the flow."""
    corner = cv2.cornerMinEigenVal(picture, 9, ksize=3)
    # The eigenvalue of a gradient of about two grey levels a pixel; compression noise lies below it.
    return np.asarray(corner / (corner + 1.5e-4), dtype=np.float32)


def agreement(found: list[Observation]) -> float:
    """Share of the picture, in [0, 1], on which flow and flow back agree, averaged over observations."""
    return float(np.mean([o.fine_weight.mean() for o in found]))


class FlowWindow:
    """Flow from each new frame to those 1, 2, 4 and 8 before it and back; long flows start from composed short ones."""

    def __init__(self, flow: FlowEstimator, grid: Grid, *, lean: bool = False) -> None:
        """
        Args:
            flow: between analysis pictures.
            grid: of an analysis picture, whose size it tells.
            lean: to the frame before alone, and further back only where the two may be of different shots.
        """
        self._lean = lean
        self._flow = flow
        self._grid = grid
        self._coarse, self._fine = grid.centres(fine=False), grid.centres(fine=True)
        h, w = grid.height, grid.width
        self._pixels = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), -1).astype(np.float32)
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}
        self._textures: dict[int, FloatArray] = {}
        self._features: dict[int, Features] = {}  # of those where flow was lost
        self._dense: dict[tuple[int, int], FloatArray] = {}

    def push(self, index: int, picture: npt.NDArray[np.uint8]) -> list[Observation]:
        """Add frame `index` (one more than the last); return the observations between it and earlier frames."""
        self._pictures[index] = picture
        self._textures[index] = texture(picture)
        found = []
        for gap in GAPS:
            if index - gap in self._pictures:
                found += self._pair(index - gap, index, gap)
            if self._lean and gap == 1 and found and joined(found):
                break
        oldest = index - max(GAPS)
        for store in (self._pictures, self._textures, self._features):
            store.pop(oldest, None)
        for key in [k for k in self._dense if min(k) <= oldest]:
            del self._dense[key]
        return found

    def _pair(self, a: int, b: int, gap: int) -> list[Observation]:
        flows = self._flow(self._pictures[a], self._pictures[b], (self._guess(a, b), self._guess(b, a)))
        found = self._both(a, b, flows)
        if gap == 1 and agreement(found) < LOST:
            flows, found = self._again(a, b, flows, found)
        if gap < max(GAPS) and not self._lean:
            self._dense[a, b], self._dense[b, a] = flows
        return found

    def _guess(self, src: int, dst: int) -> FloatArray | None:
        """Two flows half as far, one after the other; None where they are not known."""
        middle = (src + dst) // 2
        if (src, middle) not in self._dense:
            return None
        first = self._dense[src, middle]
        guess = sample(self._dense[middle, dst], self._pixels + first)
        guess += first
        return guess

    def _again(
        self, a: int, b: int, flows: tuple[FloatArray, FloatArray], found: list[Observation]
    ) -> tuple[tuple[FloatArray, FloatArray], list[Observation]]:
        """Flow that was lost: a whipped camera or a zoom moves further than the flow's coarsest patches reach. Whoever
        is followed by the camera is not lost: features of what is tell how that moves."""
        pictures = self._pictures[a], self._pictures[b]
        agree = self._agree(flows)
        features = self._features_of(a), self._features_of(b)
        b_from_a = align(*(seen.within(share < FOUND) for seen, share in zip(features, agree, strict=True)))
        if b_from_a is None:
            b_from_a = align(*features)
        if b_from_a is None:
            return flows, found
        a_from_b = np.asarray(np.linalg.inv(b_from_a), dtype=np.float64)
        guesses = self._displacement(b_from_a), self._displacement(a_from_b)
        again = self._flow(*pictures, guesses)
        better = [(new > old)[..., None] for new, old in zip(self._agree(again), agree, strict=True)]
        flows = np.where(better[0], again[0], flows[0]), np.where(better[1], again[1], flows[1])
        found, trust = self._both(a, b, flows), np.float32(1.0)
        if agreement(found) < NOTHING:
            flows, found, trust = guesses, self._both(a, b, guesses), np.float32(ALIGNED_TRUST)
        return flows, [
            replace(o, weight=o.weight * trust, fine_weight=o.fine_weight * trust, aligned=True) for o in found
        ]

    def _features_of(self, index: int) -> Features:
        if index not in self._features:
            self._features[index] = find_features(self._pictures[index])
        return self._features[index]

    def _agree(self, flows: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """(H, W) of flow and of flow back: how well the other agrees, in [0, 1]."""
        forward, backward = flows
        return self._consistency(self._pixels, forward, backward), self._consistency(self._pixels, backward, forward)

    def _displacement(self, b_from_a: DoubleArray) -> FloatArray:
        moved = self._pixels @ b_from_a[:2, :2].T + b_from_a[:2, 2]
        return np.asarray(moved - self._pixels, dtype=np.float32)

    def _both(self, a: int, b: int, flows: tuple[FloatArray, FloatArray]) -> list[Observation]:
        return [self._observe(a, b, flows[0], flows[1]), self._observe(b, a, flows[1], flows[0])]

    def _observe(self, src: int, dst: int, forward: FloatArray, backward: FloatArray) -> Observation:
        # A little smoothing averages the noise of neighbouring flow patches.
        smooth = np.asarray(cv2.GaussianBlur(forward, (0, 0), 1.5), dtype=np.float32)
        flow, fine_flow = sample(smooth, self._coarse), sample(smooth, self._fine)
        weight = self._consistency(self._coarse, flow, backward)
        weight = weight * sample(self._textures[src], self._coarse)
        return Observation(
            src=src,
            dst=dst,
            flow=flow,
            weight=weight,
            fine_flow=fine_flow,
            fine_weight=self._consistency(self._fine, fine_flow, backward),
        )

    def _consistency(self, at: FloatArray, flow: FloatArray, backward: FloatArray) -> FloatArray:
        there = at + flow
        loop = flow + sample(backward, there)
        # By columns: numpy takes many times as long over an axis of two.
        (x, y), (off_x, off_y) = np.moveaxis(there, -1, 0), np.moveaxis(loop, -1, 0)
        weight = 1 / (1 + (off_x * off_x + off_y * off_y) / 0.7**2) ** 2
        margin = 2.0
        inside = (np.minimum(x, y) > margin) & (x < self._grid.width - margin) & (y < self._grid.height - margin)
        return np.asarray(weight * inside, dtype=np.float32)


class Observer:
    """Sees frames in order, as reconstruction has to know of them."""

    def __init__(self, flow: FlowEstimator, grid: Grid, *, lean: bool = False) -> None:
        """See FlowWindow."""
        self._size = grid.width, grid.height
        self._window = FlowWindow(flow, grid, lean=lean)
        self._seen = 0
        self._last: npt.NDArray[np.uint8] | None = None
        self._exposed_s, self._first_shown = 0.0, 0

    def observe(self, frame: Frame) -> ObservedFrame:
        """See the next frame."""
        picture = analysis_picture(frame, self._size)
        index, before = self._seen, self._last
        found = self._window.push(index, picture)
        steps = [o for o in found if abs(o.src - o.dst) == 1]
        self._seen, self._last = index + 1, picture
        if before is None or not _is_repeat(before, picture, steps):
            self._exposed_s, self._first_shown = frame.pts_s, index
        return ObservedFrame(
            index=index,
            pts_s=frame.pts_s,
            exposed_s=self._exposed_s,
            first_shown=self._first_shown,
            picture=picture,
            found=found,
            agreement=agreement(steps) if steps else 1.0,
            change=_histogram_change(before, picture) if before is not None else 0.0,
        )


def _histogram_change(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    a, b = (cv2.calcHist([picture], [0], None, [32], [0, 256]) / picture.size for picture in (before, after))
    return float(np.abs(a - b).sum())


def _is_repeat(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], steps: list[Observation]) -> bool:
    """The same picture again, as good as: another exposure differs by its noise at least."""
    if cv2.norm(before, after, cv2.NORM_L1) > REPEAT_GREY * after.size:
        return False
    return all(float(np.median(np.abs(o.flow))) < REPEAT_PX for o in steps)
