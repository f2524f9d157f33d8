"""Files of phones, drones and action cameras: telemetry, sound without a decoder, pictures unlike other films."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import av
import pytest
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataKind
from av.stream import Stream
from av.video.frame import VideoFrame

from tests.engine.clips import Clip, write_clip
from tests.engine.test_media_writer import copy
from vs3r.engine.media import probe, reader


def _with_telemetry(path: Path, video: Path) -> Path:
    """MPEG-TS with a stream of KLV beside the pictures."""
    with av.open(str(video)) as movie, av.open(str(path), "w", format="mpegts") as out:
        main = out.add_stream_from_template(movie.streams.video[0], opaque=True)
        data = out.add_data_stream("klv")
        for packet in movie.demux(video=0):
            if packet.dts is None:
                continue
            beside: Packet[Stream] = Packet(b"\x06\x0e\x2b\x34payload")
            beside.stream, beside.time_base = data, Fraction(packet.time_base)
            beside.pts = beside.dts = packet.dts
            out.mux(beside)
            packet.stream = main
            out.mux(packet)
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_telemetry_that_would_be_damaged_is_left_out_and_named(tmp_path: Path, ending: str) -> None:
    source = _with_telemetry(tmp_path / "a.ts", write_clip(tmp_path / "v.mp4", Clip(frames=5)))
    target = tmp_path / f"b{ending}"
    (note,) = copy(source, target)
    container = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}[ending]
    assert note == f"data stream 1 (klv) is left out: it cannot be copied into the {container} container"
    with av.open(str(target)) as container_read:
        assert [stream.type for stream in container_read.streams] == ["video"]


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_telemetry_that_stays_whole_is_copied(tmp_path: Path, ending: str) -> None:
    data = write_clip(tmp_path / "v.mp4", Clip(frames=5, subtitles="mov_text")).read_bytes()
    handler = data.replace(b"sbtl", b"meta").replace(b"text\0\0\0\0", b"meta\0\0\0\0")
    (tmp_path / "a.mp4").write_bytes(handler.replace(b"tx3g", b"gpmd"))
    assert copy(tmp_path / "a.mp4", tmp_path / f"b{ending}") == ()
    with av.open(str(tmp_path / f"b{ending}")) as container:
        (stream,) = container.streams.data
        assert [bytes(packet) for packet in container.demux(stream) if packet.size]


def test_sound_without_a_decoder_does_not_cost_the_picture(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "v.mp4", Clip(frames=5, audio="ac3")).read_bytes()
    assert b"ac-3" in data
    (tmp_path / "a.mp4").write_bytes(data.replace(b"ac-3", b"apac").replace(b"dac3", b"dapa"))
    (note,) = copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert note == "audio stream 1 (unknown codec, und) is left out: it cannot be copied into the mp4 container"


def _as_sphere(path: Path, target: Path) -> Path:
    """An MP4 file with the mark of 360-degree pictures, as tools add it to the end of a track."""
    data = bytearray(path.read_bytes())
    track = data.index(b"trak") - 4
    (size,) = struct.unpack_from(">I", data, track)
    xml = (
        b'<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        b'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/"><GSpherical:Spherical>true'
        b"</GSpherical:Spherical><GSpherical:Stitched>true</GSpherical:Stitched><GSpherical:StitchingSoftware>a"
        b"</GSpherical:StitchingSoftware><GSpherical:ProjectionType>"
        b"equirectangular</GSpherical:ProjectionType></rdf:SphericalVideo>"
    )
    box = struct.pack(">I4s", 24 + len(xml), b"uuid") + bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + xml
    data[track + size : track + size] = box
    for start in (track, data.index(b"moov") - 4):
        (old,) = struct.unpack_from(">I", data, start)
        struct.pack_into(">I", data, start, old + len(box))
    target.write_bytes(data)
    return target


def test_pictures_all_around_are_named(tmp_path: Path) -> None:
    source = _as_sphere(write_clip(tmp_path / "v.mp4", Clip(frames=3)), tmp_path / "a.mp4")
    (note,) = probe(source).notes
    assert note.startswith("the source is a 360-degree picture: ")


def test_stereoscopic_pictures_are_named(tmp_path: Path) -> None:
    clip = Clip(frames=3, options={"x264-params": "frame-packing=3"})
    (note,) = probe(write_clip(tmp_path / "a.mp4", clip)).notes
    assert note.startswith("the source is stereoscopic (3D): ")


def test_alpha_that_webm_stores_apart_is_named(tmp_path: Path) -> None:
    source = tmp_path / "a.webm"
    video = write_clip(tmp_path / "v.mkv", Clip(frames=3, codec="libvpx-vp9"))
    with av.open(str(video)) as movie, av.open(str(source), "w") as out:
        stream = out.add_stream_from_template(movie.streams.video[0], opaque=True)
        stream.metadata["alpha_mode"] = "1"
        for packet in movie.demux():
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    (note,) = probe(source).notes
    assert note.startswith("the alpha channel is dropped: ")
    assert "ffmpeg -c:v libvpx-vp9 -i IN" in note
    copy(source, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert "alpha_mode" not in {key.lower() for key in container.streams.video[0].metadata}


def _kinds(frame: VideoFrame) -> list[SideDataKind]:
    return [one.type for one in cast("Iterable[SideData]", frame.side_data)]


def test_pictures_with_exif_are_read_with_all_that_is_beside_them(tmp_path: Path) -> None:
    """Motion JPEG of cameras. PyAV has no name for FFmpeg's kind of side data."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x28\x01\x03\0\x01\0\0\0\x02\0\0\0\0\0\0\0"
    video = write_clip(tmp_path / "v.mov", Clip(frames=3, codec="mjpeg", color=(2, 2, 2, 2), rotation_deg=90))
    with av.open(str(video)) as movie, av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream_from_template(movie.streams.video[0], opaque=True)
        for packet in movie.demux():
            if packet.dts is not None:
                data = bytes(packet)
                tagged: Packet[Stream] = Packet(
                    data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
                )
                tagged.stream, tagged.time_base = stream, packet.time_base
                tagged.pts, tagged.dts, tagged.is_keyframe = packet.pts, packet.dts, True
                out.mux(tagged)
    info = probe(tmp_path / "a.mov")
    assert info.display_matrix == probe(video).display_matrix is not None
    with av.open(str(tmp_path / "a.mov")) as camera:
        kinds = [kind for frame in camera.decode(video=0) for kind in _kinds(frame)]
    unnamed = [kind for kind in kinds if kind.name.startswith("UNNAMED")]
    assert unnamed and all(repr(kind).endswith(f": {kind.value}>") for kind in unnamed)
    copy(tmp_path / "a.mov", tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4").rotation_deg == info.rotation_deg


def test_sound_that_begins_late_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later than FFmpeg looks: MPEG-TS does not say beforehand what it will be. Who reads pictures need not know."""
    video = write_clip(tmp_path / "v.ts", Clip(frames=300))
    sound = write_clip(tmp_path / "s.ts", Clip(frames=50, audio="aac"))
    with av.open(str(video)) as movie, av.open(str(sound)) as band, av.open(str(tmp_path / "a.ts"), "w") as out:
        main = out.add_stream_from_template(movie.streams.video[0], opaque=True)
        beside = out.add_stream_from_template(band.streams.audio[0], opaque=True)
        late = [p for p in band.demux(audio=0) if p.dts is not None and p.pts is not None]
        for packet in movie.demux(video=0):
            if packet.dts is not None:
                packet.stream = main
                out.mux(packet)
        for piece in late:
            piece.stream, shift = beside, round(10 / piece.time_base)
            piece.pts, piece.dts = (piece.pts or 0) + shift, (piece.dts or 0) + shift
            out.mux(piece)
    opened = Mock(wraps=reader._opened)
    monkeypatch.setattr(reader, "_opened", opened)
    probe(tmp_path / "a.ts")
    assert opened.call_count == 1
    assert copy(tmp_path / "a.ts", tmp_path / "b.mp4") == ()
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert sum(1 for packet in container.demux(audio=0) if packet.size) == len(late)
        assert container.streams.audio[0].codec_context.sample_rate == 48_000
