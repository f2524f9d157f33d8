"""The splat renderer: points of many frames with their colours, drawn with a z-buffer (VS3R eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vs3r.cameras import Division, DoubleSphere, KannalaBrandt, OutputCamera, Unified, make_output_camera
from vs3r.config import RenderConfig
from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.dispatch import Backend
from vs3r.kernels.splat import DepthPoints, splat_points
from vs3r.render.layers import plane_views
from vs3r.render.nodes import make_grid
from vs3r.render.planes import choose_device, empty_planes
from vs3r.render.select import candidates
from vs3r.render.warp import SourceFrame, check_sources
from vs3r.types import DoubleArray, FrameGeometry, PictureFormat, Plane, RenderedFrame, VirtualCamera, read_axis

MOVING = 0.25
"""What moves with more than this probability is drawn from the frame itself only, and"""
RIM = 0.01
"""so is what lies this near to it, of the longer side: masks are coarse."""
CRACK = 5
"""A pixel that no point reached but so many of its eight neighbours lies between points of a surface."""


class SplatRenderer:
    """Renders frames from virtual cameras; see WarpRenderer. What does not move is drawn from the frame itself and the
    neighbours that may fill it, what moves from the frame itself."""

    def __init__(self, fmt: PictureFormat, config: RenderConfig, *, backend: Backend = "auto") -> None:
        """
        Args:
            fmt: the format of every source and of the output.
            config: output camera, fill window and device.
            backend: of the operator.
        Raises:
            BackendError: the device that the config names cannot be used here.
        """
        self._format = fmt
        self._config = config
        self._backend: Backend = backend
        self._device = choose_device(config.render_device)
        grid = make_grid(fmt)
        self._views, self._valid_shape = plane_views(fmt, grid), grid.valid_shape

    def render(
        self,
        index: int,
        camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
    ) -> RenderedFrame:
        """See WarpRenderer.render."""
        check_sources(index, sources, self._format)
        numbers = [index, *candidates(index, sources, self._config.fill_window_frames)]
        model = make_output_camera(self._config.camera, camera.K, camera.distortion)
        view = view_of(model, camera.cam_from_world, self._format, self._device)
        points = self._points([sources[number] for number in numbers])
        everything, own, moving = (
            splat_points(part, view, backend=self._backend)
            for part in (points, _own(points, None), _own(points, points.dynamic))
        )
        assert everything.attributes is not None and moving.attributes is not None
        # The depth of what moves is a guess; the frame itself saw it in front of what was behind it.
        colours = torch.where(moving.valid[..., None], moving.attributes, everything.attributes)
        colours, valid = _closed(colours.permute(2, 0, 1), moving.valid | everything.valid)
        (share,) = F.adaptive_avg_pool2d(valid, self._valid_shape)
        planes = empty_planes(self._format) if out is None else tuple(out)
        self._draw(colours, valid, planes)
        return RenderedFrame(
            frame=replace(sources[index].frame, planes=planes),
            valid=(share * 255.0).cpu().numpy().astype(np.uint8),
            own_share=float(own.valid.float().mean()),
            valid_share=float(valid.mean()),
        )

    def _points(self, sources: Sequence[SourceFrame]) -> DepthPoints:
        """The pixels of sources, the frame itself first."""
        height, width = self._format.height, self._format.width
        inv_depth = torch.stack([self._full(source.inv_depth, (height, width)) for source in sources])
        moving = torch.stack([self._full(source.geometry.dynamic, (height, width)) for source in sources])
        rim = round(RIM * max(height, width))
        moving = F.max_pool2d(moving, 2 * rim + 1, stride=1, padding=rim) > MOVING
        # The operator knows rows: a picture on its side is drawn as its middle line saw it.
        rolls = read_axis(width, height) == 1 and any(source.geometry.row_motion.any() for source in sources)
        poses = [_row_poses(s.geometry, height) if rolls else s.geometry.cam_from_world for s in sources]
        return DepthPoints(
            inv_depth=inv_depth,
            cameras=SourceCameras(
                K=_sent(np.stack([source.geometry.K for source in sources]), self._device),
                cam_from_world=_sent(np.stack(poses), self._device),
                distortion=sources[0].geometry.distortion,
            ),
            attributes=torch.stack([self._colours(source) for source in sources]),
            dynamic=moving,
        )

    def _colours(self, source: SourceFrame) -> Tensor:
        """(H, W, C) all planes at full size."""
        parts = []
        for plane, view in zip(source.frame.planes, self._views, strict=True):
            size = view.shape[0] * int(view.scale_y), view.shape[1] * int(view.scale_x)
            parts.append(self._full(plane, size)[: self._format.height, : self._format.width])
        return torch.stack(parts, -1)

    def _draw(self, colours: Tensor, valid: Tensor, out: Sequence[Plane]) -> None:
        """Colours (C, H, W), valid where `valid` (1, H, W) is 1, into planes of the format."""
        peak = (1 << self._format.bit_depth) - 1
        for view, colour, plane in zip(self._views, colours, out, strict=True):
            cell = int(view.scale_y), int(view.scale_x)
            total, weight = (F.avg_pool2d(x, cell, ceil_mode=True)[0] for x in (colour[None] * valid, valid))
            mean = torch.where(weight > 0, total / weight, self._format.black(view.number))
            plane[:] = mean.round().clamp(0, peak).cpu().numpy()

    def _full(self, cells: npt.NDArray[np.generic], size: tuple[int, int]) -> Tensor:
        """Cells that tile the picture, interpolated linearly, float32."""
        sent = torch.from_numpy(cells.astype(np.float32)).to(self._device)
        return F.interpolate(sent[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def view_of(model: OutputCamera, cam_from_world: DoubleArray, fmt: PictureFormat, device: torch.device) -> View:
    """The operator's view of an output camera."""
    name, parameters = "pinhole", tuple[float, ...]()
    if isinstance(model, KannalaBrandt):
        name, parameters = "kannala-brandt", model.coefficients
    elif isinstance(model, Unified):
        name, parameters = "unified", (model.alpha,)
    elif isinstance(model, DoubleSphere):
        name, parameters = "double-sphere", (model.xi, model.alpha)
    elif isinstance(model, Division):
        name, parameters = "division", (model.distortion,)
    return View(
        K=_sent(model.K, device),
        cam_from_world=_sent(cam_from_world, device),
        width=fmt.width,
        height=fmt.height,
        model=name,
        parameters=parameters,
    )


def _sent(matrix: DoubleArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(device)


def _own(points: DepthPoints, valid: Tensor | None) -> DepthPoints:
    """Those of the first source, all or where `valid` (S, H, W) says."""
    assert points.attributes is not None
    cameras = points.cameras
    return DepthPoints(
        inv_depth=points.inv_depth[:1],
        cameras=replace(cameras, K=cameras.K[:1], cam_from_world=cameras.cam_from_world[:1]),
        attributes=points.attributes[:1],
        valid=None if valid is None else valid[:1],
    )


def _row_poses(geometry: FrameGeometry, height: int) -> DoubleArray:
    """(H, 4, 4) cam_from_world of each row, see FrameGeometry.row_motion."""
    s = (np.arange(height) + 0.5) / height - 0.5
    powers = s[:, None] ** np.arange(1, len(geometry.row_motion) + 1)
    motion = torch.from_numpy(powers @ geometry.row_motion)
    return np.asarray((rigid(so3_exp(motion[:, 3:]), motion[:, :3])).numpy() @ geometry.cam_from_world)


def _closed(colours: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (C, H, W), cracks between points closed by the mean around them, and (1, H, W) 1 where they are valid."""
    valid = drawn.float()[None]
    total, count = (9 * F.avg_pool2d(x, 3, stride=1, padding=1) for x in (colours * valid, valid))
    crack = (valid == 0) & (count > CRACK - 0.5)
    return torch.where(crack, total / count.clamp_min(1), colours), torch.where(crack, 1.0, valid)
