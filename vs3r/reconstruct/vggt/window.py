"""A window of pictures through the network and its masks: cameras, depth and what moves (VGGT4D)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vs3r.config import VggtConfig
from vs3r.errors import BackendError
from vs3r.geometry import matrix_from_quat_wxyz, rigid
from vs3r.networks import DTYPES, Network, Prepare, eager, queue_of_its_own
from vs3r.reconstruct.observe import Grid
from vs3r.reconstruct.vggt.chain import FrameEstimate, weighted_median
from vs3r.reconstruct.vggt.mask import Candidates, Geometry, candidates, confirmed, contradiction
from vs3r.reconstruct.vggt.model import FirstPass, SecondPass, Vggt, depth_frames, load_state, lower_precision
from vs3r.types import Frame, PictureFormat
from vs3r.weights import load_checkpoint

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_FOV_RAD = (math.radians(5), math.radians(160))


def size_of(width: float, height: float, long_side: int, patch: int) -> tuple[int, int]:
    """Height and width of the network's pictures for one of width x height: the long side as asked for, both multiples
    of a patch, the shape kept as nearly as that allows."""
    scale = long_side / max(width, height)
    rows, cols = (max(1, round(side * scale / patch)) for side in (height, width))
    return rows * patch, cols * patch


def network_size(fmt: PictureFormat, long_side: int, patch: int) -> tuple[int, int]:
    """`size_of` pictures of a format, with square pixels."""
    return size_of(fmt.width * float(fmt.sample_aspect), fmt.height, long_side, patch)


def network_picture(frame: Frame, size: tuple[int, int], device: torch.device = _CPU) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB of a frame at `size` = (H, W), made smaller by cubic interpolation over all that a pixel covers;
    `device` computes it."""
    # Imported here: most reconstructors need no colours.
    from vs3r.refine.wan.pictures import rgb_from_frame

    top = (1 << frame.format.bit_depth) - 1

    def resized(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        values = torch.from_numpy(plane).to(device)[None, None].float()
        small = F.interpolate(values, size=size, mode="bicubic", antialias=True, align_corners=False)
        return np.asarray(small[0, 0].round().clamp(0, top).cpu().numpy(), plane.dtype)

    small = Frame(
        format=frame.format,
        planes=tuple(resized(plane) for plane in frame.planes),  # type: ignore[misc]
        pts=frame.pts,
        time_base=frame.time_base,
    )
    return np.asarray(np.rint(255 * rgb_from_frame(small, size[::-1])), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cameras:
    """Poses of S frames as the network encodes them, decoded."""

    cam_from_world: Tensor
    """(S, 4, 4) float64."""
    focal: Tensor
    """(S, 2) in pixels of the network's pictures, x first."""

    @staticmethod
    def decoded(pose: Tensor, size: tuple[int, int]) -> Cameras:
        """From (S, 9), see VggtOutput."""
        pose = pose.double()
        quat = pose[:, 3:7] + torch.tensor([0, 0, 0, 1e-12], device=pose.device)
        half = pose[:, 7:].clamp(*_FOV_RAD) / 2
        focal = torch.tensor(size, device=pose.device) / 2 / half.tan()
        return Cameras(
            cam_from_world=rigid(matrix_from_quat_wxyz(quat[:, [3, 0, 1, 2]]), pose[:, :3]), focal=focal.flip(-1)
        )


class WindowNetwork:
    """VGGT4D for pictures of one format."""

    def __init__(self, config: VggtConfig, fmt: PictureFormat, network: Vggt, prepare: Prepare = eager) -> None:
        """
        Args:
            config: settings.
            fmt: of the frames.
            network: in eval mode, on the device that is to compute.
            prepare: how to run it on full windows; the one window of a clip that is shorter runs as it is.
        """
        self._config = config
        self._network = network
        self._prepare = prepare
        self._device = network.aggregator.camera_token.device
        patch = network.size.patch
        self.size = network_size(fmt, config.vggt_long_side, patch)
        self.patches = self.size[0] // patch, self.size[1] // patch
        self._passes = FirstPass(network, *self.size, cues=True).eval(), SecondPass(network, *self.size).eval()
        self._ready: list[Network] = []
        self._queue = queue_of_its_own(self._device)
        self._picture_queue = queue_of_its_own(self._device, ahead=True)

    def picture(self, frame: Frame) -> npt.NDArray[np.uint8]:
        """(H, W, 3) a frame as it is given to the network, see `network_picture`; also beside a window."""
        with self._picture_queue():
            return network_picture(frame, self.size, self._device)

    def __call__(self, pictures: list[npt.NDArray[np.uint8]], grid: Grid) -> list[FrameEstimate]:
        """
        Args:
            pictures: (H, W, 3) each, see `picture`.
            grid: cells of the analysis picture.
        Returns:
            What is believed of them, in a world of their own.
        Raises:
            BackendError: the GPU's memory does not suffice, or the network's numbers overflow.
        """
        try:
            with self._queue():
                with torch.inference_mode():
                    window = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2).float() / 255
                first, second = self._runners(window)
                with torch.inference_mode():
                    return self._estimates(window, first, second, grid)
        except torch.cuda.OutOfMemoryError:
            raise BackendError(self._too_long(len(pictures))) from None

    def _runners(self, window: Tensor) -> list[Network]:
        """Both passes; on full windows as they were prepared, outside inference mode, where compilers do not work."""
        if len(window) != self._config.vggt_window_frames:
            return list(self._passes)
        if not self._ready:
            examples = example_inputs(self._network, len(window), self.size)
            names = ("vggt4d", "vggt4d-second")
            self._ready = [
                self._prepare(name, one, example)
                for name, one, example in zip(names, self._passes, examples, strict=True)
            ]
        return self._ready

    def _estimates(self, window: Tensor, first: Network, second: Network, grid: Grid) -> list[FrameEstimate]:
        pose, depth, confidence, dynamic, features = first(window)
        self._check_finite(pose, depth, confidence, dynamic)
        cameras = Cameras.decoded(pose, self.size)
        world = Geometry(pictures=window, depth=depth, cam_from_world=cameras.cam_from_world, focal=cameras.focal)
        found = candidates(dynamic, features, self.patches)
        patch = self._network.size.patch
        moving = confirmed(found, contradiction(world, patch))
        if bool(moving.any()):
            keep = (~moving).flatten(1).float()
            pose, still_depth = second(features, keep)
            self._check_finite(pose, still_depth)
            world = self._still(world, pose, still_depth, moving, confidence)
        return _frames(world, confidence, self._outlined(world, found), grid)

    def _check_finite(self, *values: Tensor) -> None:
        if not all(bool(value.isfinite().all()) for value in values):
            raise BackendError(
                f"VGGT gave numbers that are not finite in {self._config.vggt_precision}; use --vggt-precision fp32"
            )

    def _still(self, world: Geometry, pose: Tensor, depth: Tensor, moving: Tensor, confidence: Tensor) -> Geometry:
        """The window with the cameras of the second pass, in the scale of the first."""
        some = depth_frames(len(pose))
        trust = confidence[some] * (F.interpolate(moving[some, None].float(), size=self.size)[:, 0] == 0)
        scale = weighted_median((world.depth[some] / depth).flatten(), trust.flatten())
        cameras = Cameras.decoded(pose, self.size).cam_from_world.clone()
        cameras[:, :3, 3] *= scale
        return Geometry(pictures=world.pictures, depth=world.depth, cam_from_world=cameras, focal=world.focal)

    def _outlined(self, world: Geometry, found: Candidates) -> Tensor:
        """(S, h, w) bool: what moves, on cells of half a patch."""
        return confirmed(found, contradiction(world, self._network.size.patch // 2))

    def _too_long(self, frames: int) -> str:
        height, width = self.size
        message = f"not enough GPU memory for VGGT with windows of {frames} frames of {width}x{height}"
        fits = frames_that_fit(self._network, self.size, torch.cuda.mem_get_info(self._device)[1])
        fits = min(fits, frames - 1)
        if fits < 2:
            return f"{message}, nor for shorter ones; use a smaller --vggt-long-side, or --reconstruct flow-ba"
        overlap = f" --vggt-overlap-frames {fits // 2}" if fits <= self._config.vggt_overlap_frames else ""
        return f"{message}; about {fits} would fit: use --vggt-window-frames {fits}{overlap}"


def example_inputs(
    network: Vggt, frames: int, size: tuple[int, int]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Inputs of both passes for windows of some frames of size (H, W), all zero."""
    device, patch = network.aggregator.camera_token.device, network.size.patch
    patches = (size[0] // patch) * (size[1] // patch)
    features = torch.zeros(frames, patches, network.size.width, device=device)
    return (torch.zeros(frames, 3, *size, device=device),), (features, torch.zeros(frames, patches, device=device))


def window_memory(network: Vggt, size: tuple[int, int]) -> tuple[int, int]:
    """Bytes of GPU memory that a window of pictures of size (H, W) takes whatever its length, and for each frame: an
    estimate from what is alive at once."""
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    width, patch = network.size.width, network.size.patch
    low = network.aggregator.get_parameter("global_blocks.0.mlp.fc1.weight").element_size()
    patches = (size[0] // patch) * (size[1] // patch)
    # Of a token: four kept pairs of 2 widths, the running sum and what is added to it, and of a block the larger of
    # queries, keys and values with their float32 copies or the hidden layer and its activation.
    token = 4 * 2 * width * 4 + 4 * width * 4 + max(3 * width * low + 4 * width * 4, 8 * width * low)
    # Of a frame also the products of its cues, its picture, depth and confidence.
    frame = (patches + network.size.special) * token + 3 * patches**2 * 4 + 8 * size[0] * size[1] * 4
    # The depth head works on eight frames at a time: its last maps are the largest.
    head = 8 * size[0] * size[1] * 4 * 3 * network.size.depth_features // 2
    return weights + head, frame


def frames_that_fit(network: Vggt, size: tuple[int, int], memory: int) -> int:
    """How many frames of size (H, W) a window may have in some bytes of GPU memory, about."""
    fixed, frame = window_memory(network, size)
    return max(0, int((0.9 * memory - fixed) // frame))


def _frames(world: Geometry, confidence: Tensor, moving: Tensor, grid: Grid) -> list[FrameEstimate]:
    """On the CPU, at the cells of the analysis grid."""

    def cells(values: Tensor) -> Tensor:
        return F.interpolate(values[:, None], size=(grid.rows, grid.cols), mode="area")[:, 0].cpu()

    inv_depth = cells(1 / world.depth)
    still = 1 - cells(moving.float())
    dynamic = F.interpolate(moving[:, None].float(), size=(2 * grid.rows, 2 * grid.cols), mode="bilinear")[:, 0].cpu()
    trust = cells(confidence - 1) * (still > 0.99)
    height, width = world.depth.shape[1:]
    # Pixels of the network's pictures are not quite square.
    focal = world.focal.cpu() * torch.tensor([grid.width / width, grid.height / height])
    log_focal = focal.log().mean(-1)
    poses = world.cam_from_world.cpu()
    return [
        FrameEstimate(
            cam_from_world=poses[k],
            log_focal=log_focal[k],
            inv_depth=inv_depth[k],
            trust=trust[k],
            dynamic=dynamic[k],
        )
        for k in range(len(poses))
    ]


def load_network(config: VggtConfig) -> Vggt:
    """VGGT with the user's weights, in eval mode, on the device that the config names.

    Raises:
        BackendError: there is no GPU.
        InputError: the weights were not fetched, or are not VGGT's.
    """
    if config.vggt_device == "auto" and not torch.cuda.is_available():
        raise BackendError(
            "vggt4d: expected an NVIDIA GPU, PyTorch sees none; use --reconstruct flow-ba, which needs none"
        )
    device = torch.device("cuda" if config.vggt_device == "auto" else config.vggt_device)
    state = load_checkpoint(config.vggt_weights)
    with torch.device("meta"):
        network = Vggt()
    load_state(network, state)
    lower_precision(network, DTYPES[config.vggt_precision])
    log.info("VGGT runs on %s in %s", device, config.vggt_precision)
    try:
        return network.eval().to(device)
    except torch.cuda.OutOfMemoryError:
        raise BackendError("not enough GPU memory for VGGT's weights; use --reconstruct flow-ba") from None
