"""Time of the operators: python -m benchmarks.kernels [--out docs/benchmarks/kernels_gpu.csv]

With an NVIDIA GPU, at 1920x1080: median, 20th and 80th percentile by device events with the L2 cache cleared, bytes
that must move, and the bandwidth reached as a share of that of a device-to-device copy; the Triton kernels, the PyTorch
reference, torch.compile of it, and PyTorch3D where it is installed; then whether the bars are met. The Triton kernels
are timed twice: as called, and replayed from a CUDA graph, where Python's share of a call (longer than a kernel that
moves 40 MB) does not count. Rows are written as they are measured. Without a GPU, or with --cpu: the CPU path on one
thread at the sizes that the pipeline uses, beside what the pipeline itself does for that work. --rehearse goes through
the GPU's table on the CPU, at a tiny size and with Triton interpreted: it shows that the script runs, its times mean
nothing.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.util
import itertools
import math
import os
import platform
import statistics
import subprocess
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.compose import Layers, PlaneLayout, compose_layers, doubled
from vs3r.kernels.compose.reference import compose_layers_reference
from vs3r.kernels.rigid_flow import rigid_flow_residual
from vs3r.kernels.rigid_flow.reference import rigid_flow_residual_reference
from vs3r.kernels.splat import Alpha, DepthPoints, Nearest, splat_points
from vs3r.kernels.splat.reference import splat_points_reference
from vs3r.render.device import DeviceDrawer
from vs3r.render.layers import FILL_MARGIN_PX, OWN_MARGIN_PX, Layer, feather_px, inside_px
from vs3r.render.nodes import make_grid
from vs3r.render.planes import CpuDrawer, PlaneDrawer, empty_planes
from vs3r.render.warp import BackwardMap, SourceFrame
from vs3r.types import FloatArray, Frame, FrameGeometry, PictureFormat

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    operator: str
    """Name and what was given."""
    by: str
    """Who computed; "graph" is what was captured in a CUDA graph and is replayed."""
    size: str
    """Of the pictures."""
    median_ms: float
    """Of the calls."""
    p20_ms: float
    """20th percentile."""
    p80_ms: float
    """80th percentile."""
    mib: float
    """Mebibytes that must be read and written at least once."""
    share_of_copy: float | None
    """Of the bandwidth of a device-to-device copy. None on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Inputs of all operators: a walk past a rough wall."""

    depth: DepthPoints
    """Eight source frames with colours."""
    view: View
    """Between them."""
    flow: torch.Tensor
    """(S, H, W, 2) observed."""
    moved: torch.Tensor
    """(S, 4, 4) dst_from_src of that flow."""


def make_scene(width: int, height: int, *, frames: int, device: str) -> Scene:
    random = torch.Generator().manual_seed(0)
    K = torch.tensor([[0.87 * width, 0, width / 2], [0, 0.87 * width, height / 2], [0, 0, 1]])
    turns, moves = 0.01 * torch.randn(frames, 3, generator=random), 0.02 * torch.randn(frames, 3, generator=random)
    columns = torch.linspace(0.8, 1.2, width).expand(frames, height, width)
    wall = columns + 0.005 * torch.rand(frames, height, width, generator=random)
    depth = DepthPoints(
        inv_depth=wall.to(device),
        cameras=SourceCameras(
            K=K.expand(frames, 3, 3).contiguous().to(device), cam_from_world=rigid(so3_exp(turns), moves).to(device)
        ),
        attributes=torch.randint(0, 256, (frames, height, width, 3), generator=random).to(device, torch.uint8),
        valid=torch.ones(frames, height, width, dtype=torch.bool, device=device),
        dynamic=torch.zeros(frames, height, width, dtype=torch.bool, device=device),
    )
    view = View(K=K.to(device), cam_from_world=torch.eye(4, device=device), width=width, height=height)
    flow = 3 * torch.randn(frames, height, width, 2, generator=random).to(device)
    return Scene(depth=depth, view=view, flow=flow, moved=depth.cameras.cam_from_world)


def bytes_of(*parts: Any) -> int:
    """Of all tensors in results and arguments."""
    total = 0
    for part in parts:
        if isinstance(part, torch.Tensor):
            total += part.numel() * part.element_size()
        elif hasattr(part, "__dataclass_fields__"):
            total += bytes_of(*(getattr(part, spec.name) for spec in fields(part)))
    return total


def gpu_times(call: Callable[[], Any]) -> list[float]:
    """Median, p20 and p80 in milliseconds, by device events, the L2 cache cleared before each call."""
    from triton.testing import do_bench

    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    one_ms = 1e3 * (time.perf_counter() - begin)
    return list(do_bench(call, warmup=100, rep=max(500, math.ceil(5 * one_ms)), quantiles=[0.5, 0.2, 0.8]))


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call's work on the GPU, to be replayed without the Python that led to it."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def cpu_times(call: Callable[[], Any]) -> list[float]:
    """Median, p20 and p80 of processor time in milliseconds: other work on the machine counts less than on a clock."""
    call()
    spent: list[float] = []
    begin = time.perf_counter()
    while len(spent) < 5 or (len(spent) < 40 and time.perf_counter() - begin < 4):
        start = time.process_time()
        call()
        spent.append((time.process_time() - start) * 1e3)
    cuts = statistics.quantiles(spent, n=5)
    return [statistics.median(spent), cuts[0], cuts[3]]


def row(operator: str, by: str, size: str, times: list[float], moved: int, copy: float | None = None) -> Row:
    share = None if copy is None else moved / (times[0] / 1e3) / copy
    return Row(
        operator=operator, by=by, size=size, mib=moved / 2**20, share_of_copy=share,
        median_ms=times[0], p20_ms=times[1], p80_ms=times[2],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Device:
    """What the GPU's table is measured on."""

    name: str
    """"cuda", or "cpu" to rehearse."""
    times: Callable[[Callable[[], Any]], list[float]]
    """Median, p20 and p80."""
    capture: Callable[[Callable[[], Any]], Callable[[], Any]]
    """See captured()."""
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]
    """torch.compile."""
    copied: int
    """Bytes of the copy that bandwidth is compared with."""


GPU = Device(name="cuda", times=gpu_times, capture=captured, compile=torch.compile, copied=GIB)
REHEARSAL = Device(
    name="cpu",
    times=lambda call: [1e3 * min(timeit.repeat(call, number=1, repeat=1))] * 3,
    capture=lambda call: call,
    compile=lambda function: function,
    copied=2**20,
)


def measure_gpu(width: int, height: int, device: Device) -> Iterator[Row]:
    scene, size = make_scene(width, height, frames=8, device=device.name), f"{width}x{height}"
    block = torch.empty(device.copied, dtype=torch.uint8, device=device.name)
    times = device.times(functools.partial(torch.empty_like(block).copy_, block))
    copy = 2 * device.copied / (times[0] / 1e3)
    yield row("copy", "PyTorch", f"{device.copied / 2**20:.0f} MiB", times, 2 * device.copied, copy)
    del block

    def measured(operator: str, by: str, call: Callable[[], Any], moved: int) -> Row:
        return row(operator, by, size, device.times(call), moved, copy)

    def by_triton(operator: str, call: Callable[..., Any], moved: int) -> Iterator[Row]:
        kernel = functools.partial(call, backend="triton")
        # What the machine can do for as few bytes: launch and start-up count, too.
        block = torch.empty(moved // 2, dtype=torch.uint8, device=device.name)
        same = functools.partial(torch.empty_like(block).copy_, block)
        yield measured(operator, "copy of as many bytes, graph", device.capture(same), moved)
        yield measured(operator, "triton graph", device.capture(kernel), moved)
        yield measured(operator, "triton", kernel, moved)

    flows = [rigid_flow_calls(scene, count, device) for count in (1, 8)]
    for name, call, compiled, moved in flows:
        yield from by_triton(name, call, moved)
        yield measured(name, "reference", functools.partial(call, backend="reference"), moved)
        yield measured(name, "torch.compile", compiled, moved)
    splats = {
        f"splat_points {name}": functools.partial(splat_points, scene.depth, scene.view, blending=blending)
        for name, blending in (("nearest", Nearest()), ("alpha", Alpha()))
    }
    for name, splat in splats.items():
        yield from by_triton(name, splat, bytes_of(scene.depth, splat(backend="triton")))
    nodes = make_nodes(width, height)
    for pixels, chroma in ((torch.uint8, 0), (torch.uint16, 0), (torch.float16, 0), (torch.uint8, 2)):
        layers, planes = on_device(nodes, pixels, chroma, device.name)
        feather = feather_px((width, height))
        compose = functools.partial(compose_layers, layers, planes, feather_px=feather, peak=255)
        # The frame itself is read whole, doubled; of its neighbours only what fills.
        moved = bytes_of(layers.pictures[0], compose(backend="triton"), layers.x, layers.y, layers.opacity, layers.keep)
        name = f"compose_layers {str(pixels).removeprefix('torch.')}{' 4:2:0' * bool(chroma)}"
        yield from by_triton(name, compose, moved)
        yield measured(name, "reference", functools.partial(compose, backend="reference"), moved)
        compiled = functools.partial(device.compile(compose_layers_reference), layers, planes, feather, 255.0)
        yield measured(name, "torch.compile", compiled, moved)
        double = functools.partial(doubled, layers.pictures[1], planes)
        name, moved = name.replace("compose_layers", "doubled"), bytes_of(*layers.pictures[:2])
        yield measured(name, "PyTorch graph", device.capture(double), moved)
        yield measured(name, "PyTorch", double, moved)
    # Last, because it needs most memory and time.
    name, splat = next(iter(splats.items()))
    moved = bytes_of(scene.depth, splat(backend="triton"))
    yield measured(name, "reference", functools.partial(splat, backend="reference"), moved)
    compiled = functools.partial(device.compile(splat_points_reference), scene.depth, scene.view, Nearest())
    yield measured(name, "torch.compile", compiled, moved)
    if importlib.util.find_spec("pytorch3d") is not None:
        yield measured("splat_points alpha", "PyTorch3D", pytorch3d(scene), moved)
    # After all else: PyTorch refuses to capture some of its functions, and may not go on afterwards.
    for name, _, compiled, moved in flows:
        yield measured(name, "torch.compile graph", device.capture(compiled), moved)


def rigid_flow_calls(
    scene: Scene, count: int, device: Device
) -> tuple[str, Callable[..., Any], Callable[[], Any], int]:
    """For a number of frame pairs at once: name, the operator, the compiled reference, bytes that must move."""
    rho, K, moved_by = scene.depth.inv_depth[:count], scene.depth.cameras.K[:count], scene.moved[:count]
    flow, tau = scene.flow[:count], torch.full((count,), 0.5, device=device.name)
    call = functools.partial(rigid_flow_residual, rho, flow, K_src=K, K_dst=K, dst_from_src=moved_by, tau=tau)
    compiled = functools.partial(
        device.compile(rigid_flow_residual_reference), rho, flow, K, K, moved_by, tau, None, False
    )
    moved = bytes_of(rho, flow, call(backend="triton"))
    return f"rigid_flow_residual, {count} pair{'s' * (count > 1)}", call, compiled, moved


def bars(rows: Sequence[Row]) -> list[str]:
    """What an H200-class GPU has to reach at 1920x1080, and what was reached, of what was measured."""
    found = {(r.operator, r.by): r for r in rows}
    told = []

    def tell(bar: str, reached: str, met: bool) -> None:
        told.append(f"{'met   ' if met else 'MISSED'}  {bar}: {reached}")

    for operator, least in [
        *((f"rigid_flow_residual, {pairs}", 0.8) for pairs in ("1 pair", "8 pairs")),
        *((f"compose_layers {pixels}", 0.6) for pixels in ("uint8", "uint16", "float16")),
    ]:
        if (operator, "triton graph") not in found:
            continue
        ours, same = found[operator, "triton graph"], found[operator, "copy of as many bytes, graph"]
        share = ours.share_of_copy or 0.0
        reached = f"{share:.0%}; {same.median_ms / ours.median_ms:.0%} of that of a copy of as many bytes"
        tell(f"{operator}, at least {least:.0%} of copy bandwidth", reached, share >= least)
    for pairs, how in itertools.product(("1 pair", "8 pairs"), ("", " graph")):
        operator = f"rigid_flow_residual, {pairs}"
        if (operator, f"torch.compile{how}") in found:
            times = found[operator, f"torch.compile{how}"].median_ms / found[operator, f"triton{how}"].median_ms
            called = "both from graphs" if how else "both as called"
            tell(f"{operator}, 5 times as fast as torch.compile, {called}", f"{times:.1f} times", times >= 5)
    if ("splat_points nearest", "triton") in found:
        took = found["splat_points nearest", "triton"].median_ms
        tell("splat_points nearest of 8 frames under 2 ms, as called", f"{took:.3f} ms", took < 2)
    return told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nodes:
    """A frame that turned by two degrees and moved, and three neighbours that fill what it does not show."""

    format: PictureFormat
    """Of the pictures: 8 bits, 4:2:0."""
    x: FloatArray
    """(4, R, C) where to look, per layer and node."""
    y: FloatArray
    """(4, R, C) likewise, down."""
    opacity: FloatArray
    """(4, R, C) all 1."""
    keep: FloatArray
    """(R, C) see Canvas."""


def make_nodes(width: int, height: int) -> Nodes:
    fmt = PictureFormat(
        pix_fmt="yuv420p", width=width, height=height, bit_depth=8, chroma_shift=(1, 1), num_planes=3, is_rgb=False
    )
    at = make_grid(fmt).points() - (width / 2, height / 2)
    x, y = (np.empty((4, *at.shape[:2]), np.float32) for _ in range(2))
    for number, (turn, right, down) in enumerate(((2, 0.02, 0.01), (-1, -0.03, 0), (0, 0.01, -0.04), (3, 0, 0.05))):
        c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        x[number] = c * at[..., 0] - s * at[..., 1] + (0.5 + right) * width
        y[number] = s * at[..., 0] + c * at[..., 1] + (0.5 + down) * height
    keep = np.clip(inside_px(x[0], y[0], (width, height)) / feather_px((width, height)) - 1, 0, 1)
    return Nodes(format=fmt, x=x, y=y, opacity=np.ones_like(x), keep=keep)


def on_device(nodes: Nodes, dtype: torch.dtype, chroma: int, device: str) -> tuple[Layers, list[PlaneLayout]]:
    """Layers of noise, of luma and a number of planes at half its size."""
    fmt = nodes.format
    cell = make_grid(fmt).cell_px
    luma = PlaneLayout(rows=fmt.height, columns=fmt.width, step_y=cell, step_x=cell)
    rows, columns = fmt.plane_shape(1)
    half = PlaneLayout(rows=rows, columns=columns, step_y=cell // 2, step_x=cell // 2, scale_y=2, scale_x=2, empty=128)
    planes = [luma, *[half] * chroma]
    random, size = torch.Generator().manual_seed(0), sum(plane.size for plane in planes)
    own, *others = (torch.randint(0, 256, (size,), generator=random).to(dtype).to(device) for _ in nodes.x)
    x, y, opacity, keep = (torch.from_numpy(f).to(device) for f in (nodes.x, nodes.y, nodes.opacity, nodes.keep))
    margin_px = torch.tensor([OWN_MARGIN_PX, *[FILL_MARGIN_PX] * 3], device=device)
    pictures = doubled(own, planes), *others
    layers = Layers(pictures=pictures, x=x, y=y, opacity=opacity, margin_px=margin_px, keep=keep)
    return layers, planes


def in_renderer(nodes: Nodes) -> list[Layer]:
    """The same as the renderer has it."""
    rng = np.random.default_rng(0)
    layers = []
    for number in range(4):
        planes = tuple(rng.integers(0, 256, nodes.format.plane_shape(n), np.uint8) for n in range(3))
        geometry = FrameGeometry(
            index=number, pts_s=0.0, segment=0, K=np.eye(3), cam_from_world=np.eye(4),
            inv_depth=np.ones((1, 1), np.float32), dynamic=np.zeros((1, 1), np.float32),
        )  # fmt: skip
        frame = Frame(format=nodes.format, planes=planes, pts=number, time_base=Fraction(1, 30))
        opacity = nodes.opacity[number]
        at = BackwardMap(x=nodes.x[number], y=nodes.y[number], front=opacity, settled=opacity)
        offsets = tuple(np.zeros((3, *opacity.shape), np.float32)) if number else ()
        layers.append(
            Layer(
                source=SourceFrame(frame=frame, geometry=geometry), map=at, opacity=opacity, offsets=offsets,
                margin_px=FILL_MARGIN_PX if number else OWN_MARGIN_PX,
            )
        )  # fmt: skip
    return layers


def pytorch3d(scene: Scene) -> Callable[[], Any]:
    """Rasterization and alpha compositing of the same points, given in space, by PyTorch3D."""
    from pytorch3d.renderer import AlphaCompositor, PointsRasterizationSettings, PointsRasterizer, PointsRenderer
    from pytorch3d.structures import Pointclouds
    from pytorch3d.utils import cameras_from_opencv_projection

    depth, view = scene.depth, scene.view
    S, H, W = depth.inv_depth.shape
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).to(depth.inv_depth).view(1, H * W, 3)
    in_source = pixels @ torch.linalg.inv(depth.cameras.K).mT / depth.inv_depth.view(S, H * W, 1)
    world_from_cam = torch.linalg.inv(depth.cameras.cam_from_world)
    xyz = (in_source @ world_from_cam[:, :3, :3].mT + world_from_cam[:, None, :3, 3]).view(1, -1, 3)
    assert depth.attributes is not None
    cloud = Pointclouds(points=xyz, features=depth.attributes.float().view(1, -1, 3))
    T = view.cam_from_world[None]
    cameras = cameras_from_opencv_projection(T[:, :3, :3], T[:, :3, 3], view.K[None], torch.tensor([[H, W]]).to(T))
    settings = PointsRasterizationSettings(image_size=(H, W), radius=0.012, points_per_pixel=12)
    renderer = PointsRenderer(PointsRasterizer(cameras=cameras, raster_settings=settings), AlphaCompositor())
    return functools.partial(renderer, cloud)


def measure_cpu() -> Iterator[Row]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    small = make_scene(480, 270, frames=8, device="cpu")
    rho = small.depth.inv_depth[:1].expand(6, 270, 480)[:, ::3, ::3].contiguous()
    flow = small.flow[:1].expand(6, 270, 480, 2)[:, ::3, ::3].contiguous()
    K, moved = small.depth.cameras.K[:6], small.depth.cameras.cam_from_world[:6]
    cells = functools.partial(rigid_flow_residual, rho, flow, K_src=K, K_dst=K, dst_from_src=moved, tau=0.5)
    yield row("rigid_flow_residual, 6 pairs", "reference", "160x90", cpu_times(cells), bytes_of(rho, flow, cells()))
    one, lens = small.depth.inv_depth[:1], K[:1]
    whole = functools.partial(
        rigid_flow_residual, one, small.flow[:1], K_src=lens, K_dst=lens, dst_from_src=moved[:1], tau=0.5
    )
    yield row("rigid_flow_residual", "reference", "480x270", cpu_times(whole), bytes_of(small.flow[:1], whole()))
    splat = functools.partial(splat_points, small.depth, small.view)
    yield row("splat_points nearest, 8 frames", "reference", "480x270", cpu_times(splat), bytes_of(small.depth))
    nodes = make_nodes(1920, 1080)
    layers = in_renderer(nodes)
    size = 2 * sum(plane.nbytes for plane in layers[0].source.frame.planes)
    drawers: dict[str, PlaneDrawer] = {
        "reference": DeviceDrawer(nodes.format, torch.device("cpu"), backend="reference"),
        "vs3r.render": CpuDrawer(nodes.format),
    }
    for by, drawer in drawers.items():
        draw = functools.partial(drawer.draw, layers, nodes.keep, empty_planes(nodes.format))
        yield row("compose_layers uint8 4:2:0, 4 layers", by, "1920x1080", cpu_times(draw), size)


def machine() -> dict[str, str]:
    """What the figures were made with."""
    revision = ["git", "describe", "--always", "--dirty"]
    found = {
        "commit": subprocess.run(revision, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        import triton

        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        found |= {"gpu": torch.cuda.get_device_name(), "driver": driver, "triton": triton.__version__}
    return found


def show(r: Row) -> None:
    share = "" if r.share_of_copy is None else f"  {100 * r.share_of_copy:5.1f} % of copy"
    spread = f"{r.median_ms:9.3f} ms ({r.p20_ms:.3f} to {r.p80_ms:.3f})"
    print(f"{r.operator:34s} {r.by:28s} {r.size:10s} {spread}  {r.mib:8.1f} MiB{share}", flush=True)


def save(path: Path, rows: Sequence[Any], about: dict[str, str]) -> None:
    """Write the table so far: rows of one dataclass, at least one, and what they were made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(spec.name for spec in fields(rows[0])), *about])
        writer.writeheader()
        writer.writerows({**asdict(r), **about} for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="measure the CPU path also where there is a GPU")
    parser.add_argument("--rehearse", action="store_true", help="go through the GPU's table on the CPU, tiny")
    parser.add_argument("--size", default="1920x1080", help="of the pictures on a GPU")
    parser.add_argument("--out", type=Path, help="write a CSV here")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not arguments.cpu
    if arguments.rehearse:
        # Before Triton is imported: that is when it decides.
        os.environ["TRITON_INTERPRET"] = "1"
        measuring = measure_gpu(6, 2, REHEARSAL)
    else:
        width, height = map(int, arguments.size.split("x"))
        measuring = measure_gpu(width, height, GPU) if on_gpu else measure_cpu()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[Row] = []
    try:
        for r in measuring:
            rows.append(r)
            show(r)
            if arguments.out is not None and not arguments.rehearse:
                save(arguments.out, rows, about)
    finally:
        if on_gpu or arguments.rehearse:
            print("\n".join(bars(rows)))


if __name__ == "__main__":
    main()
