"""Sessions: found again, tracks on disk, random access, warps, limits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.engine.clips import Clip, make_frames, write_clip
from tests.server.conftest import (
    CLIP,
    CONFIG,
    FRAMES,
    Serve,
    connected,
    pixels,
    refusal,
    shaky_models,
    still_models,
    wait_until,
)
from vs3r.config import SmoothConfig
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.sync import Client
from vs3r.engine.pipeline import Rendering, SourceWindow, TrackAnalysis
from vs3r.engine.proto.layout import layout_message, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.guard import Models
from vs3r.engine.track_file import load_track, save_track
from vs3r.refine import make_refiner
from vs3r.render.layers import doubled
from vs3r.types import CameraTrack, Frame


def along(track: CameraTrack, smooth: SmoothConfig = CONFIG.smooth) -> list[Frame]:
    """The clip rendered along a track from the first frame to the last: what random access must agree with."""
    analysis = TrackAnalysis(track, smooth)
    renderer = shaky_models().renderer(CONFIG, FRAMES[0].format)
    rendering = Rendering(renderer, make_refiner(CONFIG.refine), SourceWindow.of_track(CONFIG.render))
    items = [item for frame in FRAMES for item in analysis.push(frame)] + analysis.flush()
    return [d.frame for d in [done for item in items for done in rendering.push(item)] + rendering.flush()]


@pytest.fixture
def analysed(client: Client, tmp_path: Path) -> tuple[Client, str, CameraTrack]:
    """A client, a session with a track, the track."""
    session = client.create_session("clip", CONFIG).name
    analysis = client.analyze_frames(session, FRAMES)
    assert (analysis.frame_count, analysis.stored, analysis.reused) == (len(FRAMES), True, False)
    path = tmp_path / "got.vs3r"
    path.write_bytes(client.download_track(session))
    return client, session, load_track(path)


def test_any_frame_as_in_sequence(analysed: tuple[Client, str, CameraTrack]) -> None:
    client, session, track = analysed
    want = along(track)
    assert pixels(want[8]) != pixels(FRAMES[8])
    for index in (8, 3, 23, 0, 9):
        assert pixels(client.get_frame(session, index).frame) == pixels(want[index])
    by_time = client.call("GetFrame", pb.GetFrameRequest(session=session, pts=FRAMES[7].pts + 1))
    assert by_time.frame.sequence == 7
    error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=24))
    assert error.code == "OUT_OF_RANGE"
    assert refusal(client, "GetFrame", pb.GetFrameRequest(session=session)).violations


def test_smoothing_again(analysed: tuple[Client, str, CameraTrack]) -> None:
    client, session, track = analysed
    before = client.get_frame(session, 8).frame
    response = client.set_smoothing(session, pb.SmoothConfig(smoothness=0.9))
    assert response.session.config.smooth.smoothness == 0.9
    assert response.session.config.smooth.lookahead_frames == 2
    after = client.get_frame(session, 8).frame
    assert pixels(after) == pixels(along(track, SmoothConfig(smoothness=0.9, lookahead_frames=2))[8])
    assert pixels(after) != pixels(before)
    wrong = pb.SetSmoothingRequest(session=session, smooth=pb.SmoothConfig(smoothness=2))
    assert [v.field for v in refusal(client, "SetSmoothing", wrong).violations] == ["smooth"]


def test_a_session_is_found_by_the_settings_it_has_now(analysed: tuple[Client, str, CameraTrack]) -> None:
    """Not by those that it was made with: these make a new one, with the track of the cache."""
    client, session, track = analysed
    client.set_smoothing(session, pb.SmoothConfig(smoothness=0.9))
    smooth = SmoothConfig(smoothness=0.9, lookahead_frames=2)
    again = client.create_session("clip", replace(CONFIG, smooth=smooth))
    assert (again.name, again.held_frames) == (session, len(FRAMES))
    assert pixels(client.get_frame(session, 8).frame) == pixels(along(track, smooth)[8])
    old = client.create_session("clip", CONFIG)
    assert old.name != session
    assert (old.frame_count, old.held_frames, old.config.smooth.smoothness) == (len(FRAMES), 0, 0.5)
    client.upload_frames(old.name, enumerate(FRAMES))
    assert pixels(client.get_frame(old.name, 8).frame) == pixels(along(track)[8])
    assert client.status().sessions == 2


def test_of_sessions_that_became_equal_the_one_used_last_is_found(serve: Serve) -> None:
    """None is lost: each has its name, and is found when the other is deleted or has expired."""
    server = serve(session_idle_s=1000)
    with connected(server) as client:
        other = replace(CONFIG, smooth=SmoothConfig(smoothness=0.9, lookahead_frames=2))
        first, second = (client.create_session("clip", config).name for config in (CONFIG, other))
        client.upload_frames(first, enumerate(FRAMES))
        client.set_smoothing(first, pb.SmoothConfig(smoothness=0.9))
        assert client.create_session("clip", other).name == first
        assert {s.name: s.held_frames for s in client.list_sessions()} == {first: len(FRAMES), second: 0}
        client.get_session(second)
        assert client.create_session("clip", other).name == second
        client.delete_session(second)
        assert client.create_session("clip", other).name == first
        third = client.create_session("clip", CONFIG).name
        client.set_smoothing(third, pb.SmoothConfig(smoothness=0.9))
        server.state.sessions.get(third).used_s -= 2000
        server.state.sweep()
        assert [s.name for s in client.list_sessions()] == [first]
        assert client.create_session("clip", other).name == first
        server.state.sessions.get(first).used_s -= 2000
        server.state.sweep()
        assert client.create_session("clip", other).held_frames == 0


def test_a_track_from_elsewhere_needs_no_analysis(analysed: tuple[Client, str, CameraTrack], serve: Serve) -> None:
    client, session, _ = analysed
    data, want = client.download_track(session), pixels(client.get_frame(session, 8).frame)
    with connected(serve(still_models())) as other:
        fresh = other.create_session("another", CONFIG).name
        other.upload_frames(fresh, list(enumerate(FRAMES)))
        analysis = other.upload_track(fresh, data)
        assert (analysis.frame_count, analysis.stored, analysis.reused) == (len(FRAMES), True, False)
        assert other.download_track(fresh) == data
        assert other.get_session(fresh).track == analysis.track
    with connected(serve()) as again:
        kept = again.create_session("another", CONFIG)
        assert kept.frame_count == len(FRAMES)
        again.upload_frames(kept.name, list(enumerate(FRAMES)))
        assert pixels(again.get_frame(kept.name, 8).frame) == want


def test_frames_of_another_size_are_not_the_tracks(
    analysed: tuple[Client, str, CameraTrack], serve: Serve, tmp_path: Path
) -> None:
    """They are refused when they come, and what was there stays."""
    client, session, track = analysed
    before = client.get_frame(session, 8)
    clip = Clip(frames=24, width=32, height=32, codec="ffv1")
    small = make_frames(clip)
    for call in (client.analyze_frames, lambda session, frames: client.upload_frames(session, enumerate(frames))):
        with pytest.raises(ServerError, match="64x48 pixels, the clip 32x32"):
            call(session, small)
        assert client.get_session(session).held_frames == len(FRAMES)
        assert pixels(client.get_frame(session, 8).frame) == pixels(before.frame)
    # A stream makes another track; until it ends, its frames are none of the old one's.
    results = client.stabilize(small, session=session)
    next(results)
    for index in (0, 12):
        error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=index))
        assert error.reason == "TRACK_UNUSABLE"
    list(results)
    assert client.get_frame(session, 8).frame.format.width == 32
    write_clip(tmp_path / "small.mkv", clip)
    with connected(serve(media_root=str(tmp_path))) as client:
        session = client.create_session("uploaded", CONFIG).name
        save_track(track, tmp_path / "track.vs3r")
        client.upload_track(session, (tmp_path / "track.vs3r").read_bytes())
        client.upload_frames(session, enumerate(FRAMES))
        with pytest.raises(ServerError, match="64x48 pixels, the clip 32x32"):
            client.analyze_file(session, "small.mkv")
        assert client.get_frame(session, 8).frame.format.width == 64


def test_frames_of_another_format_are_not_mixed(client: Client) -> None:
    """Two streams of a session with different formats at a time: only frames of the newest are used."""
    session = client.create_session("clip", CONFIG).name
    deep, go_on = make_frames(replace(CLIP, pix_fmt="yuv420p10le")), threading.Event()

    def shallow() -> Iterator[Frame]:
        yield from FRAMES[:20]
        go_on.wait(60)
        yield from FRAMES[20:]

    with ThreadPoolExecutor() as beside:
        old = beside.submit(lambda: list(client.stabilize(shallow(), session=session)))
        wait_until(lambda: client.get_session(session).held_frames == 20)
        list(client.stabilize(deep, session=session))
        go_on.set()
        old.result()
    error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=20))
    assert (error.reason, error.missing) == ("FRAMES_MISSING", (range(20, 24),))
    client.upload_frames(session, list(enumerate(deep))[20:])
    assert client.get_frame(session, 20).frame.format.bit_depth == 10


def test_an_upload_of_bad_frames_alone_ends(client: Client) -> None:
    """What is said of them is held until it ends, and must not grow for ever."""
    session = client.create_session("clip", CONFIG).name
    layout, time_base = layout_message(planar_layout(FRAMES[0].format)), rational(FRAMES[0].time_base)
    source = pb.FrameSource(format=layout, time_base=time_base)

    def bad(count: int) -> Iterator[pb.UploadFramesRequest]:
        yield pb.UploadFramesRequest(config=pb.UploadConfig(session=session, frames=source))
        for sequence in range(count):
            yield pb.UploadFramesRequest(frame=pb.Frame(sequence=sequence))

    assert len(client.call("UploadFrames", bad(1000)).frame_errors) == 1000
    assert refusal(client, "UploadFrames", bad(1001)).reason == "PIXELS"


def test_a_deleted_session_leaves_no_frames(serve: Serve, tmp_path: Path) -> None:
    """Also those that its calls still took when they were told to end."""
    write_clip(tmp_path / "in.mkv", Clip(frames=64, width=64, height=48, codec="ffv1"))
    server = serve(media_root=str(tmp_path))
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        request = pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, path="in.mkv"))
        with suppress(ServerError), client.open_call("Analyze", iter([request])) as responses:
            next(responses)
            client.delete_session(session)
            list(responses)
        wait_until(lambda: client.status().streams == 0)
        wait_until(lambda: client.status().held_frame_bytes == 0)
        # The next one of that clip has nothing of it.
        again = client.create_session("clip", CONFIG)
        assert again.name != session
        assert (again.held_frames, again.frame_count) == (0, 0)


def test_tracks_that_cannot_be_used_are_refused_in_a_line(
    analysed: tuple[Client, str, CameraTrack], serve: Serve, tmp_path: Path
) -> None:
    client, session, track = analysed
    data, before = client.download_track(session), client.get_frame(session, 8)
    save_track(replace(track, width=32), tmp_path / "narrow.vs3r")
    far = track.cam_from_world.copy()
    far[3, 0, 3] = 1e12
    save_track(replace(track, cam_from_world=far), tmp_path / "far.vs3r")
    for wrong, words in (
        (b"", "not a track"),
        (data[:-10], "cut short"),
        (b"\x00" * 4096, "not a track"),
        (data.replace(b"vs3r-track", b"vs3r-trick"), "another safetensors file"),
        ((tmp_path / "far.vs3r").read_bytes(), r"frame 3: expected a translation of .* units, got 1e\+12"),
        ((tmp_path / "narrow.vs3r").read_bytes(), "does not belong to this clip: the track has 32x48 pixels"),
    ):
        with pytest.raises(ServerError, match=words) as caught:
            client.upload_track(session, wrong)
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "TRACK_UNUSABLE")
        assert "\n" not in str(caught.value) and "/" not in caught.value.args[0]
    assert pixels(client.get_frame(session, 8).frame) == pixels(before.frame)
    with connected(serve(max_message_mb=1)) as small:
        own = small.create_session("clip", CONFIG).name
        with pytest.raises(ServerError, match="at most 1 MB") as caught:
            small.upload_track(own, bytes(3 << 20))
        assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "TRACK_TOO_LARGE")
    config = pb.UploadTrackRequest(config=pb.UploadTrackConfig(session=session))
    for order in ([], [pb.UploadTrackRequest(chunk=b"x")], [config, config]):
        assert refusal(client, "UploadTrack", iter(order)).reason == "MESSAGE_ORDER"


def test_a_stream_makes_the_track_too(client: Client) -> None:
    session = client.create_session("clip", CONFIG).name
    assert refusal(client, "GetFrame", pb.GetFrameRequest(session=session)).reason == "TRACK_MISSING"
    list(client.stabilize(FRAMES, session=session))
    assert client.get_session(session).frame_count == len(FRAMES)
    assert client.get_frame(session, 5).sequence == 5


def test_tracks_survive_the_server_and_missing_frames_are_named(serve: Serve) -> None:
    with connected(serve()) as client:
        session = client.create_session("clip", CONFIG).name
        analysis = client.analyze_frames(session, FRAMES)
        want = client.get_frame(session, 10)
    with connected(serve()) as client:
        again = client.create_session("clip", CONFIG)
        assert (again.track, again.frame_count) == (analysis.track, len(FRAMES))
        assert client.analyze_frames(again.name, FRAMES[:1]).reused
        error = refusal(client, "GetFrame", pb.GetFrameRequest(session=again.name, index=10))
        assert (error.code, error.missing) == ("FAILED_PRECONDITION", (range(7, 14),))
        client.upload_frames(again.name, [(i, FRAMES[i]) for i in (7, 8, 9, 11)])
        error = refusal(client, "GetFrame", pb.GetFrameRequest(session=again.name, index=10))
        assert error.missing == (range(10, 11), range(12, 14))
        client.upload_frames(again.name, [(i, FRAMES[i]) for i in (10, 12, 13)])
        assert pixels(client.get_frame(again.name, 10).frame) == pixels(want.frame)
        # Frames of another clip are not taken for this one's.
        client.upload_frames(again.name, [(10, FRAMES[20])])
        assert refusal(client, "GetFrame", pb.GetFrameRequest(session=again.name, index=10)).reason == "TRACK_UNUSABLE"


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_tracks_are_made_again(serve: Serve, tmp_path: Path, damage: str) -> None:
    with connected(serve()) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_frames(session, FRAMES)
    (file,) = (tmp_path / "cache").glob("*.vs3r")
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "garbage": b"\xff" * 999, "empty": b""}[damage])
    with connected(serve()) as client:
        again = client.create_session("clip", CONFIG)
        assert again.frame_count == 0
        assert not file.exists()
        assert client.analyze_frames(again.name, FRAMES).stored
    assert file.read_bytes() == data


def test_a_full_disk(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session has its track; that it is not on disk is said."""

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    with connected(serve()) as client:
        session = client.create_session("clip", CONFIG).name
        with monkeypatch.context() as patch:
            patch.setattr("vs3r.engine.track_file.save_file", full)
            assert not client.analyze_frames(session, FRAMES).stored
            assert client.get_frame(session, 3).sequence == 3
            assert not client.analyze_frames(session, FRAMES).stored
        assert list((tmp_path / "cache").iterdir()) == []
        again = client.analyze_frames(session, FRAMES)
        assert (again.reused, again.stored) == (True, True)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(("number", "where"), [(28, "tempfile.mkdtemp"), (2, "tempfile._get_default_tempdir")])
def test_no_room_for_a_track_on_its_way(
    analysed: tuple[Client, str, CameraTrack], monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    """A full disk, or no folder for temporary files that can be used."""
    client, session, _ = analysed
    data = client.download_track(session)

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(number, "No space left on device", "/secret/folder")

    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(where, full)
    for call in (lambda: client.upload_track(session, data), lambda: client.download_track(session)):
        with pytest.raises(ServerError, match="no room") as caught:
            call()
        assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "CANNOT_WRITE")
        assert caught.value.retry_s is not None
        assert "secret" not in str(caught.value)
    assert client.get_frame(session, 3).sequence == 3


def test_what_a_killed_server_was_writing_is_removed(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    half = tmp_path / "cache" / ".x.part"
    half.write_bytes(b"half a track")
    serve()
    assert half.exists(), "another server may be writing it"
    os.utime(half, (time.time() - 7200,) * 2)
    serve()
    assert not half.exists()


def test_an_analysis_can_be_cancelled(serve: Serve, tmp_path: Path) -> None:
    clip = Clip(frames=24, width=64, height=48, codec="ffv1")
    write_clip(tmp_path / "in.mkv", clip)
    with connected(serve(media_root=str(tmp_path))) as client:
        session = client.create_session("clip", CONFIG).name
        request = pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, path="in.mkv"))
        with client.open_call("Analyze", iter([request])) as responses:
            assert next(responses).progress.frames == 8
        wait_until(lambda: client.status().streams == 0)
        assert client.get_session(session).frame_count in (0, 24)  # it may have been done before it heard of it
        assert client.analyze_file(session, "in.mkv").frame_count == 24


def test_the_cache_is_bounded(serve: Serve, tmp_path: Path) -> None:
    """Tracks used longest ago go first."""
    server = serve(cache_mb=1)
    big = tmp_path / "cache" / "old.vs3r"
    big.write_bytes(bytes(1 << 20))
    os.utime(big, (1, 1))
    with connected(server) as client:
        client.analyze_frames(client.create_session("clip", CONFIG).name, FRAMES)
        assert 0 < client.status().track_bytes <= 1 << 20
    assert not big.exists()


def test_failed_windows_are_told_and_not_kept(serve: Serve, tmp_path: Path) -> None:
    with connected(serve(shaky_models((9,)))) as client:
        session = client.create_session("clip", CONFIG).name
        analysis = client.analyze_frames(session, FRAMES)
        assert (analysis.failed_frames, analysis.stored, analysis.scene_count) == (2, False, 3)
        again = client.analyze_frames(session, FRAMES)
        assert (again.reused, again.failed_frames, again.stored) == (True, 2, False)
        got = client.call("GetFrame", pb.GetFrameRequest(session=session, index=9)).frame
        assert got.passed_through
        assert got.data == pixels(FRAMES[9])
    assert not list((tmp_path / "cache").glob("*.vs3r"))


def test_files_below_the_root_only(serve: Serve, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.mkv"
    root.mkdir()
    clip = Clip(frames=24, width=64, height=48, codec="ffv1")
    write_clip(root / "in.mkv", clip)
    write_clip(outside, clip)
    (root / "link.mkv").symlink_to(outside)
    (root / "text.mkv").write_text("no video")
    with connected(serve(media_root=str(root))) as client:
        session = client.create_session("clip", CONFIG).name
        for name in ("../outside.mkv", str(outside), "link.mkv", "none.mkv", "", "a\0b", "a" * 5000):
            with pytest.raises(ServerError) as caught:
                client.analyze_file(session, name)
            assert caught.value.code == "NOT_FOUND", name
        with pytest.raises(ServerError, match=r"text\.mkv") as caught:
            client.analyze_file(session, "text.mkv")
        assert str(root) not in str(caught.value)
        seen: list[int] = []
        assert client.analyze_file(session, "in.mkv", progress=lambda p: seen.append(p.frames)).frame_count == 24
        assert seen == [8, 16, 24]
        track_file = tmp_path / "t.vs3r"
        track_file.write_bytes(client.download_track(session))
        want = along(load_track(track_file))
        for index in (20, 2, 3):
            assert pixels(client.get_frame(session, index).frame) == pixels(want[index])
    with connected(serve()) as client, pytest.raises(ServerError) as caught:
        client.analyze_file(client.create_session("clip2", CONFIG).name, "in.mkv")
    assert caught.value.reason == "NO_MEDIA_ROOT"


def test_how_a_file_is_turned_is_told(serve: Serve, tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", Clip(frames=8, width=64, height=48, codec="ffv1", rotation_deg=90))
    with connected(serve(media_root=str(tmp_path))) as client:
        session = client.create_session("clip", CONFIG).name
        made, again = (client.analyze_file(session, "in.mkv") for _ in range(2))
        assert again.reused and not made.reused
        assert made.rotation_deg == again.rotation_deg == 270


def test_warps_and_patches_make_the_frame(client: Client) -> None:
    """A host that samples the source by the grid and lays the patches over it gets the frame, but for rounding."""
    frames = make_frames(Clip(frames=8, width=320, height=240))
    session = client.create_session("clip", CONFIG).name
    client.analyze_frames(session, frames)
    index = 4
    warp = client.get_warp(session, index)
    want = client.get_frame(session, index).frame.planes[0]
    shape = warp.grid.rows, warp.grid.columns
    h, w = want.shape
    grid_x, grid_y = (np.frombuffer(d, "<f4").reshape(shape) for d in (warp.grid.x, warp.grid.y))
    px, py = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    at = [((p - warp.grid.origin_px) / warp.grid.step_px).astype(np.float32) for p in (px, py)]
    x, y = (cv2.remap(g, at[0], at[1], cv2.INTER_LINEAR) - np.float32(0.5) for g in (grid_x, grid_y))
    fine = doubled(frames[index].planes[0])
    made = cv2.remap(fine, 2 * x, 2 * y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    covered = 0
    for patch in warp.patches:
        luma = np.frombuffer(patch.data[: patch.width * patch.height], np.uint8).reshape(patch.height, patch.width)
        made[patch.top : patch.top + patch.height, patch.left : patch.left + patch.width] = luma
        covered += patch.width * patch.height
    assert 0.1 < covered / (h * w) < 0.8
    # OpenCV rounds positions to 1/32 px for its table of weights: a step of the texture, at most.
    assert np.abs(made.astype(int) - want.astype(int)).max() <= 1
    assert np.abs(frames[index].planes[0].astype(int) - want.astype(int)).max() > 20
    assert not client.get_warp(session, index, map_only=True).patches


def test_real_models_analyse_too(serve: Serve) -> None:
    """The stand-ins above have the real ones' shape."""
    with connected(serve(Models())) as client:
        session = client.create_session("clip", CONFIG).name
        source = pb.FrameSource(
            format=layout_message(planar_layout(FRAMES[0].format)), time_base=rational(FRAMES[0].time_base)
        )
        assert source.format.width == 64
        assert client.analyze_frames(session, FRAMES[:8]).frame_count == 8
        assert client.get_frame(session, 4).valid_share > 0.5
