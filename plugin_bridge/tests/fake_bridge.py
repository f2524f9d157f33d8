#!/usr/bin/env python3
"""Stands in for vs3r-bridge: speaks its lines on descriptor 0. The clip's name says how it behaves.

Frame k is filled with the byte k. What is analysed is remembered in the folder of $FAKE_BRIDGE.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

FRAMES = 20


def main() -> None:
    folder = Path(os.environ["FAKE_BRIDGE"])
    with socket.socket(fileno=os.dup(0)) as line, line.makefile("rwb") as stream:

        def say(*fields: object) -> None:
            stream.write("\t".join(str(field) for field in fields).encode() + b"\n")
            stream.flush()

        media = ""
        for request in stream:
            fields = request.rstrip(b"\n").decode().split("\t")
            if fields[0] == "open":
                media = fields[2]
                (folder / "started").open("a").write(f"{fields[1]} {media}\n")
                open_clip(media, analyse=fields[1] == "1", done=folder / f"{media}.done", say=say)
            elif media == "dies":
                os._exit(1)
            elif media == "garbage":
                stream.write(b"\xff\x00 frame frame\n" * 3)
                stream.flush()
            elif media == "short":
                say("frame", 4, 4, 3)
            elif media == "hangs":
                time.sleep(3600)
            else:
                index, width, height, size = (int(field) for field in fields[1:5])
                if float(fields[5]):  # the clip is twice as wide as high
                    height = round(width * float(fields[5]) / 2)
                pixels = bytes([min(index, FRAMES - 1)]) * (4 * size * width * height)
                (folder / "drawn").open("a").write(f"{index}\n")
                say("frame", width, height, len(pixels))
                stream.write(pixels)
                stream.flush()


def open_clip(media: str, *, analyse: bool, done: Path, say: object) -> None:
    assert callable(say)
    if media == "old":
        say("error", "the engine is too old for this plugin")
        return
    if analyse:
        for frame in range(1, 10**9 if media == "endless" else FRAMES + 1):
            say("progress", frame, FRAMES)
            if media == "endless":
                time.sleep(0.01)
        done.touch()
    if done.exists() or media not in ("fresh", "endless"):
        say("ready", FRAMES)
    else:
        say("unanalysed")


main()
