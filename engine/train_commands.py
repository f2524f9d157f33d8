"""`vs3r train`: fine-tuning of Wan2.2 on the user's own clips."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from vs3r.config import PairsConfig, TrainConfig
from vs3r.engine.options import settings_from, settings_options
from vs3r.engine.talk import Talk, talk_options


@click.group()
def train() -> None:
    """Fine-tune the video model that repairs what no frame saw.

    It needs stable clips, the weights of Wan2.2 and a large GPU; docs/refine.md tells more.
    """


@train.command("make-pairs")
@click.argument("videos", metavar="VIDEOS...", nargs=-1, required=True)
@click.argument("out", metavar="OUT")
@settings_options("pairs", PairsConfig)
@talk_options
def make_pairs_command(videos: tuple[str, ...], out: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Make pairs of a degraded and a clean clip from the stable clips VIDEOS, in the folder OUT.

    What is there already is not made again, so an interrupted run goes on where it was.
    """
    talk, config = Talk(as_json=as_json, quiet=quiet), settings_from("pairs", PairsConfig, values)
    from vs3r.engine.pairs import make_pairs

    with talk.progress() as progress:
        report = make_pairs(videos, out, config, progress=progress)
    for note in report.notes:
        talk.note(note)
    text = f"{out}: {report.made} pairs made, {report.found} were there"
    talk.event("result", text, output=out, made=report.made, found=report.found)


@train.command("dvdm")
@click.argument("pairs", metavar="PAIRS")
@click.argument("out", metavar="OUT")
@settings_options("train", TrainConfig)
@talk_options
def dvdm_command(pairs: str, out: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Train LoRAs of both experts on the pairs in the folder PAIRS, for --wan-lora OUT.

    Ctrl-C, or closing the terminal, ends it after the step that runs, with a checkpoint; the same command goes on from
    there. On several GPUs: accelerate launch $(which vs3r) train dvdm PAIRS OUT
    """
    talk, config = Talk(as_json=as_json, quiet=quiet), settings_from("train", TrainConfig, values)
    from vs3r.engine.threads import Stopped
    from vs3r.engine.train import TrainStep, train_dvdm

    def tell(now: TrainStep) -> None:
        text = f"{now.part}: step {now.step} of {now.steps}, loss {now.loss:.4f}"
        talk.event("step", text, **dataclasses.asdict(now))

    with gentle_interrupt() as check:
        try:
            trained = train_dvdm(pairs, out, config, tell=tell, check=check)
        except Stopped:
            raise KeyboardInterrupt from None
    if trained:
        text = f"{out}: LoRAs of {' and '.join(trained)}; {_use_of(Path(out))}"
        talk.event("result", text, output=out, trained=trained)


def _use_of(out: Path) -> str:
    """What to do with the LoRAs in a folder, where other runs may have left theirs."""
    from vs3r.refine.wan.checkpoint import HIGH, LOW

    if not (out / LOW).is_dir():
        return f"refinement needs that of {LOW}, too: train it with --experts low"
    alone = "" if (out / HIGH).is_dir() else " --wan-experts low"
    return f"use them with: --wan-lora {out}{alone}"


@contextmanager
def gentle_interrupt() -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C, termination or closed terminal only makes the function that is given raise Stopped when
    it is called next."""
    from vs3r.engine.threads import Stopped

    asked = False

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        # A terminal that closes may say so twice, and nobody is there to be impatient.
        if asked and number != signal.SIGHUP:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise Stopped

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
