"""The warp renderer: the frame itself through its backward map, the rest from its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.cameras import make_output_camera
from vs3r.config import RenderConfig
from vs3r.render.fuse import Fusion
from vs3r.render.ghosts import ghost_share
from vs3r.render.layers import FILL_MARGIN_PX, OWN_MARGIN_PX, Layer, feather_px, inside_px, smoothstep
from vs3r.render.moving import MAX_LAYERS, moving_layers
from vs3r.render.nodes import make_grid
from vs3r.render.planes import PlaneDrawer, empty_planes, make_drawer
from vs3r.render.pullpush import f32
from vs3r.render.select import MAX_BORDER_POINTS, MAX_POINTS, WORTH, Aim, Chooser, fill_opacity, likely_moving
from vs3r.render.warp import SourceFrame, Target, backward_map, backward_maps, check_sources, sample_cells
from vs3r.types import DoubleArray, FloatArray, PictureFormat, Plane, RenderedFrame, VirtualCamera

STILL_PX = 0.02
"""A picture that moves nowhere by more than this is passed on as it is: no resampling, no loss."""
BORDER_CELLS = 3
"""Width of what is looked at around the hole, in cells of the validity mask."""


class WarpRenderer:
    """Renders frames from virtual cameras. Holds no state: a result depends on the arguments of render alone."""

    def __init__(self, fmt: PictureFormat, config: RenderConfig, *, drawer: PlaneDrawer | None = None) -> None:
        """
        Args:
            fmt: the format of every source and of the output.
            config: output camera, fill window and device.
            drawer: what draws the planes; None for what the config asks for.
        Raises:
            BackendError: the device that the config names cannot be used here.
        """
        self._format = fmt
        self._config = config
        self._size = fmt.width, fmt.height
        self._grid = make_grid(fmt)
        self._nodes = self._grid.points()
        self._feather_px = feather_px(self._size)
        rows, cols = self._grid.valid_shape
        x, y = np.meshgrid(np.linspace(0, fmt.width, cols + 1), np.linspace(0, fmt.height, rows + 1))
        self._corners = f32(x), f32(y)
        self._drawer = make_drawer(config, fmt) if drawer is None else drawer

    def render(
        self,
        index: int,
        camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
    ) -> RenderedFrame:
        """Render frame `index` as the camera sees it.

        Args:
            index: the frame whose time is shown.
            camera: smoothed camera of that time.
            sources: by frame number: the frame itself, and those that may fill what it does not see. Frames farther
                away than config.fill_window_frames or of another segment are not used.
            out: planes of the format to draw into; None for new ones.
        Raises:
            InputError: the frame itself is missing, or a frame has another format.
        """
        check_sources(index, sources, self._format)
        own = sources[index]
        target = self._target(camera)
        base = self._own_layer(target, own)
        if self._is_still(base):
            valid = np.full(self._grid.valid_shape, 255, np.uint8)
            return RenderedFrame(frame=own.frame, valid=valid, own_share=1.0, valid_share=1.0)
        own_share = self._share(base)
        layers = [base]
        keep = np.ones_like(base.opacity)
        if own_share.min() < 1.0:
            keep = self._keep(own_share)
            layers += self._fillers(index, target, sources, base, own_share, keep)
        share = np.maximum.reduce([own_share, *(self._share(layer) for layer in layers[1:])])
        planes = empty_planes(self._format) if out is None else tuple(out)
        self._drawer.draw(layers, keep, planes)
        return RenderedFrame(
            frame=replace(own.frame, planes=planes),
            valid=np.rint(share * 255.0).astype(np.uint8),
            own_share=float(own_share.mean()),
            valid_share=float(share.mean()),
        )

    def _target(self, camera: VirtualCamera) -> Target:
        model = make_output_camera(self._config.camera, camera.K, camera.distortion)
        rays, visible = model.unproject(self._nodes)
        return Target(camera=model, cam_from_world=camera.cam_from_world, rays=rays, visible=visible.astype(np.float32))

    def _own_layer(self, target: Target, own: SourceFrame) -> Layer:
        at = backward_map(target.rays, target.cam_from_world, own.geometry, own.inv_depth, self._size)
        return Layer(source=own, map=at, opacity=target.visible * at.front, margin_px=OWN_MARGIN_PX)

    def _is_still(self, base: Layer) -> bool:
        moved = max(
            float(np.abs(base.map.x - self._nodes[..., 0]).max()), float(np.abs(base.map.y - self._nodes[..., 1]).max())
        )
        return moved < STILL_PX and bool(base.opacity.min() > 0)

    def _share(self, layer: Layer) -> FloatArray:
        """(Vh, Vw) share of each cell that the layer covers; 1 only where all of it is covered."""
        depth = self._depth(layer, *self._corners)
        # Ramps over half a cell outside the border, so that the mean over corners is about the covered share.
        corner = np.clip(1.0 + depth * np.float32(4.0 / self._grid.cell_px), 0.0, 1.0)
        mean = (corner[:-1, :-1] + corner[1:, :-1] + corner[:-1, 1:] + corner[1:, 1:]) * 0.25
        return np.asarray(mean, dtype=np.float32)

    def _depth(self, layer: Layer, px: FloatArray, py: FloatArray) -> FloatArray:
        """How far inside the layer's trusted part pixel positions of the target lie, in source pixels."""
        gx, gy = px / np.float32(self._grid.cell_px) + 0.5, py / np.float32(self._grid.cell_px) + 0.5
        x, y, opacity = (
            f32(cv2.remap(f, f32(gx), f32(gy), cv2.INTER_LINEAR)).reshape(px.shape)
            for f in (layer.map.x, layer.map.y, layer.opacity)
        )
        depth = inside_px(x, y, self._size) - np.float32(layer.margin_px)
        return f32(np.where(opacity > 0.5, depth, -float(self._grid.cell_px)))

    def _covers(self, layer: Layer, points: DoubleArray) -> npt.NDArray[np.bool_]:
        """(N,) which of points (N, 2) of the target a layer shows."""
        return self._depth(layer, f32(points[:, 0]), f32(points[:, 1])) > 0

    def _keep(self, own_share: FloatArray) -> FloatArray:
        """Node field: 0 beside the hole, rising to 1 two feathers away, where the frame itself stays untouched."""
        covered = (own_share >= 1.0).astype(np.uint8)
        if not covered.any():
            return np.zeros(self._nodes.shape[:2], np.float32)
        distance = cv2.distanceTransform(covered, cv2.DIST_L2, 3) * np.float32(self._grid.cell_px / 2)
        keep = np.clip(distance / np.float32(self._feather_px) - 1.0, 0.0, 1.0)
        x, y = np.ascontiguousarray(np.moveaxis(self._nodes, -1, 0), dtype=np.float32)
        return sample_cells(np.asarray(keep, dtype=np.float32), x, y, self._size)

    def _fillers(
        self,
        index: int,
        target: Target,
        sources: Mapping[int, SourceFrame],
        base: Layer,
        own_share: FloatArray,
        keep: FloatArray,
    ) -> list[Layer]:
        aim = self._aim(target, own_share)
        if not len(aim.points):
            return []  # all that is missing lies beyond what the output camera sees
        points = aim.points[~aim.border]
        window, worth = self._config.fill_window_frames, WORTH / float((own_share < 1.0).mean())
        moving = moving_layers(index, target, base, sources, window=window)
        spare = MAX_LAYERS - len(moving)
        chooser = Chooser(index, aim, target.cam_from_world, sources, window=window, worth=worth, spare=spare)
        fusion = Fusion(self._grid, self._format, keep=keep, feather_px=self._feather_px)
        layers = [base]
        for layer in moving:
            fusion.add(layers[-1])
            layers.append(fusion.level(layer))
            chooser.filled(self._covers(layer, points))
        while (found := chooser.best()) is not None:
            number, wrong = found
            fusion.add(layers[-1])
            ghost = ghost_share(points, wrong, self._grid.cell_px, base.opacity.shape)
            layer = fusion.fit(self._fill_layer(target, sources[number], abs(number - index), ghost))
            layers.append(layer)
            chooser.filled(self._covers(layer, points))
        return layers[1:]

    def _aim(self, target: Target, own_share: FloatArray) -> Aim:
        missing = (own_share < 1.0).astype(np.uint8)
        around = cv2.dilate(missing, np.ones((2 * BORDER_CELLS + 1,) * 2, np.uint8)) > missing
        hole, border = np.argwhere(missing), np.argwhere(around)
        hole, border = hole[:: max(1, len(hole) // MAX_POINTS)], border[:: max(1, len(border) // MAX_BORDER_POINTS)]
        cell = np.array([self._size[0] / own_share.shape[1], self._size[1] / own_share.shape[0]])
        points = (np.concatenate([hole, border])[:, ::-1] + 0.5) * cell
        rays, visible = target.camera.unproject(points)
        outside = np.arange(len(points)) >= len(hole)
        return Aim(points=points[visible], rays=rays[visible], border=outside[visible])

    def _fill_layer(self, target: Target, source: SourceFrame, distance: int, ghost: FloatArray) -> Layer:
        maps = backward_maps(target.rays, target.cam_from_world, [source.geometry], source.inv_depth[None], self._size)
        shows = fill_opacity(maps, likely_moving([source], maps), [distance])[0]
        opacity = target.visible * shows * (1.0 - smoothstep(2.0 * ghost))
        return Layer(source=source, map=maps[0], opacity=f32(opacity), margin_px=FILL_MARGIN_PX)
