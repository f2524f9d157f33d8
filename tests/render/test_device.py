"""Planes drawn by the operator, held against those drawn by OpenCV: rendered scenes whose borders neighbours fill."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.kernels.common import ignores_numpy_warnings
from tests.render.plane_world import intrinsics, make_format, pose, source
from tests.render.scene_world import scene_sources, stable_camera
from vs3r.config import RenderConfig
from vs3r.errors import BackendError
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.render.device import DeviceDrawer
from vs3r.render.layers import Layer
from vs3r.render.planes import CpuDrawer, make_drawer
from vs3r.types import FloatArray, Plane, RenderedFrame, VirtualCamera

CPU = torch.device("cpu")
LEAST_PSNR = {8: 60.0, 10: 68.0}
"""In dB, per plane and bit depth: OpenCV rounds positions to 1/32 px. Worst seen 66.5 and 72.4."""
OFF = 5e-4
"""Share of pixels that may be off by more than a level: on the hard edge where a source begins. Worst seen 0.00012."""


def agree(ours: Sequence[Plane], theirs: Sequence[Plane], bit_depth: int) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.flags.c_contiguous
        error = np.abs(a.astype(np.float64) - b)
        assert (error > 1).mean() <= OFF
        decibel = 10 * np.log10(((1 << bit_depth) - 1) ** 2 / max(np.square(error).mean(), 1e-9))
        assert decibel > LEAST_PSNR[bit_depth]


@functools.cache
def walk(bit_depth: int) -> dict[int, SourceFrame]:
    return scene_sources("walking", range(20, 45), bit_depth)


def rendered(index: int, bit_depth: int, device: torch.device | None) -> RenderedFrame:
    """By the operator on a device, or by OpenCV."""
    sources = walk(bit_depth)
    fmt = sources[index].frame.format
    drawer = CpuDrawer(fmt) if device is None else DeviceDrawer(fmt, device)
    renderer = WarpRenderer(fmt, RenderConfig(), drawer=drawer)
    return renderer.render(index, stable_camera("walking", index), sources)


@pytest.mark.parametrize("bit_depth", [8, 10])
@pytest.mark.parametrize("index", [28, 32, 36])
def test_the_operator_draws_what_opencv_draws(index: int, bit_depth: int) -> None:
    ours, theirs = rendered(index, bit_depth, CPU), rendered(index, bit_depth, None)
    assert theirs.own_share < 0.995 < theirs.valid_share, "neighbours must matter"
    agree(ours.frame.planes, theirs.frame.planes, bit_depth)
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    again = rendered(index, bit_depth, CPU)
    for a, b in zip(ours.frame.planes, again.frame.planes, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("bit_depth", [8, 10])
def test_a_gpu_draws_what_opencv_draws(bit_depth: int) -> None:
    for index in (28, 32, 36):
        ours = rendered(index, bit_depth, torch.device("cuda"))
        agree(ours.frame.planes, rendered(index, bit_depth, None).frame.planes, bit_depth)


@pytest.mark.parametrize("damage", ["shifted", "chroma", "one layer less", "brighter"])
def test_the_comparison_can_fail(damage: str) -> None:
    class Damaged(DeviceDrawer):
        def draw(self, layers: Sequence[Layer], keep: FloatArray, out: Sequence[Plane], /) -> None:
            super().draw(layers[:-1] if damage == "one layer less" else layers, keep, out)
            y, u, v = out
            if damage == "shifted":
                y[:] = np.roll(y, 1, axis=1)
            if damage == "chroma":
                u[:], v[:] = v.copy(), u.copy()
            if damage == "brighter":
                for plane in out:
                    plane += np.uint8(1)

    sources = walk(8)
    fmt = sources[28].frame.format
    renderer = WarpRenderer(fmt, RenderConfig(), drawer=Damaged(fmt, CPU))
    found = renderer.render(28, stable_camera("walking", 28), sources)
    with pytest.raises(AssertionError):
        agree(found.frame.planes, rendered(28, 8, None).frame.planes, 8)


@ignores_numpy_warnings
@pytest.mark.parametrize(("pix_fmt", "size"), [("yuv420p", (33, 17)), ("yuv422p10le", (18, 34)), ("ya8", (23, 16))])
def test_the_kernel_itself(pix_fmt: str, size: tuple[int, int]) -> None:
    """Interpreted where there is no GPU, so tiny. Odd sizes, a hole, alpha."""
    fmt = make_format(pix_fmt, *size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sources = {i: source(fmt, pose(0.8 * i - 2), i) for i in range(4)}
    camera = VirtualCamera(K=intrinsics(fmt), cam_from_world=pose(2, 1.5, 4))
    ours, theirs = (
        WarpRenderer(fmt, RenderConfig(), drawer=drawer).render(2, camera, sources).frame
        for drawer in (DeviceDrawer(fmt, device, backend="triton"), CpuDrawer(fmt))
    )
    for a, b in zip(ours.planes, theirs.planes, strict=True):
        error = np.abs(a.astype(int) - b)
        assert error.max() <= (1 if fmt.bit_depth == 8 else 4)


def test_a_source_is_sent_once_and_forgotten_with_it() -> None:
    fmt = make_format("yuv420p", 64, 48)
    sources = {i: source(fmt, pose(0.5 * i), i) for i in range(3)}
    drawer = DeviceDrawer(fmt, CPU)
    renderer = WarpRenderer(fmt, RenderConfig(), drawer=drawer)
    camera = VirtualCamera(K=intrinsics(fmt), cam_from_world=pose(4, 3))
    first = renderer.render(1, camera, sources)
    sent = dict(drawer._sent)
    assert sources[1] in sent
    second = renderer.render(1, camera, sources)
    assert all(drawer._sent[s] is tensor for s, tensor in sent.items())
    np.testing.assert_array_equal(first.frame.planes[0], second.frame.planes[0])
    del sent, sources
    gc.collect()
    assert not drawer._sent


def test_the_config_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = make_format("yuv420p", 64, 48)
    assert isinstance(make_drawer(RenderConfig(render_device="cpu"), fmt), CpuDrawer)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("auto", "cuda"):
        assert isinstance(make_drawer(RenderConfig(render_device=name), fmt), DeviceDrawer)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(make_drawer(RenderConfig(), fmt), CpuDrawer)
    with pytest.raises(
        BackendError, match=r"render_device cuda: expected the package triton.*; or ask for auto or cpu"
    ):
        make_drawer(RenderConfig(render_device="cuda"), fmt)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert isinstance(make_drawer(RenderConfig(), fmt), CpuDrawer)
    with pytest.raises(BackendError, match="render_device cuda: expected an NVIDIA GPU; PyTorch finds none"):
        WarpRenderer(fmt, RenderConfig(render_device="cuda"))
