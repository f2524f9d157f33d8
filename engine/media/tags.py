"""Which of a source's tags are copied, and how the output's container holds them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
from av.stream import Stream

# Written by every muxer for itself; the source's would be wrong or doubled.
_OWN = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "rotate"}
# MP4 and MOV hold these in the header and in a track of its own.
_APART = {"creation_time", "timecode"}


def content_tags(tags: dict[str, str]) -> dict[str, str]:
    """Those that describe the content."""
    # Matroska's statistics tags (BPS, NUMBER_OF_FRAMES, DURATION, ...) describe the old encoding.
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _OWN and not key.startswith(("_STATISTICS", "BPS", "NUMBER_OF_", "DURATION"))
    }


def stream_tags(stream: Stream) -> dict[str, str]:
    """Those of a stream that describe the content."""
    tags = content_tags(stream.metadata)
    if "name" in tags and "title" not in tags:
        # FFmpeg reads the title of a track in MP4 and MOV as "name", and writes "title" there.
        tags["title"] = tags.pop("name")
    return tags


def muxer_keeps(tags: dict[str, str], muxer: str) -> bool:
    """Whether an MP4 or MOV muxer with its usual settings keeps every one of a file's tags: each has a list of its own.

    The muxer itself is asked: a file of the tags alone is written to memory and read again.
    """
    tags = {key: value for key, value in tags.items() if value and key.lower() not in _APART}
    trial = io.BytesIO()
    with av.open(trial, "w", format=muxer, metadata_errors="surrogateescape") as out:
        out.metadata.update(tags)
        out.add_mux_stream("mov_text", time_base=Fraction(1, 1000))
        out.start_encoding()
    trial.seek(0)
    with av.open(trial, metadata_errors="surrogateescape") as kept:
        return {key.lower() for key in tags} <= {key.lower() for key in kept.metadata}


def muxer_keeps_timecode(timecode: str, rate: Fraction, muxer: str) -> bool:
    """Whether an MP4 or MOV muxer makes a time code track for `rate` frames per second; asked as in muxer_keeps."""
    trial = io.BytesIO()
    with av.open(trial, "w", format=muxer, metadata_errors="surrogateescape") as out:
        out.metadata["timecode"] = timecode
        context = out.add_stream("mpeg4", rate=rate).codec_context
        context.width, context.height, context.pix_fmt = 16, 16, "yuv420p"
        out.start_encoding()
    trial.seek(0)
    with av.open(trial, metadata_errors="surrogateescape") as kept:
        return any(stream.type == "data" for stream in kept.streams)
