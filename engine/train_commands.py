"""`vs3r train`: fine-tuning of Wan2.2 on the user's own clips."""

from __future__ import annotations

from typing import Any

import click

from vs3r.config import PairsConfig
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
