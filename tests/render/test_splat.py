"""The splat renderer on rendered scenes, whose true stable view is known, and on a plane in every format."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.kernels.common import ignores_numpy_warnings
from tests.render.plane_world import intrinsics, make_format, picture, pose, psnr, source
from tests.render.scene_world import scene_sources, stable_camera, yuv420
from tests.scenes import shot
from vs3r.config import Config, RenderConfig
from vs3r.engine.pipeline import SourceWindow, make_rendering
from vs3r.errors import InputError
from vs3r.refine.fill import fill_unseen
from vs3r.render import SourceFrame, WarpRenderer, make_renderer
from vs3r.render.splat import SplatRenderer, _row_poses
from vs3r.render.warp import _at_row
from vs3r.types import PictureFormat, RenderedFrame, VirtualCamera

CPU = RenderConfig(render_device="cpu")


def seen(rendered: RenderedFrame) -> npt.NDArray[np.bool_]:
    """Pixels whose cells are wholly valid."""
    shape = rendered.frame.planes[0].shape
    return np.asarray(cv2.resize(rendered.valid, shape[::-1], interpolation=cv2.INTER_NEAREST) == 255)


def crowd(*, masked: bool) -> tuple[RenderedFrame, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """People walk past: the render of frame 32, the truth, and where they are."""
    sources = scene_sources("crowd", (28, 30, 31, 32, 33, 34, 36))
    if not masked:
        sources = {
            i: replace(s, geometry=replace(s.geometry, dynamic=np.zeros_like(s.geometry.dynamic)))
            for i, s in sources.items()
        }
    rendered = SplatRenderer(sources[32].frame.format, CPU).render(32, stable_camera("crowd", 32), sources)
    view = shot("crowd").render_stable(32)
    return rendered, np.asarray(yuv420(view.rgb, 8)[0], np.uint8), view.moving


def test_what_moves_is_shown_once() -> None:
    """Seen: 25.4 dB where things move and 29.1 elsewhere; without masks 17.1 where they move."""
    rendered, truth, moving = crowd(masked=True)
    whole = seen(rendered)
    assert whole.mean() > 0.97 and 0.05 < moving.mean() < 0.4
    luma = rendered.frame.planes[0]
    assert psnr(luma, truth, moving & whole) > 23
    assert psnr(luma, truth, ~moving & whole) > 27
    ghosts, _, _ = crowd(masked=False)
    assert psnr(ghosts.frame.planes[0], truth, moving & whole) < 19, "the test must see ghosts"


@pytest.mark.parametrize("bit_depth", [8, 10])
def test_a_walk_shows_the_true_view(bit_depth: int) -> None:
    """Seen: luma 31.9 dB, chroma 41.7; the shaky frame itself 16.2. The warp renderer gives luma 33.8."""
    sources = scene_sources("walking", range(24, 33), bit_depth)
    fmt, camera = sources[28].frame.format, stable_camera("walking", 28)
    rendered = SplatRenderer(fmt, CPU).render(28, camera, sources)
    truth = yuv420(shot("walking").render_stable(28).rgb, bit_depth)
    assert rendered.own_share < 0.98 < 0.998 < rendered.valid_share
    finished = fill_unseen(rendered)
    everywhere = np.ones(truth[0].shape, np.bool_)
    for ours, true, least in zip(finished.planes, truth, (30, 40, 40), strict=True):
        part = everywhere[: true.shape[0], : true.shape[1]]
        assert ours.dtype == true.dtype
        assert psnr(ours, true, part, bit_depth) > least
    assert psnr(sources[28].frame.planes[0], truth[0], everywhere, bit_depth) < 20, "the shake must matter"
    again = SplatRenderer(fmt, CPU).render(28, camera, dict(reversed(list(sources.items()))))
    for a, b in zip(rendered.frame.planes, again.frame.planes, strict=True):
        np.testing.assert_array_equal(a, b)


def plane_frames(fmt: PictureFormat) -> dict[int, SourceFrame]:
    return {i: source(fmt, pose(0.6 * (i - 10), 0.3 * (i - 10), 0.2 * i - 2), i) for i in (8, 9, 10, 11, 12)}


def virtual(fmt: PictureFormat, yaw_deg: float = 1.5) -> VirtualCamera:
    return VirtualCamera(K=intrinsics(fmt), cam_from_world=pose(yaw_deg, 1.2, 1.5))


@pytest.mark.parametrize(
    ("pix_fmt", "size"),
    [("gray", (160, 90)), ("ya8", (161, 89)), ("yuv420p", (159, 93)), ("yuv422p10le", (100, 176)),
     ("yuv411p", (158, 92)), ("yuva444p", (160, 90)), ("gbrp", (93, 157))],
)  # fmt: skip
def test_every_format(pix_fmt: str, size: tuple[int, int]) -> None:
    """Every plane by itself, where all of its cells are valid. Worst seen 39.7 dB."""
    fmt = make_format(pix_fmt, *size)
    rendered = SplatRenderer(fmt, CPU).render(10, virtual(fmt), plane_frames(fmt))
    truth = picture(fmt, intrinsics(fmt), virtual(fmt).cam_from_world)
    whole = seen(rendered).astype(np.uint8)
    assert whole.mean() > 0.9 and rendered.frame.format == fmt and rendered.frame.pts == 1000
    for ours, true, own in zip(rendered.frame.planes, truth, plane_frames(fmt)[10].frame.planes, strict=True):
        assert ours.shape == true.shape and ours.dtype == true.dtype and ours.flags.c_contiguous
        mask = cv2.resize(whole, true.shape[::-1], interpolation=cv2.INTER_AREA) == 1
        assert psnr(ours, true, mask, fmt.bit_depth) > 37
        assert psnr(own, true, mask, fmt.bit_depth) < 25, "the test's motion must matter"


@pytest.mark.parametrize("camera", ["wide", "ultra-wide", "tele", "fisheye", "ucm", "double-sphere"])
def test_output_cameras_are_those_of_the_warp_renderer(camera: str) -> None:
    """Worst seen 32.5 dB."""
    fmt = make_format("yuv420p", 160, 90)
    config = replace(CPU, camera=camera)
    ours, theirs = (
        renderer.render(10, virtual(fmt), plane_frames(fmt))
        for renderer in (SplatRenderer(fmt, config), WarpRenderer(fmt, config))
    )
    whole = seen(ours) & seen(theirs)
    assert abs(ours.valid_share - theirs.valid_share) < 0.03 and whole.mean() > 0.15
    assert psnr(ours.frame.planes[0], theirs.frame.planes[0], whole) > 30


def test_a_hole_is_black_and_marked() -> None:
    fmt = make_format("yuv420p", 160, 90)
    rendered = SplatRenderer(fmt, CPU).render(10, virtual(fmt, -9.0), {10: plane_frames(fmt)[10]})
    unseen = cv2.resize(rendered.valid, (160, 90), interpolation=cv2.INTER_NEAREST) == 0
    assert 0.1 < unseen.mean() < 0.3
    assert (rendered.frame.planes[0][unseen] == 16).all() and (rendered.frame.planes[1][unseen[::2, ::2]] == 128).all()
    assert rendered.own_share <= rendered.valid_share < 0.9


def test_poses_of_rows_are_those_of_the_warp_renderer() -> None:
    """Rotation to second order there, exact here: 0.02 rad cubed."""
    fmt = make_format("gray", 64, 48)
    motion = np.array([[0.02, -0.01, 0.03, 0.02, -0.01, 0.015], [0.01, 0.02, 0, -0.01, 0.02, 0.01]])
    geometry = replace(source(fmt, pose(3, 2, 1)).geometry, row_motion=motion)
    s = ((np.arange(48) + 0.5) / 48 - 0.5).astype(np.float32)
    x, y, rho = (np.full((1, 48), value, np.float32) for value in (0.3, -0.2, 0.5))
    theirs = np.stack(_at_row(x, y, rho, motion[..., None, None], s[None]), -1)[0]
    row_from_middle = _row_poses(geometry, 48) @ np.linalg.inv(geometry.cam_from_world)
    np.testing.assert_allclose(row_from_middle @ [0.3, -0.2, 1, 0.5], np.c_[theirs, rho[0]], atol=2e-6)


def test_a_rolling_shutter_matters() -> None:
    """Seen: 29.9 dB in the middle rows."""
    fmt = make_format("gray", 160, 90)
    still = plane_frames(fmt)[10]
    rolls = replace(still, geometry=replace(still.geometry, row_motion=np.array([[0, 0, 0, 0.0, 0.1, 0.0]])))
    a, b = (SplatRenderer(fmt, CPU).render(10, virtual(fmt), {10: s}).frame.planes[0] for s in (still, rolls))
    middle, top = slice(43, 47), slice(8, 12)
    inner = slice(20, 140)
    assert psnr(a[middle, inner], b[middle, inner], np.ones((4, 120), np.bool_)) > 27
    assert psnr(a[top, inner], b[top, inner], np.ones((4, 120), np.bool_)) < 20


@ignores_numpy_warnings
def test_the_kernels_draw_the_same() -> None:
    fmt = make_format("yuv420p", 18, 10)
    config = RenderConfig() if torch.cuda.is_available() else CPU
    frames = {i: source(fmt, pose(1.5 * (i - 10)), i) for i in (9, 10)}
    ours, theirs = (
        renderer.render(10, virtual(fmt), frames)
        for renderer in (SplatRenderer(fmt, config, backend="triton"), SplatRenderer(fmt, CPU, backend="reference"))
    )
    for a, b in zip(ours.frame.planes, theirs.frame.planes, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    np.testing.assert_array_equal(ours.valid, theirs.valid)


@pytest.mark.needs_cuda
def test_a_gpu_draws_the_same() -> None:
    sources = scene_sources("crowd", (28, 31, 32, 33, 36))
    fmt = sources[32].frame.format
    ours, theirs = (
        SplatRenderer(fmt, RenderConfig(render_device=name)).render(32, stable_camera("crowd", 32), sources)
        for name in ("cuda", "cpu")
    )
    for a, b in zip(ours.frame.planes, theirs.frame.planes, strict=True):
        assert (np.abs(a.astype(int) - b) > 1).mean() < 1e-3
    assert (np.abs(ours.valid.astype(int) - theirs.valid) > 4).mean() < 1e-3


def test_the_config_chooses() -> None:
    fmt = make_format("yuv420p", 64, 48)
    config = RenderConfig(renderer="splat", render_device="cpu")
    assert isinstance(make_renderer(config, fmt), SplatRenderer)
    assert isinstance(make_renderer(RenderConfig(), fmt), WarpRenderer)
    rendering = make_rendering(Config(render=config), fmt, SourceWindow(before=1, after=1))
    assert isinstance(vars(rendering)["_renderer"], SplatRenderer)
    with pytest.raises(InputError, match="expected frame 3 among the sources"):
        SplatRenderer(fmt, CPU).render(3, virtual(fmt), plane_frames(fmt))
