"""The refiner on a stream, around networks whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from tests.render.plane_world import make_format, pose, source
from vs3r.config import WanConfig
from vs3r.errors import BackendError
from vs3r.refine.wan.denoise import Condition, denoise
from vs3r.refine.wan.model import memory_errors
from vs3r.refine.wan.pictures import model_video, planes_from_rgb, rgb_from_frame
from vs3r.refine.wan.refiner import WanRefiner
from vs3r.refine.wan.schedule import sigma_table
from vs3r.refine.wan.windows import A14B, TI2V_5B
from vs3r.types import Frame, PictureFormat, Plane, RenderedFrame

FMT = make_format("yuv420p", 48, 32)
SHORT = WanConfig(wan_window_frames=9, wan_stride_frames=4, wan_steps=3)


class MeanCodec:
    """A latent cell is the mean colour of what it covers: exact on constant pictures."""

    def encode(self, video: Tensor) -> Tensor:
        video = torch.cat([video[:, :, :1].repeat(1, 1, 3, 1, 1), video], dim=2)
        latents = torch.zeros(1, 16, video.shape[2] // 4, video.shape[3] // 8, video.shape[4] // 8)
        latents[:, :3] = torch.nn.functional.avg_pool3d(video, (4, 8, 8))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        video = torch.nn.functional.interpolate(latents[:, :3], scale_factor=(4, 8, 8), mode="nearest")
        return video[:, :, 3:]


class Oracle:
    """Leads to the given render, plus `shift`, in a straight line."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift
        self.inputs: list[Tensor] = []

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        self.inputs.append(model_input)
        return (model_input[:, :16] - model_input[:, 20:] - self.shift) / sigma


class Scatter:
    """Anything, but the same for the same input."""

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        return torch.sin(3 * model_input[:, :16] + 5 * model_input[:, 20:] + sigma)


def picture(fmt: PictureFormat, value: int | None, hole: int, pts: int = 0) -> RenderedFrame:
    """A constant or textured picture of which `hole` columns of cells are not known."""
    frame = source(fmt, pose()).frame
    planes: tuple[Plane, ...] = frame.planes
    if value is not None:
        planes = tuple(np.full_like(plane, value if i == 0 else 128) for i, plane in enumerate(planes))
    valid = np.full((fmt.height // 4, fmt.width // 4), 255, np.uint8)
    valid[:, :hole] = 0
    frame = Frame(format=fmt, planes=planes, pts=pts, time_base=frame.time_base)
    return RenderedFrame(frame=frame, valid=valid, own_share=1.0, valid_share=float((valid > 0).mean()))


def refiner(config: WanConfig, experts: Any, check: Callable[[], None] = lambda: None) -> WanRefiner:
    return WanRefiner(config, experts, MeanCodec(), check=check)


def run(stage: WanRefiner, pictures: list[RenderedFrame]) -> list[Frame]:
    done = [frame for given in pictures for frame in stage.push(given, segment=0)]
    return done + stage.flush()


@pytest.mark.parametrize("frames", [*range(1, 19), 81, 200])
def test_a_constant_clip_of_any_length_stays_constant(frames: int) -> None:
    out = run(refiner(SHORT, Oracle()), [picture(FMT, 90, 4, pts=i) for i in range(frames)])
    assert [frame.pts for frame in out] == list(range(frames))
    for frame in out:
        for i, plane in enumerate(frame.planes):
            assert np.ptp(plane) == 0 and abs(int(plane[0, 0]) - (90 if i == 0 else 128)) <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gray", "gbrp", "yuva444p"])
def test_what_was_right_stays_to_the_bit(pix_fmt: str) -> None:
    fmt = make_format(pix_fmt, 64, 48)
    given = [picture(fmt, None, 3) for _ in range(11)]
    out = run(refiner(SHORT, Scatter()), given)
    changed = feathered = 0
    for frame, was in zip(out, given, strict=True):
        for ours, theirs in zip(frame.planes, was.frame.planes, strict=True):
            # Three cells of 4 px are unknown, a fourth and half a fifth are the feather.
            border = 18 * ours.shape[1] // fmt.width
            np.testing.assert_array_equal(ours[:, border:], theirs[:, border:])
            changed += int((ours[:, :border] != theirs[:, :border]).sum())
        # In the last two columns of the feather five and seven eighths are the picture's own.
        feathered += int((frame.planes[0][:, 16:18] != was.frame.planes[0][:, 16:18]).sum())
    assert changed > 1000 and feathered > 100


def test_the_repair_is_in_the_hole_and_takes_the_colours_around_it() -> None:
    # The model's picture is darker as a whole, and has a bright patch in the hole.
    class Patch(Oracle):
        def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
            target = model_input[:, 20:] - 0.3
            target[..., 1:3, 0:1] += 0.8
            return (model_input[:, :16] - target) / sigma

    fmt = make_format("yuv420p", 128, 96)
    luma = run(refiner(SHORT, Patch()), [picture(fmt, 90, 8) for _ in range(5)])[2].planes[0].astype(int)
    assert abs(np.median(luma[48:, :16]) - 90) <= 2, "the rest of the hole has the level of the picture"
    assert luma[12:20, 1:6].min() > 150, "the patch is shown"
    assert (luma[:, 64:] == 90).all()


def test_a_clip_without_holes_is_left_alone() -> None:
    oracle = Oracle()
    given = [picture(FMT, None, 0) for _ in range(12)]
    out = run(refiner(SHORT, oracle), given)
    assert all(frame is was.frame for frame, was in zip(out, given, strict=True)) and not oracle.inputs


def test_windows_share_what_is_settled() -> None:
    oracle = Oracle(shift=0.25)
    stage = refiner(SHORT, oracle)
    done = []
    for i in range(13):
        done += stage.push(picture(FMT, 90, 4), segment=0)
        assert len(done) == (0 if i < 8 else 4 if i < 12 else 8), "as early as can be, never more held than a window"
    assert len(done) + len(stage.flush()) == 13
    first, second = oracle.inputs[0], oracle.inputs[3]
    assert len(oracle.inputs) == 6
    # Latent frame 1 of the second window is number 2 of the first: known wholly, with the latents the first ended with.
    torch.testing.assert_close(second[:, 20:, 1], first[:, 20:, 2] + 0.25)
    assert (second[:, 16:20, 1] == 1).all() and (second[:, 16:20, 2] < 1).any() and (first[:, 16:20, 2] < 1).any()
    torch.testing.assert_close(second[:, :16, 1], first[:, :16, 2], rtol=0, atol=0)


def test_windows_are_feathered_and_a_later_ones_first_frame_is_not_used() -> None:
    class Drifting(MeanCodec):
        """Makes a patch in the hole brighter in every window than in the one before."""

        windows = 0

        def decode(self, latents: Tensor) -> Tensor:
            video = super().decode(latents)
            video[..., :8, :8] += 0.3 * self.windows
            self.windows += 1
            return video

    stage = WanRefiner(SHORT, Oracle(), Drifting(), check=lambda: None)
    patch = [int(frame.planes[0][4, 4]) for frame in run(stage, [picture(FMT, 90, 4) for _ in range(13)])]
    step = 0.15 * 219
    expected = [0.0] * 4 + [step * i / 5 for i in range(5)] + [step] * 4
    np.testing.assert_allclose(np.array(patch) - patch[0], expected, atol=1)


def test_the_model_is_told_of_a_hole_and_what_is_blended_with_it() -> None:
    oracle = Oracle()
    run(refiner(SHORT, oracle), [picture(FMT, 90, 3) for _ in range(5)])
    # Three cells of 4 px, one around them, and pixels of the next that are blended from it: 18 of 48 px.
    told = oracle.inputs[0][0, 16:20]
    assert told.shape[-1] == 6
    torch.testing.assert_close(told, torch.tensor([0.0, 0, 0, 1, 1, 1]).expand_as(told))


def test_what_is_missing_of_the_models_sizes_repeats_the_border() -> None:
    pictures = np.random.default_rng(0).random((3, 20, 36, 3), np.float32)
    video = model_video(list(pictures), 5, A14B)[0].permute(1, 2, 3, 0)
    repeated = np.ix_(*(np.minimum(np.arange(n), last) for n, last in ((5, 2), (32, 19), (48, 35))))
    np.testing.assert_array_equal(video, 2 * pictures[repeated] - 1)


@pytest.mark.parametrize("frames", [1, 7, 9, 10, 14, 18])
def test_compiled_experts_see_few_shapes(frames: int) -> None:
    oracle = Oracle()
    config = WanConfig(wan_window_frames=9, wan_stride_frames=4, wan_steps=2, wan_compile=True)
    out = run(refiner(config, oracle), [picture(FMT, 90, 4, pts=i) for i in range(frames)])
    assert [frame.pts for frame in out] == list(range(frames))
    assert {given.shape[2] for given in oracle.inputs} <= {1, 3}
    assert all(np.ptp(plane) == 0 for frame in out for plane in frame.planes)


def test_what_is_settled_does_not_change() -> None:
    torch.manual_seed(0)
    render, noise, before = torch.randn(1, 16, 4, 2, 3), torch.randn(1, 16, 4, 2, 3), torch.randn(1, 16, 2, 2, 3)
    condition = Condition(render=render, mask=torch.zeros(1, 4, 4, 2, 3), before=before)
    found = denoise(Scatter(), condition, noise, sigmas=sigma_table(4), check=lambda: None)
    torch.testing.assert_close(found[:, :, 1:3], before, rtol=0, atol=0)
    assert not torch.isclose(found[:, :, 3], render[:, :, 3]).all()


def test_scenes_know_nothing_of_each_other() -> None:
    one, two = [picture(FMT, 90, 4) for _ in range(6)], [picture(FMT, 160, 4) for _ in range(6)]
    stage = refiner(SHORT, Scatter())
    done = [frame for scene, part in enumerate((one, two)) for f in part for frame in stage.push(f, segment=scene)]
    done += stage.flush()
    alone = refiner(SHORT, Scatter())
    expected = [frame for f in two for frame in alone.push(f, segment=1)] + alone.flush()
    assert len(done) == 12
    for ours, theirs in zip(done[6:], expected, strict=True):
        np.testing.assert_array_equal(ours.planes[0], theirs.planes[0])
    oracle = Oracle()
    both = refiner(SHORT, oracle)
    for scene in (0, 1):
        both.push(picture(FMT, 90, 4), segment=scene)
    both.flush()
    assert not torch.isclose(oracle.inputs[0][:, :16], oracle.inputs[3][:, :16]).any(), "each has noise of its own"


def test_the_seed_decides() -> None:
    def lumas(seed: int) -> Any:
        given = [picture(FMT, None, 4) for _ in range(13)]  # anew: holes are filled where they are
        config = WanConfig(wan_window_frames=9, wan_stride_frames=4, wan_steps=3, wan_seed=seed)
        return np.stack([frame.planes[0] for frame in run(refiner(config, Scatter()), given)])

    np.testing.assert_array_equal(lumas(1), lumas(1))
    assert (lumas(1) != lumas(2)).any()


def test_one_expert_starts_from_the_render() -> None:
    oracle = Oracle()
    config = WanConfig(wan_window_frames=9, wan_stride_frames=4, wan_steps=4, wan_experts="low")
    run(refiner(config, oracle), [picture(FMT, 90, 4)] * 5)
    assert len(oracle.inputs) == 2
    start, render = oracle.inputs[0][:, :16], oracle.inputs[0][:, 20:]
    sigma = sigma_table(4)[2]
    noise = (start - (1 - sigma) * render) / sigma
    assert abs(float(noise.std()) - 1) < 0.1 and abs(float(noise.mean())) < 0.1


def test_authors_form_says_that_all_is_right() -> None:
    oracle = Oracle()
    config = WanConfig(wan_window_frames=9, wan_stride_frames=4, wan_steps=2, wan_condition="authors")
    run(refiner(config, oracle), [picture(FMT, 90, 4)] * 5)
    assert (oracle.inputs[0][:, 16:20] == 1).all()


def test_a_compiler_that_fails_is_one_line() -> None:
    class Fails:
        def velocity(self, _input: Tensor, _sigma: float, /) -> Tensor:
            raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found\nand a page of it")

    with pytest.raises(BackendError, match=r"^--wan-compile: .*No working C.. compiler found\); .* or leave it out$"):
        run(refiner(SHORT, Fails()), [picture(FMT, 90, 4)])


def test_work_ends_between_two_steps() -> None:
    class End(Exception):
        pass

    oracle = Oracle()

    def check() -> None:
        if len(oracle.inputs) == 2:
            raise End

    stage = refiner(SHORT, oracle, check)
    with pytest.raises(End):
        run(stage, [picture(FMT, 90, 4)] * 5)
    assert len(oracle.inputs) == 2


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({}, "57 GB with --wan-experts both --wan-precision bf16, and a window comes on top; try --wan-experts swap"),
        ({"wan_experts": "swap"}, "try --wan-precision fp8-storage"),
        ({"wan_experts": "swap", "wan_compile": True}, "try --wan-precision fp8-weights"),
        (
            {"wan_experts": "low", "wan_precision": "fp8-storage"},
            "14 GB .* try --wan-window-frames 41 --wan-stride-frames 24",
        ),
        (
            {"wan_experts": "low", "wan_precision": "fp8-storage", "wan_window_frames": 33, "wan_stride_frames": 16},
            "try --wan-pixels 199680",
        ),
    ],
)
def test_a_full_gpu_is_told_what_is_smaller(values: dict[str, Any], advice: str) -> None:
    class Full:
        def velocity(self, _model_input: Tensor, _sigma: float, /) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BackendError, match=advice):
        run(refiner(WanConfig(**values), Full()), [picture(FMT, 90, 4)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_overflow_are_no_pictures(value: float) -> None:
    class Overflow:
        def velocity(self, model_input: Tensor, _sigma: float, /) -> Tensor:
            return torch.full_like(model_input[:, :16], value)

    with pytest.raises(BackendError, match="not finite with --wan-precision bf16; use"):
        run(refiner(SHORT, Overflow()), [picture(FMT, 90, 4)])


def test_a_full_gpu_with_the_small_model() -> None:
    def full() -> None:
        with memory_errors(WanConfig(), TI2V_5B):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BackendError, match=r"the 5B model takes 10 GB with .*; try --wan-precision fp8"):
        full()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "gray", "gbrp"])
def test_colours_there_and_back(pix_fmt: str) -> None:
    fmt = make_format(pix_fmt, 64, 48)
    rng = np.random.default_rng(0)
    rgb = rng.uniform(0.1, 0.9, (48, 64, 3)).astype(np.float32)
    if pix_fmt == "gray":
        rgb[:] = rgb[..., :1]
    planes = planes_from_rgb(rgb, fmt)
    dtype = np.uint16 if fmt.bit_depth > 8 else np.uint8
    whole = make_format({"yuv420p": "yuv444p"}.get(pix_fmt, pix_fmt), 64, 48)
    frame = Frame(
        format=whole,
        planes=cast("tuple[Plane, ...]", tuple(np.rint(plane).astype(dtype) for plane in planes)),
        pts=0,
        time_base=source(fmt, pose()).frame.time_base,
    )
    np.testing.assert_allclose(rgb_from_frame(frame, (64, 48)), rgb, atol=1.5 / 219)


def test_colours_are_those_of_bt709() -> None:
    rgb = np.array([[[1, 1, 1], [0, 0, 0], [1, 0, 0]]], np.float32)
    found = np.stack(planes_from_rgb(rgb, make_format("yuv444p", 3, 1)), -1)[0]
    np.testing.assert_allclose(np.rint(found), [[235, 128, 128], [16, 128, 128], [63, 102, 240]])
