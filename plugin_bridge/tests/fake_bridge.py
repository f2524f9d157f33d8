#!/usr/bin/env python3
"""Stands in for vs3r-bridge: speaks its lines on descriptor 0. The clip's name says how it behaves.

Frame k is filled with the byte k. What is analysed is remembered in the folder of $FAKE_BRIDGE. Frames of a
host are filled with what it sent, and need those beside them.
"""

from __future__ import annotations

import os
import socket
import struct
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
        analysed = 0
        sent: dict[int, int] = {}
        for request in stream:
            fields = request.rstrip(b"\n").decode().split("\t")
            if fields[0] == "open":
                media = fields[2] or fields[7]
                stream.read(int(fields[11]))
                sent.clear()  # another session
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
            elif fields[0] == "analyse":
                analysed = 0
            elif fields[0] == "push":
                pixels = stream.read(4 * int(fields[4]) * int(fields[2]) * int(fields[3]))
                analysed += 1
                if media != "forgetful":
                    sent[int(fields[1])] = pixels[0]
                (folder / "pushed").open("a").write(f"{fields[1]}\n")
                say("taken")
            elif fields[0] == "finish":
                say("ready", analysed, "content of frames")
            elif fields[0] == "track":
                say("track", 5)
                stream.write(b"track")
                stream.flush()
            elif fields[0] == "warp":
                say("warp", 2, 3, 96, 64)
                stream.write(struct.pack("<14f", -4, 8, *range(12)))
                stream.flush()
            else:
                index, width, height, size = (int(field) for field in fields[1:5])
                around = [i for i in (index - 1, index, index + 1) if i >= 0]
                if media.startswith("host") or media == "forgetful":
                    missing = [i for i in around if i not in sent]
                    if missing:
                        say("missing", *(end for i in missing for end in (i, i)))
                        continue
                    index = sent[index]
                if float(fields[5]):  # the clip is twice as wide as high
                    height = round(width * float(fields[5]) / 2)
                pixels = bytes([index if sent else min(index, FRAMES - 1)]) * (4 * size * width * height)
                (folder / "drawn").open("a").write(f"{index}\n")
                say("frame", width, height, len(pixels))
                stream.write(pixels)
                stream.flush()


def open_clip(media: str, *, analyse: bool, done: Path, say: object) -> None:
    assert callable(say)
    if media == "held":  # each answer, until the test allows it
        wait_for(done.with_name("held.analysed" if analyse else "held.opened"))
    if media == "old":
        say("error", "the engine is too old for this plugin")
        return
    if analyse:
        for frame in range(1, 10**9 if media == "endless" else FRAMES + 1):
            say("progress", frame, FRAMES)
            if media == "endless":
                time.sleep(0.01)
        done.touch()
    if done.exists() or media not in ("fresh", "endless", "held"):
        say("ready", FRAMES, f"content of {media}")
    else:
        say("unanalysed")


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


main()
