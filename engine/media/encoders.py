"""Settings of each video encoder for a picture format."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
from av.codec.context import Flags as CodecFlags
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from vs3r.config import EncodeConfig
from vs3r.engine.media.formats import encoder_pix_fmt
from vs3r.engine.media.info import HdrMetadata, MediaInfo
from vs3r.errors import InputError, MediaError
from vs3r.types import PictureFormat

_DEFAULT_CRF = 18
_DEFAULT_PRESET = "medium"
_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip
MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's muxer for each file ending that can be written."""
_MIN_SIZE = {"libx265": (16, 16), "dnxhd": (256, 120)}
# From this width or height on, players take a picture without a colour matrix for BT.709.
_HD = (1280, 720)
_LIMITED, _FULL = 1, 2
_RGB_MATRIX, _UNSPECIFIED, _BT709 = 0, 2, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderPlan:
    """How one run encodes."""

    source: PictureFormat
    """Format of the frames given."""
    source_range: int
    """Colour range of the frames given, FFmpeg's number."""
    pix_fmt: str
    """Format that the encoder gets."""
    color_range: int
    """Colour range that the encoder gets."""
    primaries: int
    """Tag, FFmpeg's number."""
    transfer: int
    """Tag, FFmpeg's number."""
    matrix: int
    """Tag, FFmpeg's number."""
    options: dict[str, str]
    """Encoder options by FFmpeg's names."""
    tag: str | None
    """Four-character code in MP4 and MOV, None for the usual one."""
    notes: tuple[str, ...]
    """What is lost, one line each."""

    def configure(self, context: VideoCodecContext, threads: int) -> None:
        """Set up an encoder that is not open yet."""
        context.width, context.height = self.source.width, self.source.height
        context.pix_fmt = self.pix_fmt
        context.sample_aspect_ratio = self.source.sample_aspect
        context.color_range = self.color_range
        context.color_primaries = self.primaries
        context.color_trc = self.transfer
        context.colorspace = self.matrix
        context.thread_count = threads
        # Packets carry the duration of their frame: the last one's is known from nowhere else.
        context.flags |= CodecFlags.frame_duration
        if self.tag is not None:
            context.codec_tag = self.tag


def check_container(config: EncodeConfig, muxer: str) -> None:
    """Refuse early what cannot work.

    Raises:
        MediaError: the codec does not go into the container.
        InputError: there is no such preset.
    """
    if config.preset is not None and config.preset not in _PRESETS:
        raise InputError(f"preset: expected one of {', '.join(_PRESETS)}; got {config.preset!r}")
    if not _goes_into(config.codec, muxer):
        better = " or ".join(ending for ending, other in MUXERS.items() if _goes_into(config.codec, other))
        raise MediaError(f"{config.codec} does not go into {muxer}; name the output {better}")


def _goes_into(codec: str, muxer: str) -> bool:
    with av.open(io.BytesIO(), "w", format=muxer) as trial:
        try:
            trial.add_stream(codec)
        except ValueError:
            return False
    return True


def plan_encoder(config: EncodeConfig, fmt: PictureFormat, info: MediaInfo, *, muxer: str, threads: int) -> EncoderPlan:
    """Choose format and options for frames of `fmt`, with the colour and HDR tags of `info`.

    Raises:
        MediaError: the encoder takes nothing like it.
    """
    width, height = _MIN_SIZE.get(config.codec, (1, 1))
    if fmt.width < width or fmt.height < height:
        raise MediaError(
            f"{config.codec} needs at least {width}x{height} pixels, got {fmt.width}x{fmt.height}; choose another codec"
        )
    pix_fmt, notes = encoder_pix_fmt(config.codec, fmt)
    color = info.color
    source_range = color_range = _FULL if fmt.full_range else color.range
    matrix = color.matrix
    becomes_yuv = fmt.is_rgb and not VideoFormat(pix_fmt).is_rgb
    if becomes_yuv or (matrix == _RGB_MATRIX and not fmt.is_rgb):
        # The matrix must be named, or players guess one by the size of the picture.
        matrix, color_range = _BT709, _LIMITED
    if config.codec == "prores_ks" and color_range == _FULL:
        color_range = _LIMITED
        notes.append("prores_ks stores limited range only: full range is converted")
    if config.codec == "dnxhd" and matrix not in (_BT709, _UNSPECIFIED):
        notes.append("dnxhd marks its pictures as BT.709: decoders may ignore the right mark beside them")
    if config.codec == "dnxhd" and matrix == _UNSPECIFIED and fmt.width < _HD[0] and fmt.height < _HD[1]:
        guess = "unmarked ones of this size are usually taken for BT.601"
        notes.append(f"dnxhd marks its pictures as BT.709: {guess}, so colours shift")
    if config.codec not in ("libx264", "libx265"):
        unused = [f"{name} {value}" for name in ("crf", "preset") if (value := getattr(config, name)) is not None]
        if unused:
            notes.append(f"{config.codec} has no such setting: {' and '.join(unused)} had no effect")
    if muxer == "matroska" and fmt.sample_aspect != 1 and config.codec not in ("libx264", "libx265"):
        notes.append(f"{config.codec} in Matroska loses the pixel aspect ratio {fmt.sample_aspect}; .mov keeps it")
    if info.hdr is not None and config.codec not in ("libx264", "libx265"):
        notes.append(f"{config.codec} does not carry the static HDR metadata (mastering display, light level)")
    return EncoderPlan(
        source=fmt,
        source_range=source_range,
        pix_fmt=pix_fmt,
        color_range=color_range,
        primaries=color.primaries,
        transfer=color.transfer,
        matrix=matrix,
        options=_options(config, fmt, pix_fmt, info, threads),
        tag="hvc1" if config.codec == "libx265" else None,
        notes=tuple(notes),
    )


def _options(config: EncodeConfig, fmt: PictureFormat, pix_fmt: str, info: MediaInfo, threads: int) -> dict[str, str]:
    options: dict[str, str] = {}
    if info.color.chroma_location is not None:
        options["chroma_sample_location"] = info.color.chroma_location
    if config.codec in ("libx264", "libx265"):
        options["crf"] = str(_DEFAULT_CRF if config.crf is None else config.crf)
        options["preset"] = config.preset or _DEFAULT_PRESET
    if config.codec == "libx264" and info.hdr is not None:
        options["x264-params"] = _hdr_options(info.hdr, "mastering-display", "cll")
    elif config.codec == "libx265":
        options["x265-params"] = f"log-level=error:pools={threads}"
        if min(fmt.width, fmt.height) < 64:
            # Its block-tree analysis writes past its buffers on such small pictures.
            options["x265-params"] += ":cutree=0"
        if info.hdr is not None:
            options["x265-params"] += ":" + _hdr_options(info.hdr, "master-display", "max-cll")
    elif config.codec == "prores_ks":
        options |= {"profile": "hq" if "422" in pix_fmt else "4444", "vendor": "apl0"}
    elif config.codec == "dnxhd":
        options["profile"] = {"yuv422p": "dnxhr_hq", "yuv422p10le": "dnxhr_hqx"}.get(pix_fmt, "dnxhr_444")
    elif config.codec == "ffv1":
        # Version 3, every picture a key frame with a checksum: what archives and editors expect.
        options |= {"level": "3", "g": "1", "slicecrc": "1"}
    return options


def _hdr_options(hdr: HdrMetadata, mastering: str, light: str) -> str:
    parts = []
    if hdr.mastering_display is not None:
        parts.append(f"{mastering}={hdr.mastering_display}")
    if hdr.content_light is not None:
        parts.append(f"{light}={hdr.content_light}")
    return ":".join(parts)
