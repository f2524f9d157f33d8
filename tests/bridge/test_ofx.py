"""The OpenFX plugin in a small host of our own, against the command line."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.bridge.conftest import (
    BUILD,
    FRAMES,
    HEIGHT,
    LIBRARY,
    VS3R,
    WIDTH,
    Form,
    Pictures,
    engines,
    luma,
    make_clip,
    need,
    stabilize,
)
from tests.bridge.ofx_host import OK, REPLY_DEFAULT, OfxHost
from tests.bridge.ofx_things import DEPTHS, Array, Layout, Thing
from vs3r.config import RenderConfig, SmoothConfig

# Mean difference of luma that went to RGB and back. Worst seen: 0.14; the next frame: 1.3.
MEAN_LUMA = 0.4
# Of pictures scaled by two filters. Worst seen: 2.4.
SCALED = 3.0
WHITE = {"OfxBitDepthByte": 255, "OfxBitDepthShort": 65535, "OfxBitDepthHalf": 1, "OfxBitDepthFloat": 1}
FLOAT = Layout(depth="OfxBitDepthFloat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip that was analysed by the button."""

    path: Path
    """Its file."""
    steady: Pictures
    """(T, H, W) luma of what `vs3r stabilize` makes of it."""


@pytest.fixture
def host(library: Path) -> Iterator[OfxHost]:
    """A host that has the plugin loaded, and finds no fault with it."""
    host = OfxHost(library)
    yield host
    host.unload()
    assert host.violations == []


@pytest.fixture(scope="module")
def analysed(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """A clip analysed by the button."""
    folder = tmp_path_factory.mktemp("ofx")
    path = make_clip(folder / "shaky clip.mp4", seed=3)
    host = OfxHost(library)
    shares: list[float] = []

    def show(share: float) -> bool:
        shares.append(share)
        return True

    host.progress = show
    instance = on_clip(host, path)
    host.change(instance, analyse=None)
    assert instance.parts["status"].value == f"analysed: {FRAMES} frames"
    assert shares and min(shares) >= 0 and max(shares) <= 1
    host.unload()
    return Clip(path=path, steady=stabilize(path, folder / "steady.mkv"))


def on_clip(host: OfxHost, path: Path, **values: object) -> Thing:
    """An instance on a clip that the host names, as long as its timeline; `values` of parameters."""
    instance = host.instance(OfxImageEffectPropSrcFilePath=[str(path)])
    instance.parts["Source"].values |= {"OfxImageEffectPropFrameRange": [0.0, FRAMES - 1.0]}
    for name, value in values.items():
        instance.parts[name].value = value
    return instance


def grey(depth: str = "OfxBitDepthByte", width: int = WIDTH, height: int = HEIGHT) -> Array:
    """(H, W, 4) a source picture without likeness to the clip."""
    white = WHITE[depth]
    picture = np.full((height, width, 4), white * 0.25, np.float64)
    picture[..., 3] = white
    result: Array = picture.astype(DEPTHS[depth])
    return result


def luma_of(pixels: Array, depth: str = "OfxBitDepthByte") -> Array:
    """(H, W) luma, 16 to 235, of RGBA (ITU-R BT.601)."""
    shares = pixels[..., :3].astype(np.float64) / WHITE[depth]
    result: Array = 16 + 219 * shares @ np.array([0.299, 0.587, 0.114])
    return result


def near(found: Array, expected: Array, limit: float = MEAN_LUMA) -> bool:
    """Luma is that of the frame that was expected."""
    return bool(np.abs(found - expected.astype(np.float64)).mean() < limit)


def untouched(found: Array, source: Array) -> bool:
    """The source passed through."""
    return bool((found == source).all())


def test_it_describes_itself_with_the_engine_s_own_choices(host: OfxHost) -> None:
    assert host.plugin.api == b"OfxImageEffectPluginAPI" and host.plugin.api_version == 1
    described = host.descriptor.values
    contexts = ["OfxImageEffectContextFilter", "OfxImageEffectContextGeneral"]
    assert described["OfxImageEffectPropSupportedContexts"] == contexts
    assert described["OfxImageEffectPropSupportedPixelDepths"] == list(DEPTHS)
    assert described["OfxImageEffectPropSupportsTiles"] == [0]
    camera = next(f for f in fields(RenderConfig) if f.name == "camera")
    for context in contexts:
        parts = host.instance(context).parts
        assert len(parts["camera"].values["OfxParamPropChoiceOption"]) == len(camera.metadata["choices"])
        assert parts["smoothness"].value == SmoothConfig().smoothness
        assert parts["frame_limit"].value == SmoothConfig().min_own_share
        for name in ("smoothness", "frame_limit"):
            values = parts[name].values
            assert values["OfxParamPropMin"] == values["OfxParamPropDisplayMin"] == [0.0]
            assert values["OfxParamPropMax"] == values["OfxParamPropDisplayMax"] == [1.0]
        for clip in ("Source", "Output"):
            assert parts[clip].values["OfxImageEffectPropSupportedComponents"] == ["OfxImageComponentRGBA"]


def test_it_says_what_it_needs(host: OfxHost) -> None:
    instance = host.instance()
    region = [10.0, 20.0, 110.0, 84.0]
    instance.parts["Source"].values["region"] = region
    given = host.thing(OfxPropTime=[7.0])
    for action, name, expected in (
        ("GetFramesNeeded", "OfxImageClipPropFrameRange_Source", [7.0, 7.0]),
        ("GetRegionOfDefinition", "OfxImageEffectPropRegionOfDefinition", region),
        ("GetRegionsOfInterest", "OfxImageClipPropRoI_Source", region),
    ):
        got = host.thing()
        assert host.act(f"OfxImageEffectAction{action}", instance, given, got) == OK
        assert got.values == {name: expected}
    got = host.thing()
    assert host.act("OfxImageEffectActionIsIdentity", instance, given, got) == REPLY_DEFAULT
    host.change(instance, smoothness=0.0)
    assert host.act("OfxImageEffectActionIsIdentity", instance, given, got) == OK
    assert got.values == {"OfxPropName": ["Source"], "OfxPropTime": [7.0]}
    host.change(instance, camera=1)
    assert host.act("OfxImageEffectActionIsIdentity", instance, given, got) == REPLY_DEFAULT


@pytest.mark.parametrize("downward", [False, True])
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_the_result_is_that_of_the_command_line(host: OfxHost, analysed: Clip, depth: str, downward: bool) -> None:
    layout = Layout(depth=depth, downward=downward)
    instance = on_clip(host, analysed.path)
    found = host.render(instance, 9.0, grey(depth), layout)
    assert near(luma_of(found, depth), analysed.steady[9])
    assert not near(luma_of(found, depth), analysed.steady[10])
    assert (found[..., 3] == WHITE[depth]).all()
    exact = host.render(instance, 9.0, grey("OfxBitDepthFloat"), FLOAT)
    step = {"OfxBitDepthByte": 1 / 255, "OfxBitDepthShort": 1 / 65535, "OfxBitDepthHalf": 2**-11, "OfxBitDepthFloat": 0}
    assert np.abs(found[..., :3].astype(np.float64) / WHITE[depth] - exact[..., :3]).max() <= step[depth] / 2 + 1e-7


@pytest.mark.parametrize("depth", list(DEPTHS))
@pytest.mark.parametrize("alpha", ["OfxImageAlphaUnPremultiplied", "OfxImageAlphaPremultiplied", "OfxImageOpaque"])
@pytest.mark.parametrize("gap_bytes", [32, 36])
def test_alpha_stays_the_source_s(host: OfxHost, analysed: Clip, depth: str, alpha: str, gap_bytes: int) -> None:
    """Also in rows that do not begin where the processor likes it; of a source that is opaque nobody reads it."""
    source = grey(depth)
    source[..., 3] = (np.linspace(0, 1, WIDTH) * WHITE[depth]).astype(source.dtype)
    instance = on_clip(host, analysed.path)
    found = host.render(instance, 5.0, source, Layout(depth=depth, alpha=alpha, gap_bytes=gap_bytes)).astype(np.float64)
    opaque = host.render(instance, 5.0, grey("OfxBitDepthFloat"), FLOAT).astype(np.float64)
    assert (found[..., 3] == (WHITE[depth] if alpha == "OfxImageOpaque" else source[..., 3])).all()
    share = source[..., 3:].astype(np.float64) / WHITE[depth] if alpha == "OfxImageAlphaPremultiplied" else 1.0
    # Two roundings of the depth's step.
    tolerance = 2**-10 if depth == "OfxBitDepthHalf" else 1.01 / max(WHITE[depth], 1000)
    tolerance = 1.01 / 255 if depth == "OfxBitDepthByte" else tolerance
    assert np.abs(found[..., :3] / WHITE[depth] - opaque[..., :3] * share).max() <= tolerance


def test_a_proxy_is_the_same_picture_smaller(host: OfxHost, analysed: Clip) -> None:
    instance = on_clip(host, analysed.path)
    small = grey(width=WIDTH // 2, height=HEIGHT // 2)
    found = luma_of(host.render(instance, 4.0, small, OfxImageEffectPropRenderScale=[0.5, 0.5]))
    half = cv2.resize(analysed.steady[4], (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    assert near(found, half, SCALED)
    # A render that is smaller across only.
    narrow = grey(width=WIDTH // 2)
    found = luma_of(host.render(instance, 4.0, narrow, OfxImageEffectPropRenderScale=[0.5, 1.0]))
    assert near(found, cv2.resize(analysed.steady[4], (WIDTH // 2, HEIGHT), interpolation=cv2.INTER_AREA), SCALED)


def test_another_shape_gets_bars_of_the_source(host: OfxHost, analysed: Clip) -> None:
    instance = on_clip(host, analysed.path)
    tall = grey(height=128)
    found = host.render(instance, 4.0, tall)
    assert near(luma_of(found)[32:96], analysed.steady[4])
    assert untouched(found[:32], tall[:32]) and untouched(found[96:], tall[96:])
    # The same shape in pixels twice as wide as high.
    found = host.render(instance, 4.0, tall, Layout(pixel_aspect=2.0))
    assert near(cv2.resize(luma_of(found), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), analysed.steady[4], SCALED)


@pytest.mark.parametrize(("turn", "rotation"), [(1, 90), (2, 180), (3, 270)])
def test_a_turned_clip_stands_upright(host: OfxHost, tmp_path: Path, turn: int, rotation: int) -> None:
    # What the command line makes of it as it is coded.
    steady = stabilize(make_clip(tmp_path / "flat.mp4", seed=20), tmp_path / "steady.mkv")[9]
    instance = on_clip(host, make_clip(tmp_path / "turned.mp4", seed=20, form=Form(rotation_deg=rotation)))
    host.change(instance, unanalysed=1)
    upright = np.rot90(steady, turn)
    found = luma_of(host.render(instance, 9.0, grey(width=upright.shape[1], height=upright.shape[0])))
    assert near(found, upright) and not near(found, np.rot90(steady, turn + 2))
    # In a timeline of another shape: bars.
    tall = grey(height=2 * upright.shape[0], width=upright.shape[1])
    assert near(luma_of(host.render(instance, 9.0, tall))[upright.shape[0] // 2 :][: upright.shape[0]], upright)


def test_only_the_window_is_drawn(host: OfxHost, analysed: Clip) -> None:
    found = host.render(
        on_clip(host, analysed.path), 4.0, grey(), OfxImageEffectPropRenderWindow=[10, 5, WIDTH - 20, HEIGHT - 15]
    )
    inner = slice(15, HEIGHT - 5), slice(10, WIDTH - 20)
    assert near(luma_of(found)[inner], analysed.steady[4][inner])
    rest = np.ones((HEIGHT, WIDTH), bool)
    rest[inner] = False
    assert (found[rest] == 77).all()


@pytest.mark.parametrize(
    ("clip", "time", "arguments", "frame"),
    [
        ({}, 6.0, {"OfxImageEffectPropSrcFrame": [11]}, 11),
        ({"OfxImageEffectPropFrameRange": [1001.0, 1024.0]}, 1008.0, {}, 7),
        (
            {"OfxImageEffectPropFrameRate": [50.0], "OfxImageEffectPropUnmappedFrameRate": [25.0]},
            16.0,
            {},
            8,
        ),
        ({}, 400.0, {}, FRAMES - 1),
        ({}, -3.0, {}, 0),
    ],
)
def test_every_way_to_count_leads_to_the_file_s_frame(
    host: OfxHost, analysed: Clip, clip: dict[str, list[Any]], time: float, arguments: dict[str, list[Any]], frame: int
) -> None:
    instance = on_clip(host, analysed.path)
    instance.parts["Source"].values |= clip
    assert near(luma_of(host.render(instance, time, grey(), Layout(), **arguments)), analysed.steady[frame])


def test_a_trim_that_the_host_hides_is_set_by_hand(host: OfxHost, analysed: Clip) -> None:
    instance = on_clip(host, analysed.path)
    host.change(instance, frame_offset=5)
    assert near(luma_of(host.render(instance, 4.0, grey())), analysed.steady[9])


def test_frames_come_right_from_threads_and_two_instances(host: OfxHost, analysed: Clip) -> None:
    pair = on_clip(host, analysed.path), on_clip(host, analysed.path)
    host.change(pair[1], smoothness=0.9)
    order = np.random.default_rng(5).permutation(FRAMES)
    with ThreadPoolExecutor(4) as pool:
        first = dict(pool.map(lambda k: (k, host.render(pair[0], float(k), grey())), order))
        mixed = list(pool.map(lambda k: host.render(pair[k % 2], float(k), grey()), order))
    assert all(near(luma_of(first[k]), analysed.steady[k]) for k in range(FRAMES))
    own = [near(luma_of(picture), analysed.steady[k]) for k, picture in zip(order, mixed, strict=True) if k % 2 == 0]
    other = [untouched(picture, first[k]) for k, picture in zip(order, mixed, strict=True) if k % 2]
    assert all(own) and not any(other)


def test_an_instance_for_every_frame_in_several_threads(host: OfxHost, analysed: Clip) -> None:
    """As in MLT's own host."""

    def one(index: int) -> Array:
        instance = on_clip(host, analysed.path)
        picture = host.render(instance, float(index), grey())
        host.destroy(instance)
        return picture

    order = [int(k) for k in np.random.default_rng(8).permutation(FRAMES)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, order))
    assert all(near(luma_of(picture), analysed.steady[k]) for k, picture in zip(order, found, strict=True))


def test_a_reopened_project_needs_no_analysis(library: Path, analysed: Clip, tmp_path: Path) -> None:
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(analysed.path.read_bytes())
    for path in (analysed.path, moved):
        other = OfxHost(library)
        instance = other.instance()
        other.change(instance, source_file=str(path))
        assert near(luma_of(other.render(instance, 3.0, grey())), analysed.steady[3])
        other.destroy(instance)
        other.unload()


def test_a_copied_effect_takes_the_clip_that_it_lies_on(host: OfxHost, analysed: Clip, clip: Path) -> None:
    instance = on_clip(host, analysed.path)
    instance.parts["source_file"].value = str(clip)
    assert near(luma_of(host.render(instance, 3.0, grey())), analysed.steady[3])


def test_a_file_that_was_replaced_is_analysed_and_shown(host: OfxHost, analysed: Clip, tmp_path: Path) -> None:
    path, other = tmp_path / "clip.mp4", make_clip(tmp_path / "other.mp4", seed=8)
    path.write_bytes(analysed.path.read_bytes())
    instance = on_clip(host, path)
    assert near(luma_of(host.render(instance, 5.0, grey())), analysed.steady[5])
    other.rename(path)
    host.change(instance, analyse=None)
    assert near(luma_of(host.render(instance, 5.0, grey())), stabilize(path, tmp_path / "steady.mkv")[5])


def test_what_is_not_analysed_passes_through_and_says_so(host: OfxHost, clip: Path) -> None:
    nameless = host.instance()
    assert untouched(host.render(nameless, 0.0, grey()), grey())
    assert "choose the clip's under Source file" in host.messages[-1]
    instance = on_clip(host, clip)
    assert untouched(host.render(instance, 0.0, grey()), grey())
    assert "press Analyse" in host.messages[-1]
    host.change(instance, smoothness=0.5)
    assert "press Analyse" in instance.parts["status"].value
    # A thumbnail never waits; the second is Resolve's way to say it.
    host.change(instance, unanalysed=1)
    assert untouched(host.render(instance, 0.0, grey(), OfxImageEffectPropThumbnailRender=[1]), grey())
    instance.parts["Source"].values["kOfxImageClipPropThumbnail"] = [1]
    assert untouched(host.render(instance, 0.0, grey()), grey())


def test_cancel_and_abort_end_the_analysis_and_the_wait(host: OfxHost, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "cancelled.mp4", seed=6)
    instance = on_clip(host, path)
    host.progress = lambda _share: False
    host.change(instance, analyse=None)
    assert "cancelled" in instance.parts["status"].value
    asked = iter([False] * 4)
    instance.abort = lambda: next(asked, True)
    host.change(instance, unanalysed=1)
    host.render(instance, 0.0, grey())
    assert next(asked, None) is None


def test_choices_and_the_engine_s_address_reach_the_engine(
    host: OfxHost, analysed: Clip, engine_environment: dict[str, str], tmp_path: Path
) -> None:
    instance = on_clip(host, analysed.path)
    camera = next(f for f in fields(RenderConfig) if f.name == "camera").metadata["choices"]
    host.change(instance, fill=1, camera=camera.index("wide"))
    wide, options = tmp_path / "wide.mkv", ("--camera", "wide", "--refine", "none", "--codec", "ffv1", "--quiet")
    subprocess.run([VS3R, "stabilize", analysed.path, wide, *options], check=True, timeout=200)
    host.change(instance, engine=f"unix:{engine_environment['XDG_RUNTIME_DIR']}/vs3r/engine.sock")
    found = luma_of(host.render(instance, 9.0, grey()))
    assert near(found, luma(wide)[9]) and not near(found, analysed.steady[9])
    host.change(instance, engine=f"unix:{tmp_path}/nobody.sock")
    assert untouched(host.render(instance, 9.0, grey()), grey())
    assert f"cannot reach the engine at unix:{tmp_path}/nobody.sock" in host.messages[-1]


def test_a_host_that_tells_little_is_enough(library: Path, analysed: Clip) -> None:
    told = {"RegionOfDefinition", "PixelAspectRatio", "PreMultiplication", "RenderScale", "RenderWindow", "FrameRange"}
    kinds = ("OfxImageEffectProp", "OfxImageProp")
    hidden = frozenset(kind + name for kind in kinds for name in told) | {"OfxImageEffectPropSrcFilePath"}
    host = OfxHost(library, hidden=hidden, hollow=True)
    instance = on_clip(host, analysed.path, source_file=str(analysed.path))
    # In the background, as no progress can be shown; a render waits.
    host.change(instance, analyse=None, unanalysed=1)
    assert near(luma_of(host.render(instance, 9.0, grey())), analysed.steady[9])
    assert untouched(host.render(on_clip(host, analysed.path), 9.0, grey()), grey())
    host.unload()
    assert host.messages == host.violations == []


def test_an_export_waits_where_asked(host: OfxHost, tmp_path: Path) -> None:
    instance = on_clip(host, make_clip(tmp_path / "waiting.mp4", seed=7))
    host.change(instance, unanalysed=1)
    assert not untouched(host.render(instance, 2.0, grey()), grey())
    assert host.messages == []


def test_an_engine_that_dies_leaves_the_source_and_a_word(
    host: OfxHost, analysed: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    instance = on_clip(host, analysed.path)
    host.change(instance, smoothness=0.31)
    before = host.render(instance, 2.0, grey())
    assert not untouched(before, grey())
    (engine,) = engines(runtime)
    asked = iter((signal.SIGSTOP, None, None, signal.SIGKILL))

    def strike() -> bool:
        number = next(asked, None)
        if number is not None:
            os.kill(engine, number)
        return False

    instance.abort = strike
    assert untouched(host.render(instance, 12.0, grey()), grey())
    assert next(asked, "over") == "over"
    assert "has gone" in host.messages[-1] and "passes through" in host.messages[-1]
    # What is drawn already is still there.
    assert untouched(host.render(instance, 2.0, grey()), before)
    assert host.messages[-1] == ""


def test_without_an_engine_a_bare_host_shows_the_source(
    library: Path, analysed: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("VS3R_COMMAND", "/nonexistent/vs3r")
    # No progress, and messages only in the log.
    bare = OfxHost(library, suites=frozenset({("OfxMessageSuite", 1)}))
    instance = on_clip(bare, analysed.path)
    bare.change(instance, smoothness=0.32)
    assert untouched(bare.render(instance, 2.0, grey()), grey())
    assert "/nonexistent/vs3r cannot be run" in bare.messages[-1]
    bare.change(instance, analyse=None)
    assert instance.parts["status"].value
    bare.unload()
    mute = OfxHost(library, suites=frozenset())
    assert untouched(mute.render(on_clip(mute, analysed.path.with_name("none.mp4")), 2.0, grey()), grey())
    mute.unload()


def test_nothing_of_grpc_enters_the_host() -> None:
    need(str(LIBRARY.relative_to(BUILD)), "nm", "ldd")
    listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names == {"OfxGetNumberOfPlugins", "OfxGetPlugin", "OfxSetHost"}
    linked = subprocess.run(["ldd", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in linked and "grpc" not in linked and "protobuf" not in linked
