"""The OpenFX plugin without a file: by frames of the host, and by saved tracks; against the command line."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.bridge.conftest import FRAMES, HEIGHT, VS3R, WIDTH, engines, make_clip, stabilize
from tests.bridge.ofx_host import OK, OfxHost
from tests.bridge.ofx_things import DEPTHS, Array, Layout, Thing
from tests.bridge.test_ofx import WHITE, grey, on_clip, untouched
from vs3r.config import RenderConfig

FIRST = 1001.0
"""Time of the clip's first frame on the host's timeline."""
# Mean difference out of 255, of the same frames from a file without loss. Worst seen: 0.60,
# where another neighbour fills a few rows (a ghost in 16 bits, none in 8), else 0.34; another frame: above 8.
NEAR = 0.7
# Of blurred pictures, median of five frames. Seen: 0.65; another frame: 2.17.
SCALED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """A clip as the host shows it."""

    path: Path
    """Its file (RGB, lossless), of which the host says nothing."""
    pictures: Array
    """(T, H, W, 4) its frames, 8 bits."""
    steady: Array
    """(T, H, W, 3) what `vs3r stabilize` makes of it."""
    track: Path
    """What `vs3r analyze` writes."""


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """A clip, its frames, and the command line's results."""
    folder = tmp_path_factory.mktemp("frames")
    path, steady, track = folder / "shaky.mkv", folder / "steady.mkv", folder / "shaky.vs3r"
    pictures = decoded(make_clip(folder / "shaky.mp4", seed=11))
    with av.open(str(path), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture[..., :3], format="rgb24").reformat(format="bgr0")))
        out.mux(video.encode(None))
    assert (decoded(path) == pictures).all()
    stabilize(path, steady)
    subprocess.run([VS3R, "analyze", path, "-o", track, "--quiet"], check=True, timeout=200)
    return Footage(path=path, pictures=pictures, steady=decoded(steady)[..., :3], track=track)


def decoded(path: Path) -> Array:
    """(T, H, W, 4) frames of a file, 8 bits."""
    with av.open(str(path)) as file:
        result: Array = np.stack([f.to_ndarray(format="rgba") for f in file.decode(video=0)])
    return result


@pytest.fixture
def host(library: Path) -> Iterator[OfxHost]:
    """A host that gives frames of other times."""
    host = OfxHost(library, temporal=True)
    yield host
    host.unload()
    assert host.violations == []


def in_depth(pictures: Array, depth: str) -> Array:
    """8-bit pictures in another depth."""
    result: Array = (pictures / 255.0 * WHITE[depth]).astype(DEPTHS[depth])
    return result


def on_frames(host: OfxHost, pictures: Array, layout: Layout | None = None, **effect: object) -> Thing:
    """An instance on a clip without a file."""
    instance = host.instance()
    source = instance.parts["Source"]
    source.values |= {
        "OfxImageEffectPropFrameRange": [FIRST, FIRST + len(pictures) - 1.0],
        "OfxImageEffectPropFrameRate": [25.0],
    }
    source.layout = layout

    def frame(time: float) -> Array | None:
        index = round(time - FIRST)
        return pictures[index] if 0 <= index < len(pictures) else None

    source.frames = frame
    for name, value in effect.items():
        instance.parts[name].value = value
    return instance


def show(host: OfxHost, instance: Thing, index: int, layout: Layout | None = None) -> Array:
    """The stabilized frame of a number."""
    source = instance.parts["Source"]
    assert source.frames is not None
    picture = source.frames(FIRST + index)
    assert picture is not None
    return host.render(instance, FIRST + index, picture, layout or source.layout)


@pytest.fixture(scope="module")
def state(library: Path, footage: Footage) -> str:
    """What the project keeps of an analysis of the host's frames."""
    host = OfxHost(library, temporal=True)
    instance = on_frames(host, footage.pictures)
    shares: list[float] = []

    def progress(share: float) -> bool:
        shares.append(share)
        return True

    host.progress = progress
    host.change(instance, analyse=None)
    assert instance.parts["status"].value == f"analysed: {FRAMES} frames"
    assert host.fetched == [FIRST + i for i in range(FRAMES)]
    assert shares == sorted(shares) and shares[-1] == 1
    host.unload()
    assert host.violations == []
    kept: str = instance.parts["track"].value
    assert len(kept) < 100 + 70 * FRAMES
    return kept


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of another machine, whose engine has analysed nothing."""
    folder = tmp_path_factory.mktemp("away")
    (folder / "run").mkdir(mode=0o700)
    yield {"XDG_RUNTIME_DIR": str(folder / "run"), "XDG_CACHE_HOME": str(folder / "cache")}
    for engine in engines(folder):
        os.kill(engine, signal.SIGKILL)


def move(patch: pytest.MonkeyPatch, away: dict[str, str]) -> None:
    """To the other machine."""
    for name, value in away.items():
        patch.setenv(name, value)


def difference(found: Array, expected: Array, depth: str = "OfxBitDepthByte") -> float:
    """Mean, of colour out of 255."""
    return float(np.abs(found[..., :3].astype(np.float64) / WHITE[depth] * 255 - expected[..., :3]).mean())


def test_what_it_needs_is_its_window_within_the_clip(host: OfxHost, footage: Footage) -> None:
    long = np.broadcast_to(footage.pictures[0], (200, *footage.pictures[0].shape))
    instance = on_frames(host, long)
    reach = RenderConfig().fill_window_frames
    for index, low, high in ((100, 100 - reach, 100 + reach), (0, 0, reach), (195, 195 - reach, 199)):
        got = host.thing()
        given = host.thing(OfxPropTime=[FIRST + index])
        assert host.act("OfxImageEffectActionGetFramesNeeded", instance, given, got) == OK
        assert got.values == {"OfxImageClipPropFrameRange_Source": [FIRST + low, FIRST + high]}


@pytest.mark.parametrize("depth", list(DEPTHS))
def test_by_frames_the_result_is_that_of_the_command_line(
    host: OfxHost, footage: Footage, state: str, depth: str
) -> None:
    layout = Layout(depth=depth, downward=depth == "OfxBitDepthShort")
    instance = on_frames(host, in_depth(footage.pictures, depth), layout, track=state)
    for index in (9, 20, 3):
        found = show(host, instance, index)
        assert difference(found, footage.steady[index], depth) < NEAR
        assert difference(found, footage.steady[index - 1], depth) > 2 * NEAR
    # Every frame once, none outside of the clip.
    assert len(host.fetched) == len(set(host.fetched))
    assert min(host.fetched) >= FIRST and max(host.fetched) < FIRST + FRAMES
    # Another instance in another session of the host needs no analysis, and takes its own frames.
    assert host.messages == []


def test_frames_come_right_from_threads(host: OfxHost, footage: Footage, state: str) -> None:
    """Each of which may have to fetch frames that another is fetching."""
    instance = on_frames(host, footage.pictures, track=state)
    order = [int(k) for k in np.random.default_rng(6).permutation(FRAMES)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: show(host, instance, k), order))
    assert all(difference(picture, footage.steady[k]) < NEAR for k, picture in zip(order, found, strict=True))
    assert min(host.fetched) >= FIRST and max(host.fetched) < FIRST + FRAMES


def test_alpha_moves_along(host: OfxHost, footage: Footage, state: str) -> None:
    pictures = footage.pictures.copy()
    pictures[..., 3] = pictures[..., 0]
    for alpha in ("OfxImageAlphaUnPremultiplied", "OfxImageAlphaPremultiplied"):
        instance = on_frames(host, pictures, Layout(alpha=alpha), track=state)
        found = show(host, instance, 12)
        # Red went the same way.
        assert np.abs(found[..., 3].astype(float) - found[..., 0]).mean() < NEAR
        assert difference(found, footage.steady[12]) < NEAR


def test_a_proxy_is_the_same_picture_smaller(host: OfxHost, footage: Footage, state: str) -> None:
    small = np.stack([cv2.resize(p, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA) for p in footage.pictures])
    instance = on_frames(host, small, track=state)

    def soft(picture: Array) -> Array:
        """The texture is as fine as the proxy's pixels: what both can show is compared."""
        half = cv2.resize(picture[..., :3], (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(half.astype(np.float64), (0, 0), 2))

    off_by = []
    for index in (3, 7, 11, 15, 19):
        found = soft(host.render(instance, FIRST + index, small[index], OfxImageEffectPropRenderScale=[0.5, 0.5]))
        off_by.append(
            [difference(found, soft(picture)) for picture in (footage.steady[index], footage.steady[index - 1])]
        )
    # Not each for itself: another neighbour may fill an edge of so small a picture.
    assert all(right < other for right, other in off_by)
    right, other = np.median(off_by, axis=0)
    assert right < SCALED < other / 2


def test_a_copied_effect_does_not_take_another_clip_for_its_own(host: OfxHost, footage: Footage, state: str) -> None:
    other = 255 - footage.pictures
    instance = on_frames(host, other, track=state)
    assert untouched(show(host, instance, 8), other[8])
    assert "not the one that was analysed" in host.messages[-1] and "press Analyse" in host.messages[-1]
    # A clip that is trimmed since has no frames before its new start.
    instance = on_frames(host, footage.pictures, track=state)
    instance.parts["Source"].values["OfxImageEffectPropFrameRange"] = [FIRST + 10, FIRST + FRAMES - 1]
    assert untouched(show(host, instance, 12), footage.pictures[12])
    assert "trimmed" in host.messages[-1]


def test_an_effect_before_it_that_changes_is_seen(host: OfxHost, footage: Footage, state: str) -> None:
    pictures = footage.pictures.copy()
    instance = on_frames(host, pictures, track=state)
    assert difference(show(host, instance, 12), footage.steady[12]) < NEAR
    pictures[..., 0] = np.clip(pictures[..., 0].astype(int) + 20, 0, 255)
    found = show(host, instance, 12)
    assert (found[..., 0].astype(int) - footage.steady[12][..., 0]).mean() > 15
    # Where nothing tells but the host.
    instance.parts["Source"].values["changed"] = [1]
    given = host.thing(OfxPropName=["Source"], OfxPropType=["OfxTypeClip"], OfxPropChangeReason=["OfxChangeUserEdited"])
    before = len(host.fetched)
    show(host, instance, 12)
    assert len(host.fetched) == before
    assert host.act("OfxActionInstanceChanged", instance, given) == OK
    show(host, instance, 12)
    assert len(host.fetched) > before


def test_copies_on_different_grades_do_not_mix(host: OfxHost, footage: Footage, state: str) -> None:
    """The second is drawn while the first one's frames are fetched."""
    dark = footage.pictures.copy()
    dark[..., :3] //= 2
    first, second = on_frames(host, footage.pictures, track=state), on_frames(host, dark, track=state)
    source = first.parts["Source"]
    drawn: list[Array] = []
    frames = source.frames
    assert frames is not None

    def frame(time: float) -> Array | None:
        if not drawn and len(host.fetched) > 0:
            with ThreadPoolExecutor(1) as pool:
                drawn.append(pool.submit(show, host, second, 12).result())
        return frames(time)

    source.frames = frame
    found = show(host, first, 12)
    assert difference(found, footage.steady[12]) < NEAR
    assert difference(drawn[0], footage.steady[12] // 2) < NEAR


def test_what_is_not_analysed_passes_through(host: OfxHost, footage: Footage) -> None:
    for unanalysed in (0, 1):
        instance = on_frames(host, footage.pictures, unanalysed=unanalysed)
        assert untouched(show(host, instance, 5), footage.pictures[5])
        assert "press Analyse" in host.messages[-1]
    host.change(instance, smoothness=0.4)
    assert "press Analyse" in instance.parts["status"].value
    assert host.fetched == []


def test_an_analysis_can_be_cancelled_and_its_engine_may_die(
    host: OfxHost, footage: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    instance = on_frames(host, footage.pictures)
    host.progress = lambda share: share < 0.5
    host.change(instance, analyse=None)
    assert "cancelled" in instance.parts["status"].value and instance.parts["track"].value == ""
    assert len(host.fetched) < FRAMES
    (engine,) = engines(runtime)

    def strike(share: float) -> bool:
        if share > 0.5:
            os.kill(engine, signal.SIGKILL)
        return True

    host.progress = strike
    host.change(instance, analyse=None)
    assert "passes through" in instance.parts["status"].value and instance.parts["track"].value == ""
    assert untouched(show(host, instance, 5), footage.pictures[5])


def test_a_track_in_the_project_goes_to_other_machines(
    library: Path, footage: Footage, state: str, away: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = OfxHost(library, temporal=True)
    instance = on_frames(host, footage.pictures, track=state)
    host.change(instance, embed_track=1)
    embedded = instance.parts["track"].value
    assert len(embedded) > 2 * len(state)
    host.change(instance, embed_track=0)
    assert instance.parts["track"].value == state
    host.unload()
    move(monkeypatch, away)
    host = OfxHost(library, temporal=True)
    assert untouched(show(host, on_frames(host, footage.pictures, track=state), 9), footage.pictures[9])
    assert "not analysed" in host.messages[-1]
    found = show(host, on_frames(host, footage.pictures, track=embedded), 9)
    assert difference(found, footage.steady[9]) < NEAR
    host.unload()


def test_a_file_s_track_in_the_project_is_for_that_file_only(
    library: Path, footage: Footage, away: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = OfxHost(library)
    instance = on_clip(host, footage.path)
    instance.parts["embed_track"].value = 1
    host.change(instance, analyse=None)
    embedded = instance.parts["track"].value
    assert len(embedded) > 1000
    host.unload()
    move(monkeypatch, away)
    host = OfxHost(library)
    moved = tmp_path / "moved.mkv"
    moved.write_bytes(footage.path.read_bytes())
    found = host.render(on_clip(host, moved, track=embedded), 9.0, grey())
    assert difference(found, footage.steady[9]) < NEAR
    # As large and as long, but another clip.
    other = make_clip(tmp_path / "other.mp4", seed=12)
    assert untouched(host.render(on_clip(host, other, track=embedded), 9.0, grey()), grey())
    assert "press Analyse" in host.messages[-1]
    host.unload()


def test_a_track_file_needs_no_analysis(
    library: Path, footage: Footage, away: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(monkeypatch, away)
    # A farm's host without temporal access, a button or progress; the file may be chosen.
    host = OfxHost(library, suites=frozenset())
    instance = on_clip(host, footage.path, track_file=str(footage.track))
    assert difference(host.render(instance, 9.0, grey()), footage.steady[9]) < NEAR
    host.change(instance, smoothness=0.5)
    assert instance.parts["status"].value == f"a saved track: {FRAMES} frames"
    host.unload()
    # By frames of the host.
    host = OfxHost(library, temporal=True)
    instance = on_frames(host, footage.pictures, track_file=str(footage.track))
    assert difference(show(host, instance, 9), footage.steady[9]) < NEAR
    # Of another shape than the track's pictures.
    square = footage.pictures[:, :, :HEIGHT]
    assert untouched(show(host, on_frames(host, square, track_file=str(footage.track)), 9), square[9])
    assert "another shape" in host.messages[-1]
    for wrong, words in (
        (footage.path, "expected a .vs3r track"),
        (tmp_path / "none.vs3r", "cannot read the track"),
    ):
        instance = on_frames(host, footage.pictures, track_file=str(wrong))
        assert untouched(show(host, instance, 9), footage.pictures[9])
        assert words in host.messages[-1]
    host.unload()


def test_one_frame_and_a_track_are_enough_for_the_frame_itself(library: Path, footage: Footage) -> None:
    host = OfxHost(library)
    layout = Layout(depth="OfxBitDepthFloat")
    pictures = in_depth(footage.pictures, "OfxBitDepthFloat") * np.float32(3)
    instance = on_frames(host, pictures, layout, track_file=str(footage.track))
    instance.parts["Source"].frames = None
    found = host.render(instance, FIRST + 9, pictures[9], layout)
    assert "only the frame itself is moved" in host.messages[-1]
    inner = slice(12, -12), slice(12, -12)
    expected = footage.steady[9][inner].astype(np.float64)
    # Values above white are kept; beyond the frame its edge is repeated.
    assert np.abs(found[inner][..., :3] / 3 * 255 - expected).mean() < 2.0
    assert found.max() > 2 and np.allclose(found[..., 3], 3)
    host.unload()
