"""Speed and memory of the learned networks: python -m benchmarks.models --out docs/benchmarks/models_gpu.csv

With random weights at full size: speed does not depend on the values. RAFT on a pair of pictures, both ways at once,
as called and replayed as a CUDA graph; VGGT on windows of 518x294, one forward pass; VGGT4D on the same, with cues,
masks and the second pass (which random weights would leave out: it is made to run). Each as PyTorch has it, compiled,
by AOTInductor, and by TensorRT where its libraries are; median, 20th and 80th percentile, peak memory, the difference
from PyTorch in float32, and for VGGT the share of the rate of a large product of matrices, measured in the same run.
Then a 1080p video from file to file with VGGT4D, RAFT and rendering. Random weights would lose the flow, and what is
done then takes long: RAFT runs, and its flow is exchanged for the true one. The bars are told at the end. Engines are
built into a temporary folder.

On a CPU (processor time, one thread) it takes long; this tries the program out:
    python -m benchmarks.models --small --sizes 128x128 --windows 3 --side 84 --ways torch --video 128x72 --frames 12
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.demo_scene import write_clip
from benchmarks.kernels import cpu_times, gpu_times, machine, save
from vs3r.config import Config, EncodeConfig, FlowConfig, NetworkConfig, ReconstructConfig, VggtConfig
from vs3r.errors import BackendError
from vs3r.export.build import Task, errors_of, random_like, reference_of
from vs3r.export.runtime import prepare_with
from vs3r.flow import Guesses
from vs3r.flow.learned import RaftFlow, example_inputs
from vs3r.flow.raft import Raft
from vs3r.networks import DTYPES, default_device, replayed
from vs3r.reconstruct.observe import Grid
from vs3r.reconstruct.vggt import reconstructor
from vs3r.reconstruct.vggt import window as vggt_window
from vs3r.reconstruct.vggt.cues import CueLayers
from vs3r.reconstruct.vggt.mask import Candidates
from vs3r.reconstruct.vggt.model import FirstPass, Vggt, VggtSize, lower_precision
from vs3r.reconstruct.vggt.window import WindowNetwork
from vs3r.reconstruct.vggt.window import example_inputs as window_inputs
from vs3r.types import FloatArray, Frame, PictureFormat
from vs3r.weights import weights_folder

WAYS = ("torch", "torch-compile", "aoti", "tensorrt")
FPS_BAR, ENGINE_BAR, RATE_BAR = 30.0, 1.3, 0.6
END_TO_END_WINDOW = 32
SMALL = VggtSize(
    width=64, heads=4, encoder_depth=2, pairs=6, kept=(1, 2, 3, 5), camera_depth=1, depth_features=32,
    depth_channels=(16, 32, 64, 64), cues=CueLayers(shallow=(0,), middle=(1,), deep=(4,), deep_spread=(4,)),
    dropping=2,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    model: str
    """What was run."""
    size: str
    """Of the pictures; of VGGT with the frames of a window."""
    precision: str
    """Of the weights."""
    way: str
    """See `--runtime`."""
    median_ms: float
    """Of a call."""
    p20_ms: float
    """20th percentile."""
    p80_ms: float
    """80th percentile."""
    frames_per_s: float
    """From the median: flows for RAFT."""
    faster_than_torch: float | None
    """The median of `torch` over this one's; None where `torch` was not measured."""
    peak_mib: float | None
    """GPU memory of a call, weights included, as PyTorch counts it, so without TensorRT's own. None on a CPU."""
    error: float | None
    """RMS difference from PyTorch in float32 on random input, over the RMS of the output, of the worst output."""
    share_of_matrix_rate: float | None = None
    """Floating-point operations of the products a second, over that of one product of matrices in the same format."""


class Forward(nn.Module):
    """VGGT as it was published: cameras and depth."""

    def __init__(self, network: Vggt, height: int, width: int) -> None:
        super().__init__()
        self.inner = FirstPass(network, height, width)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pose, depth, confidence, _, _ = self.inner(pictures)
        return pose, depth, confidence


@functools.cache
def vggt(small: bool, precision: str, device: torch.device) -> Vggt:
    """With random weights of a scale that keeps numbers small."""
    torch.manual_seed(0)
    with torch.device(device):
        network = Vggt(SMALL if small else VggtSize())
    lower_precision(network, DTYPES[precision])
    return network.eval()


def timed(call: Callable[[], object], device: torch.device) -> tuple[list[float], float | None]:
    """Median and percentiles in milliseconds, and peak memory in MiB."""
    with torch.inference_mode():
        call()
        if device.type == "cpu":
            return cpu_times(call), None
        torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated() / 2**20
        return gpu_times(call), peak


def matrix_rate(precision: str, device: torch.device) -> float:
    """Floating-point operations a second of a product of large matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    times, _ = timed(lambda: a @ b, device)
    return float(2 * side**3 / (times[0] / 1e3))


def operations(small: bool, frames: int, size: tuple[int, int]) -> float:
    """Floating-point operations of the products of one forward pass."""
    with torch.device("meta"):
        network = Vggt(SMALL if small else VggtSize()).requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Forward(network, *size)(torch.zeros(frames, 3, *size, device="meta"))
    return float(counter.get_total_flops())


def measure(
    task: Task, size: str, precision: str, ways: Sequence[str], *, frames: int, work: float, replay: bool = False
) -> Iterator[Row]:
    """Every way to run a network, where asked for as a replayed CUDA graph, too; `work` in operations a call and per
    operation a second of the matrix rate, or 0."""
    inputs = random_like(task.example)
    reference = reference_of(task.network, inputs)
    base: float | None = None
    for way in ways:
        try:
            run = prepare_with(NetworkConfig(runtime=way))(task.model, task.network, task.example)
            with torch.inference_mode():
                error = max(errors_of(run(*inputs), reference))
            times, peak = timed(functools.partial(run, *inputs), task.device)
        except (BackendError, torch.cuda.OutOfMemoryError) as reason:
            print(f"{task.model} {size} {precision} {way}: not measured: {str(reason).splitlines()[0]}")
            continue
        base = times[0] if way == "torch" else base
        yield row(task.model, size, precision, way, times, frames, base, peak, error, work)
        if replay and task.device.type == "cuda":
            times, peak = timed(functools.partial(replayed(run, inputs), *inputs), task.device)
            yield row(task.model, size, precision, f"{way} graph", times, frames, base, peak, error, work)


def row(
    model: str, size: str, precision: str, way: str, times: list[float], frames: int, base: float | None,
    peak: float | None, error: float | None, work: float,
) -> Row:  # fmt: skip
    found = Row(
        model=model, size=size, precision=precision, way=way, median_ms=times[0], p20_ms=times[1], p80_ms=times[2],
        frames_per_s=1e3 * frames / times[0], faster_than_torch=None if base is None else base / times[0],
        peak_mib=peak, error=error, share_of_matrix_rate=work / (times[0] / 1e3) if work else None,
    )  # fmt: skip
    memory = "" if peak is None else f"  {peak:8.0f} MiB"
    share = "" if not work else f"  {100 * (found.share_of_matrix_rate or 0):.0f} % of matrix rate"
    wrong = "" if error is None else f"  error {error:.1e}"
    spread = f"{times[0]:9.2f} ms ({times[1]:.2f} to {times[2]:.2f})"
    print(f"{model:8s}{size:12s}{precision:6s}{way:14s}{spread}{memory}{share}{wrong}", flush=True)
    return found


def whole_window(
    network: Vggt, frames: int, size: tuple[int, int], precision: str, ways: Sequence[str], device: torch.device
) -> Iterator[Row]:
    """VGGT4D: both passes and the masks, from pictures on the CPU to estimates on the CPU."""
    fmt = PictureFormat(
        pix_fmt="gbrp", width=size[1], height=size[0], bit_depth=8, chroma_shift=(0, 0), num_planes=3, is_rgb=True
    )
    config = VggtConfig(
        vggt_window_frames=frames, vggt_overlap_frames=1, vggt_long_side=max(size), vggt_precision=precision
    )
    pictures = list(np.random.default_rng(0).integers(0, 256, (frames, *size, 3), dtype=np.uint8))
    label, base = f"{size[1]}x{size[0]}x{frames}", None
    for way in ways:
        try:
            windows = WindowNetwork(config, fmt, network, prepare_with(NetworkConfig(runtime=way)))
            with always_moving():
                windows(pictures, Grid.of(480, 270))  # made ready outside inference mode
                times, peak = timed(lambda w=windows: w(pictures, Grid.of(480, 270)), device)  # type: ignore[misc]
        except BackendError as reason:
            print(f"vggt4d {label} {precision} {way}: not measured: {reason}")
            continue
        base = times[0] if way == "torch" else base
        yield row("vggt4d", label, precision, way, times, frames, base, peak, None, 0)


@contextlib.contextmanager
def always_moving() -> Iterator[None]:
    """What stands out counts as moving, so that the second pass runs with random weights, too."""

    def confirmed(found: Candidates, against: Tensor) -> Tensor:
        finer = against.shape[1] // found.group.shape[1]
        return found.standing_out.repeat_interleave(finer, 1).repeat_interleave(finer, 2)

    with mock.patch.object(vggt_window, "confirmed", confirmed):
        yield


@contextlib.contextmanager
def true_flow(shift: npt.NDArray[np.float64]) -> Iterator[None]:
    """RAFT runs, and the flow of a video that only shifts is given in its place.

    Args:
        shift: (frames, 2) where the frame begins in what is filmed, in widths of a frame.
    """
    seen: dict[bytes, int] = {}
    run = RaftFlow.__call__

    def flow(
        self: RaftFlow, a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], guesses: Guesses = (None, None)
    ) -> tuple[FloatArray, FloatArray]:
        there, back = run(self, a, b, guesses)
        first, second = (seen.setdefault(picture.tobytes(), len(seen)) for picture in (a, b))
        moved = np.float32((shift[first] - shift[second]) * a.shape[1])
        return np.full_like(there, moved), np.full_like(back, -moved)

    with mock.patch.object(RaftFlow, "__call__", flow):
        yield


def end_to_end(small: bool, size: str, frames: int, runtime: str, device: torch.device, folder: Path) -> float:
    """Frames a second of a video from file to file, of its second half: by then the pipeline is full, if the video is
    longer than two windows and the lookahead."""
    from vs3r.engine.files import stabilize_file

    width, height = map(int, size.split("x"))
    weights_folder("raft-large").mkdir(parents=True, exist_ok=True)
    torch.save(Raft().state_dict(), weights_folder("raft-large") / "model.pt")
    texture = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (height + 64, width + 64, 3), np.uint8), (0, 0), 3
    )
    shift = (32 + 16 * np.sin(np.arange(frames)[:, None] * [0.9, 0.7])).astype(int)
    write_clip(
        folder / "in.mp4",
        (np.ascontiguousarray(texture[y : y + height, x : x + width]) for x, y in shift),
        Fraction(30),
    )
    window = min(END_TO_END_WINDOW, max(2, frames // 3))
    config = Config(
        flow=FlowConfig(backend="raft", raft_precision="fp16" if device.type == "cuda" else "fp32"),
        reconstruct=ReconstructConfig(backend="vggt4d"),
        vggt=VggtConfig(
            vggt_window_frames=window, vggt_overlap_frames=max(1, window // 4),
            vggt_device="auto" if device.type == "cuda" else "cpu", vggt_long_side=84 if small else 518,
        ),
        network=NetworkConfig(runtime=runtime),
        encode=EncodeConfig(preset="ultrafast"),
    )  # fmt: skip
    taken: list[float] = []

    def noted(self: WindowNetwork, frame: Frame) -> npt.NDArray[np.uint8]:
        taken.append(time.perf_counter())
        return picture(self, frame)

    picture = WindowNetwork.picture

    with (
        always_moving(),
        true_flow(shift / width),
        # Writing and reading its file would take longer than what is measured.
        mock.patch.object(reconstructor, "load_network", lambda found: vggt(small, found.vggt_precision, device)),
        mock.patch.object(WindowNetwork, "picture", noted),
    ):
        stabilize_file(folder / "in.mp4", folder / "out.mp4", config)
    # What goes in is what comes out once the pipeline is full; at the end it empties faster.
    begun = frames // 2
    return (frames - 1 - begun) / (taken[-1] - taken[begun])


def tell_bars(rows: Sequence[Row], fps: dict[str, float]) -> None:
    """The bars, for an H200-class GPU."""

    def tell(what: str, found: list[float], bar: float) -> None:
        best = max(found, default=None)
        state = "not measured" if best is None else f"{best:.2f}, {'reached' if best >= bar else 'missed'}"
        print(f"bar: {what} at least {bar:g}: {state}")

    whole = f"VGGT4D + RAFT + render at 1080p, windows of {END_TO_END_WINDOW}, frames a second"
    engines = [r.faster_than_torch for r in rows if r.model == "raft" and r.way.split()[0] in ("aoti", "tensorrt")]
    tell(whole, list(fps.values()), FPS_BAR)
    tell("RAFT's engine over PyTorch", [gain for gain in engines if gain is not None], ENGINE_BAR)
    tell("VGGT's share of the matrix rate", [r.share_of_matrix_rate for r in rows if r.share_of_matrix_rate], RATE_BAR)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=("raft", "vggt", "vggt4d"), default=["raft", "vggt", "vggt4d"])
    parser.add_argument("--sizes", nargs="+", default=["518x294", "960x540"], metavar="WxH", help="of RAFT")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["fp32", "fp16"], help="of RAFT")
    parser.add_argument("--windows", nargs="*", type=int, default=[8, 16, 32, 64], help="of VGGT, in frames")
    parser.add_argument("--side", type=int, default=518, help="longer side of VGGT's pictures, of 16:9")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--video", default="1920x1080", metavar="WxH", help="of the run from file to file; none: 0x0")
    parser.add_argument("--frames", type=int, default=240, help="of the same")
    parser.add_argument("--file-ways", nargs="+", choices=WAYS, help="of the same; all of --ways if not given")
    parser.add_argument("--small", action="store_true", help="VGGT at reduced width, to try the program out")
    parser.add_argument("--out", type=Path, help="write a CSV here")
    return parser.parse_args()


def networks(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Every network by itself."""
    if "raft" in options.models:
        torch.manual_seed(0)
        for size in options.sizes:
            width, height = map(int, size.split("x"))
            for precision in options.precisions:
                torch.compiler.reset()  # it keeps programs of but a few shapes
                network = Raft().eval().to(device, DTYPES[precision])
                task = Task(model="raft", network=network, example=example_inputs(width, height, device))
                yield from measure(task, size, precision, options.ways, frames=2, work=0, replay=True)
    precision = "bf16"
    rate = matrix_rate(precision, device)
    print(f"matrix rate in {precision}: {rate / 1e12:.2f} Tflop/s")
    for frames in options.windows:
        torch.compiler.reset()
        network_4d = vggt(options.small, precision, device)
        size_4d = vggt_window.size_of(16, 9, options.side, 14)
        if "vggt" in options.models:
            inputs, _ = window_inputs(network_4d, frames, size_4d)
            task = Task(model="vggt", network=Forward(network_4d, *size_4d).eval(), example=inputs)
            work = operations(options.small, frames, size_4d) / rate
            label = f"{size_4d[1]}x{size_4d[0]}x{frames}"
            yield from measure(task, label, precision, options.ways, frames=frames, work=work)
        if "vggt4d" in options.models:
            yield from whole_window(network_4d, frames, size_4d, precision, options.ways, device)


def main() -> None:
    options, device = parse(), default_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[Row] = []
    fps: dict[str, float] = {}

    def add(found: Row) -> None:
        rows.append(found)
        if options.out is not None:
            save(options.out, rows, about)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for found in networks(options, device):
            add(found)
        for way in (options.file_ways or options.ways) if options.video != "0x0" else ():
            try:
                fps[way] = end_to_end(options.small, options.video, options.frames, way, device, Path(folder))
            except BackendError as reason:
                print(f"file to file {options.video} {way}: not measured: {reason}")
                continue
            add(row("file", options.video, "bf16", way, [1e3 / fps[way]] * 3, 1, None, None, None, 0))
    tell_bars(rows, fps)


if __name__ == "__main__":
    main()
