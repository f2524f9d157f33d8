"""The plugins as `make plugin` builds them, an engine that they start themselves, and melt."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("VS3R_PLUGIN_BUILD", ROOT / "build"))
LIBRARY = BUILD / "VS3R.ofx.bundle" / "Contents" / "Linux-x86-64" / "VS3R.ofx"
"""The OpenFX plugin."""
WIDTH, HEIGHT, FRAMES = 96, 64, 24
VS3R = ROOT / ".venv" / "bin" / "vs3r"

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]


def need(*names: str) -> None:
    """Skip where the plugins were not built; fail where `make plugin-test` says that they were."""
    missing = [name for name in names if not (BUILD / name).exists() and shutil.which(name) is None]
    if missing and os.environ.get("VS3R_REQUIRE_PLUGIN"):
        pytest.fail(f"{', '.join(missing)}: not there although the plugins were built", pytrace=False)
    if missing:
        pytest.skip(f"{', '.join(missing)}: not built here (make plugin)")


def luma(path: Path, pix_fmt: str = "yuv420p") -> Pictures:
    """(T, H, W) luma of a file."""
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format=pix_fmt)[: f.height] for f in file.decode(video=0)])


def stabilize(clip: Path, to: Path) -> Pictures:
    """Luma of what the command line makes of a clip."""
    subprocess.run([VS3R, "stabilize", clip, to, "--codec", "ffv1", "--quiet"], check=True, timeout=200)
    return luma(to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a clip's file tells its pictures to be shown."""

    rotation_deg: int = 0
    """Counter-clockwise."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of a pixel over its height."""
    is_interlaced: bool = False
    """Marked as two fields, the top one first."""
    start: int = 0
    """Number of frames that its time begins with."""
    pix_fmt: str = "yuv420p"
    """Of its file."""


def make_clip(path: Path, *, rate: int = 25, seed: int = 1, form: Form | None = None) -> Path:
    """A shaky picture of a flat texture."""
    form = form or Form()
    rng = np.random.default_rng(seed)
    texture = cv2.resize(rng.integers(0, 255, (40, 60, 3), np.uint8), (2 * WIDTH, 2 * HEIGHT))
    with av.open(str(path), "w") as out:
        # Not "crf": with its macroblock trees x264 writes pictures as small as these differently from run to run.
        options = {"qp": "10"} | ({"x264-params": "tff=1"} if form.is_interlaced else {})
        video = out.add_stream("libx264", rate=rate, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, form.pix_fmt
        video.codec_context.sample_aspect_ratio = form.pixel_aspect
        if form.rotation_deg:
            video.set_display_rotation(form.rotation_deg)
        for index in range(FRAMES):
            dx, dy = rng.normal(0, 2, 2)
            matrix = np.array([[1, 0, dx - WIDTH / 2], [0, 1, dy - HEIGHT / 2]])
            picture = np.asarray(cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT)), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = form.start + index, Fraction(1, rate)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """melt with the filter, and the environment in which it runs."""

    environment: dict[str, str]
    """Of melt and what it starts."""
    folder: Path
    """For its output."""

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Run melt."""
        subprocess.run(
            ["melt", *arguments, "terminate_on_pause=1"],
            env=self.environment | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=200,
            check=True,
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Of melt."""
        told = subprocess.run(["melt", "--version"], check=True, capture_output=True, text=True)
        found = re.search(r"melt (\d+)\.(\d+)", told.stdout + told.stderr)
        assert found is not None
        return tuple(map(int, found.groups()))

    def render(
        self,
        *arguments: str,
        real_time: int = -1,
        pix_fmt: str = "yuv420p",
        consumer: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> Pictures:
        """Luma of what melt renders without loss; of a packed pix_fmt all channels. consumer: more properties."""
        pipe = self.folder / "out.mkv"
        if not pipe.exists():
            os.mkfifo(pipe)
        lossless = (f"avformat:{pipe}", "vcodec=ffv1", f"pix_fmt={pix_fmt}", "an=1", f"real_time={real_time}")
        command = ["melt", *arguments, "-consumer", *lossless, *consumer, "terminate_on_pause=1"]
        # MLT starts the consumer's thread before it notes that it runs. A thread that is quicker than that stops at
        # once: the file stays empty, and melt may hang. So it is held at a pipe until melt says, at a terminal, that it
        # has come further.
        ours, terminal = os.openpty()
        with subprocess.Popen(
            command,
            env=self.environment | (environment or {}),
            stdin=terminal,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as melt:
            assert melt.stderr is not None
            next((line for line in melt.stderr if line.startswith(b"+--")), None)
            # Open on this side too until melt ends: where melt never writes, the end is seen.
            held = os.open(pipe, os.O_RDWR)
            ending = threading.Thread(target=_end, args=(melt, held))
            ending.start()
            try:
                return luma(pipe, pix_fmt)
            finally:
                ending.join()
                os.close(ours)
                os.close(terminal)
                assert melt.returncode == 0

    def analyse(self, clip: Path, environment: dict[str, str] | None = None) -> str:
        """What an editor's analysis job does; returns the XML that it leaves."""
        out = self.folder / "job.mlt"
        job = (str(clip), "-attach", "vs3r", "analyze=1", "-consumer", f"xml:{out}", "all=1", "real_time=-1")
        self.run(*job, environment=environment)
        return out.read_text()


def _end(melt: subprocess.Popen[bytes], held: int) -> None:
    """Wait for melt; then close what is held."""
    try:
        melt.communicate(timeout=200)
    finally:
        melt.kill()
        os.close(held)


def engines(folder: Path) -> list[int]:
    """Processes of the engines that listen below a folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"unix:{folder}".encode() in line.read_bytes():
                found.append(int(line.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def engine_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the plugins find and start the engine; it is ended afterwards."""
    need("vs3r-bridge")
    base = tmp_path_factory.mktemp("bridge")
    runtime = base / "run"
    runtime.mkdir(mode=0o700)
    yield os.environ | {
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CACHE_HOME": str(base / "cache"),
        "VS3R_COMMAND": str(VS3R),
        "VS3R_BRIDGE": str(BUILD / "vs3r-bridge"),
        "QT_QPA_PLATFORM": "offscreen",
    }
    for engine in engines(base):
        os.kill(engine, signal.SIGKILL)


@pytest.fixture(scope="module")
def library(engine_environment: dict[str, str]) -> Iterator[Path]:
    """The plugin, which runs in this process and finds its bridge in its own bundle."""
    need(str(LIBRARY.relative_to(BUILD)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment.items():
            patch.setenv(name, value)
        patch.delenv("VS3R_BRIDGE")
        yield LIBRARY


@pytest.fixture(scope="session")
def melt(engine_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Host:
    """melt, with the modules that a render needs and ours."""
    need("libmltvs3r.so", "melt")
    modules = tmp_path_factory.mktemp("modules")
    asked = ["pkg-config", "--variable=moduledir", "mlt-framework-7"]
    system = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    for name in ("core", "avformat", "xml"):
        (modules / f"libmlt{name}.so").symlink_to(system / f"libmlt{name}.so")
    # MLT's own OpenFX host, in 7.38 and newer.
    if (system / "libmltopenfx.so").exists():
        (modules / "libmltopenfx.so").symlink_to(system / "libmltopenfx.so")
    (modules / "libmltvs3r.so").symlink_to(BUILD / "libmltvs3r.so")
    environment = engine_environment | {"MLT_REPOSITORY": str(modules)}
    return Host(environment=environment, folder=tmp_path_factory.mktemp("melt"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip that nobody has analysed."""
    return make_clip(tmp_path_factory.mktemp("clip") / "shaky clip.mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysed:
    """A clip that was analysed by the filter."""

    clip: Path
    """Its file."""
    job: str
    """XML that the job left."""
    steady: Pictures
    """Luma of what `vs3r stabilize` makes of it."""


@pytest.fixture(scope="session")
def analysed(melt: Host, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """A clip analysed by melt, and what the command line makes of it."""
    folder = tmp_path_factory.mktemp("analysed")
    clip = make_clip(folder / "shaky.mp4", seed=2)
    job = melt.analyse(clip)
    return Analysed(clip=clip, job=job, steady=stabilize(clip, folder / "steady.mkv"))
