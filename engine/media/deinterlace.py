"""Interlaced pictures to progressive ones, one for one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter.graph import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

# AVFieldOrder to bwdif's parity. Two numbers each, as FFmpeg's decoders of uncompressed video take them.
_PARITY = {2: "tff", 4: "tff", 3: "bff", 5: "bff"}
# Decoders that flag no picture whatever was encoded, as tried. Others say of each picture what it is (ProRes, DNxHD,
# FFV1, DV, MPEG, H.264), take the container's word for it themselves (uncompressed video), or are not known.
_FLAGS_NONE = frozenset(
    ("mjpeg", "png", "qtrle", "huffyuv", "ffvhuff", "r210", "r10k", "avrp", "yuv4", "y41p", "targa", "tiff")
)


def stated_parity(context: VideoCodecContext) -> str | None:
    """Which field of all pictures comes first ("tff" or "bff") by what the container says; None where it says nothing.

    A picture that its decoder does not flag is progressive, unless the decoder flags none: only then the container
    counts. Progressive pictures are kept in files that are called interlaced, too (PsF).
    """
    return _PARITY.get(context.field_order) if context.name in _FLAGS_NONE else None


class Deinterlacer:
    """FFmpeg's bwdif: a picture goes in, a progressive one of the same time comes out one picture later.

    Pictures that are not flagged as interlaced pass unchanged, unless it is known of all which field comes first.
    """

    def __init__(self, first: VideoFrame, time_base: Fraction, threads: int, *, parity: str | None = None) -> None:
        """
        Args:
            first: gives size, format and colour; every picture pushed must agree with it.
            time_base: of the pictures' times.
            threads: of the filter.
            parity: the field of every picture that comes first, see stated_parity; None: each picture's flags tell.
        """
        self._time_base = time_base
        self._graph = Graph()
        self._graph.threads = threads
        source = self._graph.add(
            "buffer",
            f"video_size={first.width}x{first.height}:pix_fmt={first.format.name}"
            f":time_base={time_base.numerator}/{time_base.denominator}:pixel_aspect=1/1"
            f":colorspace={first.colorspace}:range={first.color_range}",
        )
        which = "parity=auto:deint=interlaced" if parity is None else f"parity={parity}:deint=all"
        bwdif = self._graph.add("bwdif", f"mode=send_frame:{which}")
        self._graph.link_nodes(source, bwdif, self._graph.add("buffersink")).configure()

    def push(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Give one picture (None: no more) and get those that are ready."""
        self._graph.vpush(frame)
        while True:
            try:
                ready = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            # The filter halves the time base.
            scale = (ready.time_base or self._time_base) / self._time_base
            if ready.pts is not None:
                ready.pts = int(ready.pts * scale)
            ready.duration = int(ready.duration * scale)
            ready.time_base = self._time_base
            yield ready
