"""What the plugins add to the engine: python -m benchmarks.bridge (after `make plugin`).

The OpenFX plugin in the tests' own host, on a 1080p clip with a saved track, float RGBA: a frame's time against the
engine's own, a frame that is there already, the load, and the memory of an instance.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np

from tests.bridge.conftest import BUILD, LIBRARY, VS3R, engines
from tests.bridge.ofx_host import OfxHost
from tests.bridge.ofx_things import Layout
from vs3r.config import Config
from vs3r.engine.client.sync import Client

WIDTH, HEIGHT, FRAMES = 1920, 1080, 40
# Frames of one turn of each side: few, so that both see the same load.
TURN = 5
FLOAT = Layout(depth="OfxBitDepthFloat")
INSTANCES = 200


def make_clip(path: Path) -> None:
    """A shaky flat texture."""
    rng = np.random.default_rng(7)
    texture = cv2.resize(rng.integers(0, 255, (120, 200, 3), np.uint8), (WIDTH + 200, HEIGHT + 200))
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(FRAMES):
            x, y = np.clip(rng.normal(100, 15, 2), 0, 199).astype(int)
            picture = np.ascontiguousarray(texture[y : y + HEIGHT, x : x + WIDTH], np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))


def load_s() -> float:
    """From nothing to a plugin that is loaded and described, in a process of its own."""
    code = (
        "import time; from pathlib import Path; from tests.bridge.ofx_host import OfxHost; "
        f"start = time.perf_counter(); OfxHost(Path({str(LIBRARY)!r})); print(time.perf_counter() - start)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def resident_mib(pid: int | str = "self") -> float:
    """Memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def row(what: str, bar: str, measured: str) -> None:
    """A line of the table."""
    print(f"| {what} | {bar} | {measured} |", flush=True)


def frames(folder: Path, clip: Path, track: Path) -> None:
    """New and cached frames, in turns with the engine alone."""
    host = OfxHost(LIBRARY)
    instance = host.instance(OfxImageEffectPropSrcFilePath=[str(clip)])
    instance.parts["track_file"].value = str(track)
    source = np.full((HEIGHT, WIDTH, 4), 0.25, np.float32)
    host.render(instance, 0.0, source, FLOAT)  # starts the engine
    plugin: list[float] = []
    alone: list[float] = []
    with Client(f"unix:{folder}/run/vs3r/engine.sock") as client:
        session = client.create_session("benchmark", Config()).name
        client.upload_track(session, track.read_bytes())
        client.analyze_file(session, str(clip).lstrip("/"))
        client.get_frame(session, 0)
        for first in range(1, FRAMES - TURN, TURN):
            for index in range(first, first + TURN):
                host.render(instance, float(index), source, FLOAT)
                plugin.append(host.render_s)
            for index in range(first, first + TURN):
                start = time.perf_counter()
                client.get_frame(session, index)
                alone.append(time.perf_counter() - start)
    assert host.messages in ([], [""]), host.messages
    ratio = statistics.median(plugin) / statistics.median(alone)
    medians = f"{statistics.median(plugin) * 1e3:.0f} ms against {statistics.median(alone) * 1e3:.0f} ms"
    row("a 1080p float frame by a saved track, of the engine's own time", "<= 1.3", f"{ratio:.2f} ({medians})")
    for what, layout in (("", FLOAT), (", the source opaque", replace(FLOAT, alpha="OfxImageOpaque"))):
        cached = []
        for _ in range(40):
            host.render(instance, 20.0, source, layout)
            cached.append(host.render_s * 1e3)
        row(f"a frame that is there already, 1080p float{what}", "< 5 ms", f"{statistics.median(cached):.1f} ms")
    copies = []
    for _ in range(20):
        start = time.perf_counter()
        source.copy()
        copies.append((time.perf_counter() - start) * 1e3)
    row("a plain copy of such a picture, for comparison", "", f"{statistics.median(copies):.1f} ms")
    before = resident_mib()
    for _ in range(INSTANCES):
        host.instance(OfxImageEffectPropSrcFilePath=[str(clip)])
    each_kib = (resident_mib() - before) * 1024 / INSTANCES
    row("an instance, the host's own share included", "stated", f"{each_kib:.1f} KiB")
    host.unload()


def main() -> None:
    """Prints a table."""
    if not (BUILD / "vs3r-bridge").exists():
        sys.exit("the plugins are not built: make plugin")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir(mode=0o700)
        os.environ |= {
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "VS3R_COMMAND": str(VS3R),
        }
        clip, track = folder / "shaky.mp4", folder / "shaky.vs3r"
        make_clip(clip)
        subprocess.run([VS3R, "analyze", clip, "-o", track, "--quiet"], check=True)
        print("| what | bar | measured |\n|---|---|---|")
        try:
            frames(folder, clip, track)
            loads = sorted(load_s() * 1e3 for _ in range(9))
            row("the plugin's load", "< 100 ms", f"{loads[len(loads) // 2]:.1f} ms, at most {loads[-1]:.1f} ms")
        finally:
            for engine in engines(folder):
                os.kill(engine, signal.SIGKILL)


if __name__ == "__main__":
    main()
