"""`vs3r train dvdm`: pairs to the LoRAs of Wan2.2's experts, with checkpoints, a log and validation clips.

OUT/settings.json                                     what it was begun with
OUT/log.jsonl                                         the loss of every step, and of clips that are not trained on
OUT/checkpoints/transformer-000100.safetensors        to go on from; the last two of each expert, and where a run ended
OUT/validation/transformer-000250.mp4                 render, result and clean clip, side by side
OUT/transformer/pytorch_lora_weights.safetensors      what --wan-lora OUT and diffusers read; transformer_2 likewise
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vs3r.config import TrainConfig
from vs3r.engine.pairs import as_a_whole, keep_settings, load_pair
from vs3r.engine.threads import Stopped
from vs3r.errors import BackendError, InputError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from vs3r.refine.training.pairs import Pair
    from vs3r.refine.training.trainer import ExpertTrainer

_KEPT = 2
_CHECKED_PAIRS = 4
_FREE = ("checkpoint_every", "validate_every", "validation_steps", "experts", "steps")
"""Settings that may change when a run goes on: they do not change what a step does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """One step of the optimizer."""

    part: str
    """transformer (high noise) or transformer_2."""
    step: int
    """Number, from 1."""
    steps: int
    """How many there will be."""
    loss: float
    """Mean over the clips of the step, before it."""


class Clips:
    """Pairs in a folder, read when they are asked for. All processes see the same."""

    def __init__(self, paths: list[Path], channels: int) -> None:
        self._paths = paths
        self._channels = channels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int, /) -> Pair:
        pair = load_pair(self._paths[i])
        if pair.clean.shape[1] != self._channels:
            raise InputError(
                f"expected latents of {self._channels} channels in {self._paths[i]}, got {pair.clean.shape[1]}; "
                "make pairs with the weights that are fine-tuned"
            )
        return pair


def train_dvdm(
    pairs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig,
    *,
    tell: Callable[[TrainStep], object] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train the LoRAs of the experts that the config names, or go on with it.

    Args:
        pairs: folder that `make_pairs` filled.
        out: folder for what comes of it, made when it is not there; what it has is gone on with.
        config: settings.
        tell: called after every step; of several processes in the first one.
        check: called between steps; what it raises ends the work. After Stopped, an OSError of `tell`, and errors that
            are raised here, a checkpoint of the steps done is written first.
    Returns:
        The experts that are trained; of several processes in the first one, in others nothing.
    Raises:
        InputError: there are no pairs, weights are missing, or the folder was begun with other settings.
        BackendError: it cannot run here, or the loss or its gradient is no number any more.
        OutputError: the folder cannot be written.
    """
    from vs3r.refine.training.setup import load_setup
    from vs3r.refine.wan.checkpoint import HIGH, LOW

    training, held_out = split_pairs(Path(pairs))
    setup = load_setup(config)
    run = _Run(
        out=Path(out),
        config=config,
        training=Clips(training, setup.channels),
        held_out=Clips(held_out, setup.channels),
        setup=setup,
        tell=tell,
        check=check,
    )
    run.begin()
    both = {"one-by-one": [[HIGH], [LOW]], "together": [[HIGH, LOW]], "high": [[HIGH]], "low": [[LOW]]}
    groups = both[config.experts]
    for group in groups:
        run.train(group)
    return [part for group in groups for part in group] if setup.is_main else []


def split_pairs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pairs to train on, and those of one piece of a clip that are held out; with one piece both are the same.

    Raises:
        InputError: there are none.
    """
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"expected pairs in {folder}, found none; make some with: vs3r train make-pairs")
    pieces = sorted({_piece_of(path) for path in paths})
    held_out = [path for path in paths if _piece_of(path) == pieces[-1]]
    training = [path for path in paths if path not in held_out]
    return training or held_out, held_out


def _piece_of(path: Path) -> str:
    return path.stem.rsplit("-", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a run has at hand; see train_dvdm."""

    out: Path
    config: TrainConfig
    training: Clips
    held_out: Clips
    setup: Any
    tell: Callable[[TrainStep], object]
    check: Callable[[], None]

    def begin(self) -> None:
        """Make the folder, or refuse one that was begun in another way."""
        if not self.setup.is_main:
            return
        fixed = {name: value for name, value in asdict(self.config).items() if name not in _FREE}
        try:
            for name in ("checkpoints", "validation"):
                (self.out / name).mkdir(parents=True, exist_ok=True)
                # Of a run that was killed as it wrote: gigabytes each.
                for unfinished in (self.out / name).glob(".*.part"):
                    unfinished.unlink()
            keep_settings(self.out, fixed | {"pairs": len(self.training), "processes": self.setup.processes})
        except OSError as error:
            raise OutputError(f"cannot write to {self.out}: {error.strerror}; give another folder") from None

    def train(self, parts: Sequence[str]) -> None:
        """Train some experts, which are in memory together, a stretch of each in turn."""
        if all(self._finished(part) for part in parts):
            return
        trainers = [self._load(part) for part in parts]
        while any(trainer.steps < self.config.steps for trainer in trainers):
            for trainer in trainers:
                self._stretch(trainer)
        del trainers
        self.setup.release()

    def _finished(self, part: str) -> bool:
        last = last_checkpoint(self.out, part)
        return last is not None and last[0] >= self.config.steps

    def _load(self, part: str) -> ExpertTrainer:
        trainer: ExpertTrainer = self.setup.trainer(part)
        last = last_checkpoint(self.out, part)
        if last is not None:
            steps, path = last
            trainer.restore(_read_tensors(path), steps)
        return trainer

    def _stretch(self, trainer: ExpertTrainer) -> None:
        """Steps up to the next checkpoint or validation clip."""
        config = self.config
        saved = trainer.steps >= config.steps
        while not saved:
            try:
                self._together(self.check)
                loss = trainer.step(self.training)
                self._log(part=trainer.part, step=trainer.steps, loss=loss)
                if self.setup.is_main:
                    self.tell(TrainStep(part=trainer.part, step=trainer.steps, steps=config.steps, loss=loss))
                last = trainer.steps == config.steps
                saved = last or trainer.steps % config.checkpoint_every == 0
                if saved:
                    self._save(trainer)
                    self._forget(trainer.part)
                if config.validate_every and (last or trainer.steps % config.validate_every == 0):
                    self._together(functools.partial(self._validate, trainer))
            except Stopped:
                self._save(trainer)
                self.setup.wait()  # what has launched the processes ends all when one ends
                raise
            except (OSError, InputError, OutputError, BackendError):
                # OSError: nobody can be told of the step, as where the terminal has closed or the pipe has.
                # OutputError: where the log or a clip has no room, a checkpoint may have. The others: the next step
                # cannot be done, as where a pair is damaged; those before it count.
                self._save(trainer)
                raise

    def _together(self, work: Callable[[], object]) -> None:
        """Do what may raise Stopped: where it does in one process it does in all, or they would wait for that one."""
        try:
            work()
            stopped = False
        except Stopped:
            stopped = True
        if self.setup.any_process(stopped):
            raise Stopped

    def _save(self, trainer: ExpertTrainer) -> None:
        if not self.setup.is_main or trainer.steps == 0:
            return
        folder = self.out / "checkpoints"
        path = folder / f"{trainer.part}-{trainer.steps:06d}.safetensors"
        try:
            # The checkpoint last: once it is there, so is the LoRA.
            trainer.save_lora(self.out / trainer.part)
            with as_a_whole(path) as temporary:
                save_file(trainer.state(), temporary)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write the checkpoint {path}: {error}; check that the disk has room") from None

    def _forget(self, part: str) -> None:
        """Delete all but the newest checkpoints. Not where a run ends early: those before may be the better ones."""
        if self.setup.is_main:
            for _, old in _checkpoints(self.out, part)[:-_KEPT]:
                old.unlink()

    def _validate(self, trainer: ExpertTrainer) -> None:
        if not self.setup.is_main:
            return
        pairs = [self.held_out[i] for i in range(min(_CHECKED_PAIRS, len(self.held_out)))]
        self._log(part=trainer.part, step=trainer.steps, validation_loss=trainer.check_loss(pairs))
        pictures = self.setup.preview(trainer, pairs[0], self.check)
        write_clip(self.out / "validation" / f"{trainer.part}-{trainer.steps:06d}.mp4", pictures)

    def _log(self, **entry: Any) -> None:
        if not self.setup.is_main:
            return
        path = self.out / "log.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write the log {path}: {error.strerror}; check that the disk has room") from None


def last_checkpoint(out: Path, part: str) -> tuple[int, Path] | None:
    """The steps and the file of an expert's newest checkpoint."""
    found = _checkpoints(out, part)
    return found[-1] if found else None


def _checkpoints(out: Path, part: str) -> list[tuple[int, Path]]:
    """The steps and the files of an expert's checkpoints, by number: beyond a million, names sort otherwise."""
    paths = (out / "checkpoints").glob(f"{part}-*.safetensors")
    numbers = ((path.stem.removeprefix(f"{part}-"), path) for path in paths)
    # Copies that somebody put aside there are none.
    return sorted((int(number), path) for number, path in numbers if number.isdecimal())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected a checkpoint in {path}, it cannot be read ({error}); delete it") from None


def write_clip(path: Path, pictures: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Write (T, H, W, 3) RGB pictures of even size as a video of 16 a second, the rate of Wan2.2.

    Raises:
        OutputError: the disk is full, for one.
    """
    try:
        with as_a_whole(path) as temporary:
            _encode_clip(temporary, pictures)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"cannot write the clip {path}: {error.strerror}; check that the disk has room") from None


def _encode_clip(path: Path, pictures: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "16"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
