"""Frames that the server reads from files: how many stay open."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tests.engine.clips import Clip, write_clip
from tests.server.conftest import CONFIG, Serve, connected

CLIP = Clip(frames=24, width=64, height=48, codec="ffv1")


def times_open(path: Path) -> int:
    """How often this process, which is the server's, has a file open."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link) == str(path) for link in links if link.is_symlink())


def test_few_files_stay_open(serve: Serve, tmp_path: Path) -> None:
    """However many sessions there are: each open one takes a descriptor, and a decoder's memory."""
    path = write_clip(tmp_path / "in.mkv", CLIP)
    with connected(serve(media_root=str(tmp_path))) as client:
        sessions = []
        for i in range(12):
            smooth = replace(CONFIG.smooth, smoothness=0.1 + i / 100)
            sessions.append(client.create_session("clip", replace(CONFIG, smooth=smooth)).name)
            # The first one's frames are in memory; the others have its track, and read theirs.
            assert client.analyze_file(sessions[-1], "in.mkv").reused == (i > 0)
            assert client.get_frame(sessions[-1], 8).sequence == 8
        assert times_open(path) == 8
        # One that was closed is opened again.
        assert client.get_frame(sessions[1], 20).sequence == 20
        assert times_open(path) == 8
        for session in sessions:
            client.delete_session(session)
        assert times_open(path) == 0
