"""Which of a source's tags are copied, and how the output's container holds them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

# Written by every muxer for itself; the source's would be wrong or doubled.
_OWN = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "rotate"}
# Of pictures that are not made here: alpha stored apart, and two views in one.
_OWN |= {"alpha_mode", "stereo_mode"}
# MP4 and MOV hold these in the header and in a track of its own.
_APART = {"creation_time", "timecode"}

# ISO 639-2 has two names for some languages.
_PAIRS = (
    ("alb", "sqi"), ("arm", "hye"), ("baq", "eus"), ("bur", "mya"), ("chi", "zho"), ("cze", "ces"), ("dut", "nld"),
    ("fre", "fra"), ("geo", "kat"), ("ger", "deu"), ("gre", "ell"), ("ice", "isl"), ("mac", "mkd"), ("may", "msa"),
    ("per", "fas"), ("rum", "ron"), ("slo", "slk"), ("tib", "bod"), ("wel", "cym"),
)  # fmt: skip
# FFmpeg has names of its own for some of QuickTime's languages.
_QUICKTIME = {"fao": "fo ", "gle": "iri", "hrv": "hr ", "pan": "pa ", "srp": "sr ", "swe": "sve"}


def content_tags(tags: dict[str, str]) -> dict[str, str]:
    """Those that describe the content."""
    # Matroska's statistics tags (BPS, NUMBER_OF_FRAMES, DURATION, ...) describe the old encoding.
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _OWN and not key.startswith(("_STATISTICS", "BPS", "NUMBER_OF_", "DURATION"))
    }


def stream_tags(stream: Stream, muxer: str) -> dict[str, str]:
    """Those of a stream that describe the content, with its language as the muxer calls it, if it can."""
    tags = content_tags(stream.metadata)
    if "name" in tags and "title" not in tags:
        # FFmpeg reads the title of a track in MP4 and MOV as "name", and writes "title" there.
        tags["title"] = tags.pop("name")
    if has_language(stream):
        tags.pop("language")
        name = _language(stream.metadata["language"], muxer)
        if name is not None:
            tags["language"] = name
    return tags


def has_language(stream: Stream) -> bool:
    """The source says in which language a stream is."""
    return stream.metadata.get("language", "und") not in ("", "und")


@functools.lru_cache(maxsize=256)
def _language(name: str, muxer: str) -> str | None:
    """A language as the muxer can write it, None where it cannot."""
    name = next((iso for iso, other in _QUICKTIME.items() if other == name), name)
    if muxer == "matroska":
        return name
    pair = next((pair for pair in _PAIRS if name in pair), ())
    names = dict.fromkeys((name, *pair, _QUICKTIME.get(name, name)))

    def fill(out: OutputContainer) -> None:
        for candidate in names:
            out.add_mux_stream("mov_text", time_base=Fraction(1, 1000)).metadata["language"] = candidate

    with _written(muxer, fill) as kept:
        found = [stream.metadata.get("language") for stream in kept.streams]
    return next((wanted for wanted, got in zip(names, found, strict=True) if wanted == got), None)


def muxer_keeps(tags: dict[str, str], muxer: str) -> bool:
    """Whether an MP4 or MOV muxer with its usual settings keeps every one of a file's tags: each has a list of its own.

    The muxer itself is asked: a file of the tags alone is written to memory and read again.
    """
    tags = {key: value for key, value in tags.items() if value and key.lower() not in _APART}

    def fill(out: OutputContainer) -> None:
        out.metadata.update(tags)
        out.add_mux_stream("mov_text", time_base=Fraction(1, 1000))

    with _written(muxer, fill) as kept:
        return {key.lower() for key in tags} <= {key.lower() for key in kept.metadata}


def muxer_keeps_timecode(timecode: str, rate: Fraction, muxer: str) -> bool:
    """Whether an MP4 or MOV muxer makes a time code track for `rate` frames per second; asked as in muxer_keeps."""

    def fill(out: OutputContainer) -> None:
        out.metadata["timecode"] = timecode
        # An encoder that takes any rate.
        context = out.add_stream("png", rate=rate).codec_context
        context.width, context.height, context.pix_fmt = 16, 16, "gray"

    try:
        kept = _written(muxer, fill)
    except av.FFmpegError:
        return False  # more than 255 frames a second
    with kept:
        return any(stream.type == "data" for stream in kept.streams)


def muxer_keeps_data(stream: Stream, muxer: str) -> bool:
    """Whether a muxer copies a data stream (telemetry): MOV's takes any, and writes a damaged track for most."""
    trial = io.BytesIO()
    try:
        with av.open(trial, "w", format=muxer, metadata_errors="surrogateescape") as out:
            copy = out.add_stream_from_template(stream, opaque=True)
            out.start_encoding()
            packet = Packet(b"\0")
            packet.stream, packet.pts, packet.dts = copy, 0, 0
            out.mux_one(packet)
        trial.seek(0)
        with av.open(trial, metadata_errors="surrogateescape") as kept:
            return stream.name is not None and [other.name for other in kept.streams] == [stream.name]
    except (ValueError, av.FFmpegError):
        return False


def _written(muxer: str, fill: Callable[[OutputContainer], None]) -> InputContainer:
    """A file of what `fill` gives it, but no packets, as the muxer writes it to memory; to be read and closed."""
    trial = io.BytesIO()
    with av.open(trial, "w", format=muxer, metadata_errors="surrogateescape") as out:
        fill(out)
        out.start_encoding()
    trial.seek(0)
    return av.open(trial, "r", metadata_errors="surrogateescape")
