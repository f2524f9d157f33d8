"""`vs3r train make-pairs`: stable clips to pairs of latents, one file each, with where they come from.

A file is named after the clip's content, its first frame and the variant, and appears when it is complete: what is
there is not made again. The track of a clip is kept beside the pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vs3r import __version__
from vs3r.config import Config, PairsConfig
from vs3r.engine.files import analyze_file, inset_of_track
from vs3r.engine.media import VideoReader
from vs3r.engine.progress import Meter, ProgressCallback
from vs3r.engine.track_file import load_track, save_track
from vs3r.errors import BackendError, InputError, OutputError

if TYPE_CHECKING:
    from vs3r.refine.training.pairs import Encoder, Pair
    from vs3r.refine.wan.windows import Layout
    from vs3r.render import SourceFrame
    from vs3r.types import CameraTrack, Frame

SETTINGS = "settings.json"
_HEADER = "pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsReport:
    """What a run did."""

    made: int
    """Pairs that were made."""
    found: int
    """Pairs that were there already."""
    notes: tuple[str, ...]
    """Remarks, on clips that are too short for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A part of a clip, of which pairs are to be made."""

    first: int
    """Number of its first frame."""
    variants: tuple[int, ...]
    """Those that are not there yet."""


def make_pairs(
    videos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    config: PairsConfig,
    *,
    progress: ProgressCallback | None = None,
    check: Callable[[], None] = lambda: None,
) -> PairsReport:
    """Make the pairs of some clips that are not in a folder yet.

    Args:
        videos: stable clips.
        out: folder, made when it is not there.
        config: settings; all pairs of a folder share them.
        progress: told of every frame of every pair, about.
        check: called now and then; what it raises ends the work, and what is finished stays.
    Raises:
        InputError: weights are missing, or the folder has pairs made with other settings.
        MediaError: a clip cannot be read.
        BackendError: the autoencoder cannot run here.
        OutputError: the folder cannot be written.
    """
    from vs3r.refine.wan.model import load_encoder

    folder = Path(out)
    clips = [(Path(video), _content_hash(Path(video))) for video in videos]
    encoder, layout = load_encoder(config.weights, config.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        keep_settings(folder, asdict(config))
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; give another folder") from None
    meter = Meter(progress)
    made, found, notes = 0, 0, []
    for path, digest in clips:
        track = _track_of(path, folder / "tracks" / f"{digest[:16]}.vs3r")
        starts = piece_starts(track, config.frames)
        if not starts:
            notes.append(f"{path}: no scene has {config.frames} frames, no pair is made of it")
        pieces = [_piece(folder, digest, first, config) for first in starts]
        missing = sum(len(piece.variants) for piece in pieces)
        found += config.variants * len(pieces) - missing
        meter.total = (meter.total or 0) + missing * config.frames
        source = {"clip": path.name, "sha256": digest, "version": __version__, "weights": config.weights}
        for piece, frames in _read_pieces(path, track, [p for p in pieces if p.variants], config, layout):
            for variant in piece.variants:
                seed = recipe_seed(config.seed, digest, piece.first, variant)
                pair, told = _make(frames, seed, encoder, layout, check)
                header = source | {"first_frame": piece.first, "frames": config.frames, "recipe": told}
                _write_pair(folder / pair_name(digest, piece.first, variant), pair, header)
                made += 1
                for _ in range(config.frames):
                    meter.tick()
    return PairsReport(made=made, found=found, notes=tuple(notes))


def pair_name(digest: str, first: int, variant: int) -> str:
    """File name of a pair: the clip's content, the first frame, the variant."""
    return f"{digest[:16]}-{first:06d}-{variant:03d}.safetensors"


def recipe_seed(seed: int, digest: str, first: int, variant: int) -> int:
    """Of a pair's recipe: it depends on what the pair is made of, not on when."""
    state = np.random.SeedSequence([seed, int(digest[:16], 16), first, variant]).generate_state(1, np.uint64)
    return int(state[0])


def piece_starts(track: CameraTrack, frames: int) -> list[int]:
    """First frames of the pieces, so long, that the scenes of a clip are cut into; what is left over is not used."""
    starts = []
    for scene in np.unique(track.segment):
        numbers = np.flatnonzero(track.segment == scene)
        starts += list(range(int(numbers[0]), int(numbers[-1]) + 2 - frames, frames))
    return starts


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings that all of a folder shares, or compare them with what is there.

    Raises:
        InputError: it was made with others.
    """
    path = folder / SETTINGS
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    try:
        there = json.loads(path.read_text())
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{path}: expected settings as a JSON object, got something else; give another folder")
    for name, value in settings.items():
        if there.get(name) != value:
            raise InputError(
                f"{folder} was begun with {name} {there.get(name)!r}, now it is {value!r}; "
                "go on with the same settings, or give another folder"
            )


def write_text(path: Path, text: str) -> None:
    """Write a small file as a whole or not at all."""
    with as_a_whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def as_a_whole(path: Path) -> Iterator[Path]:
    """A name beside a file's to write to: it takes the file's place at the end, and goes where that is not reached."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_pair(path: Path) -> Pair:
    """Read a pair.

    Raises:
        InputError: the file is none.
    """
    from vs3r.refine.training.pairs import unpack

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected a pair in {path}, it cannot be read ({error}); make it anew") from None
    return unpack(tensors)


def pair_header(path: Path) -> dict[str, Any]:
    """Where a pair comes from and how it was made."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()[_HEADER])
    return header


def _piece(folder: Path, digest: str, first: int, config: PairsConfig) -> _Piece:
    names = ((v, folder / pair_name(digest, first, v)) for v in range(config.variants))
    return _Piece(first=first, variants=tuple(v for v, path in names if not path.is_file()))


def _content_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"input file not found: {path}; check the path") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a video file") from None


def _track_of(video: Path, path: Path) -> CameraTrack:
    if path.is_file():
        return load_track(path)
    track = analyze_file(video, Config())
    path.parent.mkdir(exist_ok=True)
    save_track(track, path)
    return track


def _read_pieces(
    video: Path, track: CameraTrack, pieces: list[_Piece], config: PairsConfig, layout: Layout
) -> Iterator[tuple[_Piece, list[SourceFrame]]]:
    """The frames of pieces, without black bars, one piece in memory at a time, at the model's size."""
    from vs3r.refine.training.pairs import working_frame
    from vs3r.refine.wan.windows import working_size

    size = working_size(track.width, track.height, config.pixels, layout)
    waiting = list(pieces)
    frames: list[SourceFrame] = []
    with VideoReader(video) as reader:
        inset = inset_of_track(track, reader)
        for number, frame in enumerate(reader):
            if not waiting:
                return
            if number < waiting[0].first:
                continue
            frames.append(_source(working_frame(inset.take(frame), size), track, number))
            if len(frames) == config.frames:
                yield waiting.pop(0), frames
                frames = []


def _source(frame: Frame, track: CameraTrack, number: int) -> SourceFrame:
    from vs3r.render import SourceFrame

    geometry = track.frame(number)
    scale = np.diag([frame.format.width / track.width, frame.format.height / track.height, 1.0])
    return SourceFrame(frame=frame, geometry=replace(geometry, K=scale @ geometry.K))


def _make(
    frames: list[SourceFrame], seed: int, encoder: Encoder, layout: Layout, check: Callable[[], None]
) -> tuple[Pair, dict[str, Any]]:
    from vs3r.refine.training.degrade import degrade_clip
    from vs3r.refine.training.pairs import encode_pair
    from vs3r.refine.training.recipe import draw_recipe

    recipe = draw_recipe(seed)
    clip = degrade_clip(frames, recipe, check)
    try:
        return encode_pair(encoder, clip, layout), asdict(recipe)
    except torch.OutOfMemoryError:
        raise BackendError(
            "not enough memory on the GPU to encode a pair; use fewer --pixels or --frames, in another folder"
        ) from None


def _write_pair(path: Path, pair: Pair, header: dict[str, Any]) -> None:
    from vs3r.refine.training.pairs import pack

    try:
        with as_a_whole(path) as temporary:
            save_file(pack(pair), temporary, metadata={_HEADER: json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write the pair {path}: {error}; check that the folder has room") from None
