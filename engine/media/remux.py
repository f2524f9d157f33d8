"""Carry everything but the video from a source file to the output, packet by packet."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Disposition, Stream
from av.video.stream import VideoStream

from vs3r.engine.media.encoders import MUXERS
from vs3r.engine.media.info import MediaInfo
from vs3r.engine.media.reader import move, open_input, restarts_clock
from vs3r.engine.media.tags import content_tags, has_language, muxer_keeps_data, muxer_keeps_timecode, stream_tags
from vs3r.engine.media.timing import Joins, Timeline

_COVER_NAMES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
# Of the average rate: so much more may the rate without missing pictures be.
_MAX_MISSING = Fraction(1, 5)


@dataclass(slots=True, eq=False)
class _Track:
    """One copied stream."""

    source: Stream
    out: Stream
    timeline: Timeline
    begun: bool = False
    """A packet that is not hidden by an edit list has been met."""


class Remuxer:
    """The other streams of a source file, fed to an output as its video advances.

    The source is read a second time, beside the decoder, and only as far as the video has come: memory does not grow
    with the clip. A stream that the container cannot hold is left out with a note.
    """

    def __init__(self, info: MediaInfo, container_format: str) -> None:
        """Decide what can be copied.

        Args:
            info: the source.
            container_format: FFmpeg's name of the output's muxer.
        Raises:
            MediaError: the source cannot be opened again.
        """
        self._info = info
        self._container_format = container_format
        self.notes: list[str] = []
        """What is left out, and why."""
        self._source: InputContainer = open_input(info.path, copies_sound=True)
        self._left_out: set[str] = set()
        self.video_rate = self._video_rate()
        """Frames per second for the output: on average, or those that a time code counts."""
        self._wanted = [s for s in self._source.streams if s.index != info.stream_index and self._keeps(s)]
        self._tracks: dict[int, _Track] = {}
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._next: Packet[Stream] | None = None

    def close(self) -> None:
        """Release the source; harmless when repeated."""
        self._source.close()

    @property
    def metadata(self) -> dict[str, str]:
        """The source's tags that describe the content."""
        return self._kept(content_tags(self._source.metadata))

    @property
    def video_metadata(self) -> dict[str, str]:
        """The tags of the source's video stream that describe the content."""
        return self._kept(stream_tags(self._source.streams[self._info.stream_index], self._container_format))

    @property
    def video_disposition(self) -> Disposition:
        """The flags of the source's video stream."""
        return self._source.streams[self._info.stream_index].disposition

    def attach(self, out: OutputContainer) -> None:
        """Add the streams, tags and chapters to an output whose video stream has been added already."""
        out.metadata.update(self.metadata)
        self._copy_chapters(out)
        for stream in (self._source.streams[self._info.stream_index], *self._wanted):
            if has_language(stream) and "language" not in stream_tags(stream, self._container_format):
                container = f"the {self._container_format} container"
                self.notes.append(f"{_name(stream)}: its language is left out: {container} cannot name it")
        for stream in self._wanted:
            if self._is_cover(stream) and self._container_format == "matroska":
                self._attach_cover(out, stream)
                continue
            copy = _add_copy(out, stream)
            if not isinstance(stream, AttachmentStream):
                time_base = stream.time_base or Fraction(1, 1000)
                # What lies closer may come to lie at one time in the output, whose muxer refuses it then.
                timeline = Timeline(time_base, 1, least=max(1, round(Fraction(1, 1000) / time_base)))
                self._tracks[stream.index] = _Track(stream, copy, timeline)
        streams = [track.source for track in self._tracks.values()]
        if restarts_clock(self._source):
            streams.append(self._source.streams[self._info.stream_index])
        for stream in self._source.streams:
            stream.discard = Discard.default if stream in streams else Discard.all
        if self._tracks:
            self._packets = self._of_tracks(streams)
            self._advance()

    def mux_until(self, time_s: Fraction | None, out: OutputContainer) -> None:
        """Write the packets up to a time of the source's clock in seconds (None: all that are left).

        Raises:
            OSError: the output cannot be written.
        """
        while self._next is not None:
            packet, track = self._next, self._tracks[self._next.stream_index]
            time_base = packet.time_base
            when = packet.dts if packet.dts is not None else packet.pts
            if time_s is not None and when is not None and when * time_base > time_s:
                return
            if self._is_wanted(packet, track):
                self._mux(packet, track, when, out)
            self._advance()

    def _video_rate(self) -> Fraction:
        stream = self._source.streams[self._info.stream_index]
        assert isinstance(stream, VideoStream)
        average = self._info.average_rate or Fraction(25)
        tags = {key.lower(): value for key, value in (self.video_metadata | self.metadata).items()}
        timecode = tags.get("timecode")
        if timecode is None or self._container_format == "matroska":
            return average
        rates = [average]
        # Where pictures are missing, the average is lower than the rate that the time code counts in, which FFmpeg
        # finds. Where pictures lie between the others' times, it finds a multiple.
        guessed = stream.guessed_rate
        if guessed and abs(guessed - average) <= average * _MAX_MISSING:
            rates.insert(0, guessed)
        for rate in rates:
            if muxer_keeps_timecode(timecode, rate, self._container_format):
                return rate
        self._left_out.add("timecode")  # the muxer may refuse it and all else
        tried = f"{float(rates[0]):.6g} frames a second"
        self.notes.append(f"the time code {timecode} is left out: it does not fit {tried}")
        return average

    def _kept(self, tags: dict[str, str]) -> dict[str, str]:
        return {key: value for key, value in tags.items() if key.lower() not in self._left_out}

    def _is_wanted(self, packet: Packet[Stream], track: _Track) -> bool:
        """Whether a packet is copied: an MP4 edit list cuts some off without removing them."""
        track.begun |= not packet.is_discard
        if not packet.is_discard:
            return True
        if self._container_format == "matroska":
            return False  # cannot hide it again
        if track.source.type == "video":
            return True  # other pictures are decoded from it
        # MP4 hides what lies before zero, so sound that starts there keeps what its decoder warms up on.
        # What is cut off anywhere else would be heard.
        at_zero = (track.source.start_time or 0) <= 0
        before_zero = packet.pts is not None and packet.pts + (packet.duration or 0) <= 0
        return track.source.type == "audio" and at_zero and before_zero and not track.begun

    def _mux(self, packet: Packet[Stream], track: _Track, when: int | None, out: OutputContainer) -> None:
        shift = round(self._info.origin_s / packet.time_base)
        # Decoding times must grow; the presentation time keeps its distance from them.
        dts = track.timeline.place(when, packet.duration or 0)
        if packet.pts is not None and when is not None:
            packet.pts += dts - when - shift
        else:
            packet.pts = dts - shift
        packet.dts = dts - shift
        packet.stream = track.out
        try:
            out.mux_one(packet)
        except (av.ArgumentError, av.InvalidDataError):
            # The muxer refuses this packet, not the file: a broken sound packet must not cost the picture.
            note = f"{_name(track.source)}: damaged packets were left out"
            if note not in self.notes:
                self.notes.append(note)

    def _of_tracks(self, streams: list[Stream]) -> Iterator[Packet[Stream]]:
        """The packets of all tracks, in the file's order; those of the pictures tell where recordings were joined."""
        joins: dict[int, Joins] = {}
        main = self._info.stream_index
        pictures = Joins(self._info.time_base) if restarts_clock(self._source) else None
        for packet in self._source.demux(streams):
            if packet.size > 0 and pictures is not None:
                if packet.stream_index == main:
                    pictures.meet(packet.dts, packet.duration or 0)
                elif packet.stream.type == "audio":
                    own = joins.setdefault(packet.stream_index, Joins(packet.time_base, pictures))
                    own.meet(packet.dts, packet.duration or 0)
                    move(packet, own.shift_like(pictures))
                else:  # too seldom to tell
                    move(packet, pictures.shifts[-1])
            if packet.size > 0 and packet.stream_index in self._tracks:
                yield packet

    def _advance(self) -> None:
        try:
            self._next = next(self._packets, None)
        except av.FFmpegError:
            self._next = None
            self.notes.append("the other streams (sound, subtitles) end early: the source is damaged there")

    def _keeps(self, stream: Stream) -> bool:
        """Whether the container holds this stream; notes it otherwise."""
        if stream.type == "data" and (stream.discard == Discard.all or "timecode" in stream.metadata):
            return False  # a chapter or time code track: both are written from their metadata
        if self._goes_into(stream, self._container_format):
            return True
        muxers = [(ending, muxer) for ending, muxer in MUXERS.items() if muxer != self._container_format]
        others = [ending for ending, muxer in muxers if self._goes_into(stream, muxer)]
        where = f"; {' or '.join(others)} keeps it" if others else ""
        self.notes.append(
            f"{_name(stream)} is left out: it cannot be copied into the {self._container_format} container{where}"
        )
        return False

    def _goes_into(self, stream: Stream, muxer: str) -> bool:
        if self._is_cover(stream) and muxer == "matroska":
            return stream.codec_context is not None and stream.codec_context.name in _COVER_NAMES
        if self._is_cover(stream) and muxer == "mov":
            return False  # its muxer takes the picture and drops it silently
        return self._muxer_takes(stream, muxer)

    def _muxer_takes(self, stream: Stream, muxer: str) -> bool:
        """Ask the muxer itself: write a file of this stream alone, with a packet, to memory."""
        if stream.type == "data":
            return muxer_keeps_data(stream, muxer)
        trial = av.open(io.BytesIO(), "w", format=muxer, metadata_errors="surrogateescape")
        complete = False
        try:
            copy = _add_copy(trial, stream)
            trial.start_encoding()
            packet = self._first_packet(stream) if stream.type == "audio" else None
            if packet is not None:
                packet.stream = copy
                packet.dts = packet.pts = 0
                trial.mux_one(packet)
                trial.close()
            complete = True
        except (ValueError, av.FFmpegError):
            pass
        finally:
            # Without a packet some formats cannot be completed; that is no answer.
            with contextlib.suppress(ValueError, av.FFmpegError):
                trial.close()
        return complete

    def _first_packet(self, stream: Stream) -> Packet[Stream] | None:
        with contextlib.closing(open_input(self._info.path)) as source:
            for other in source.streams:
                other.discard = Discard.default if other.index == stream.index else Discard.all
            return next((p for p in source.demux(source.streams[stream.index]) if p.size > 0), None)

    @staticmethod
    def _is_cover(stream: Stream) -> bool:
        return bool(stream.disposition & Disposition.attached_pic)

    def _attach_cover(self, out: OutputContainer, stream: Stream) -> None:
        # Matroska keeps pictures as attachments in its header, so the one packet is needed at once.
        packet = self._first_packet(stream)
        if packet is not None:
            name, mime = _COVER_NAMES[stream.codec_context.name]
            out.add_attachment(stream.metadata.get("filename", name), mime, bytes(packet))

    def _copy_chapters(self, out: OutputContainer) -> None:
        chapters = self._source.chapters()
        for chapter in chapters:
            if chapter["time_base"] and self._info.origin_s:
                shift = round(self._info.origin_s / chapter["time_base"])
                chapter["start"] -= shift
                chapter["end"] -= shift
        out.set_chapters(chapters)


def _add_copy(out: OutputContainer, stream: Stream) -> Stream:
    copy = out.add_stream_from_template(stream, opaque=True)
    copy.metadata.clear()
    copy.metadata.update(stream_tags(stream, out.format.name))
    copy.disposition = stream.disposition
    if isinstance(copy, AudioStream) and copy.layout.name.endswith(" channels"):
        # AVI says how many channels there are but not which; MP4 insists on knowing.
        usual = {1: "mono", 2: "stereo"}.get(copy.layout.nb_channels)
        if usual is not None:
            copy.codec_context.layout = usual
    return copy


def _name(stream: Stream) -> str:
    # PyAV's sound and pictures without a decoder have no name at all.
    codec = stream.codec_context.name if stream.codec_context is not None else getattr(stream, "name", None)
    language = f", {stream.language}" if stream.language else ""
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'}{language})"
