"""The OpenFX plugin in a host that is not ours: MLT's own (7.38 and newer), without other times and buttons."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bridge.conftest import BUILD, LIBRARY, VS3R, Analysed, Host, need
from tests.bridge.test_mlt import near

EFFECT = "openfx.org.vs3r.Stabilize"


@pytest.fixture
def bundle(melt: Host) -> dict[str, str]:
    """What lets melt find the plugin."""
    need(str(LIBRARY.relative_to(BUILD)))
    if not (Path(melt.environment["MLT_REPOSITORY"]) / "libmltopenfx.so").exists():
        pytest.skip("this MLT has no OpenFX host: 7.38 and newer have")
    environment = {"OFX_PLUGIN_PATH": str(BUILD)}
    listed = subprocess.run(
        ["melt", "-query", "filters"],
        env=melt.environment | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert EFFECT in listed.stdout + listed.stderr
    return environment


@pytest.mark.parametrize("real_time", [-1, -3])
def test_a_track_file_needs_no_analysis(
    melt: Host, analysed: Analysed, bundle: dict[str, str], tmp_path: Path, real_time: int
) -> None:
    """One instance a frame, made in several threads, frames out of order."""
    track = tmp_path / "shaky.vs3r"
    subprocess.run([VS3R, "analyze", analysed.clip, "-o", track, "--quiet"], check=True, timeout=200)
    effect = ("-attach", EFFECT, f"source_file={analysed.clip}", f"track_file={track}")
    assert near(melt.render(str(analysed.clip), *effect, real_time=real_time, environment=bundle), analysed.steady)
    # The host counts from the trimmed clip's start, and does not tell it.
    trimmed = melt.render(str(analysed.clip), "in=8", "out=15", *effect, "frame_offset=8", environment=bundle)
    assert near(trimmed, analysed.steady[8:16])


def test_without_a_file_only_the_frame_itself_is_moved(
    melt: Host, analysed: Analysed, bundle: dict[str, str], tmp_path: Path
) -> None:
    bare = melt.render(str(analysed.clip), environment=bundle)
    assert near(melt.render(str(analysed.clip), "-attach", EFFECT, environment=bundle), bare)
    track = tmp_path / "shaky.vs3r"
    subprocess.run([VS3R, "analyze", analysed.clip, "-o", track, "--quiet"], check=True, timeout=200)
    moved = melt.render(str(analysed.clip), "-attach", EFFECT, f"track_file={track}", real_time=-3, environment=bundle)
    inner = slice(None), slice(12, -12), slice(12, -12)
    error = abs(moved[inner].astype(float) - analysed.steady[inner]).mean()
    assert error < 2 < abs(bare[inner].astype(float) - analysed.steady[inner]).mean() / 3
