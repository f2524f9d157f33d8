"""From frames to the network's pictures, its weights, what can go wrong, and a whole clip with a tiny checkpoint."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.clips import Clip, write_clip
from tests.reconstruct.vggt.common import SMALL, pictures, seeded_state, small
from vs3r.config import Config, ReconstructConfig, VggtConfig
from vs3r.engine import cli
from vs3r.engine.track_file import load_track
from vs3r.errors import BackendError, InputError
from vs3r.networks import DTYPES, Network
from vs3r.reconstruct import delay_frames, make_reconstructor
from vs3r.reconstruct.observe import Grid
from vs3r.reconstruct.vggt import window as module
from vs3r.reconstruct.vggt.chain import FrameEstimate
from vs3r.reconstruct.vggt.mask import clusters, otsu_thresholds, upper_threshold
from vs3r.reconstruct.vggt.model import Vggt, lower_precision
from vs3r.reconstruct.vggt.window import WindowNetwork, frames_that_fit, load_network, network_picture, network_size
from vs3r.types import Frame, PictureFormat
from vs3r.weights import weights_folder

CPU = VggtConfig(vggt_device="cpu", vggt_window_frames=4, vggt_overlap_frames=2, vggt_long_side=84)


def fmt(width: int, height: int, aspect: Fraction = Fraction(1)) -> PictureFormat:
    return PictureFormat(
        pix_fmt="gbrp", width=width, height=height, bit_depth=8, chroma_shift=(0, 0), num_planes=3, is_rgb=True,
        sample_aspect=aspect,
    )  # fmt: skip


def test_sizes() -> None:
    """1920x1080 gives 37x21 patches, as published; the longer side counts."""
    assert network_size(fmt(1920, 1080), 518, 14) == (294, 518)
    assert network_size(fmt(1080, 1920), 518, 14) == (518, 294)
    assert network_size(fmt(1440, 1080, Fraction(4, 3)), 518, 14) == (294, 518)
    assert network_size(fmt(4000, 16), 518, 14) == (14, 518)


def test_pictures_are_red_green_blue() -> None:
    rgb = np.zeros((108, 192, 3), np.uint8)
    rgb[:, :96, 0], rgb[:54, :, 1], rgb[:, :, 2] = 200, 100, 30
    planes = tuple(np.ascontiguousarray(rgb[..., k]) for k in (1, 2, 0))
    frame = Frame(format=fmt(192, 108), planes=planes, pts=0, time_base=Fraction(1, 30))
    small_picture = network_picture(frame, (42, 84))
    assert small_picture.shape == (42, 84, 3) and small_picture.dtype == np.uint8
    np.testing.assert_array_equal(small_picture[[2, 2, -3, -3], [2, -3, 2, -3]], rgb[[0, 0, -1, -1], [0, -1, 0, -1]])


def estimates(count: int, config: VggtConfig = CPU) -> list[FrameEstimate]:
    rgb = [np.asarray(255 * p.permute(1, 2, 0).numpy(), np.uint8) for p in pictures(count, 42, 84)]
    network = WindowNetwork(config, fmt(84, 42), small())
    return network(rgb, Grid.of(120, 60))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_windows_of_any_length(count: int) -> None:
    found, again = estimates(count), estimates(count)
    assert len(found) == count
    for one, other in zip(found, again, strict=True):
        R = one.cam_from_world[:3, :3]
        torch.testing.assert_close(R @ R.T, torch.eye(3).double(), atol=1e-12, rtol=0)
        assert one.inv_depth.shape == one.trust.shape == (5, 10) and one.dynamic.shape == (10, 20)
        assert bool((one.inv_depth > 0).all()) and bool(one.log_focal.isfinite())
        for part in ("cam_from_world", "log_focal", "inv_depth", "trust", "dynamic"):
            assert torch.equal(getattr(one, part), getattr(other, part)), part


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision: str) -> None:
    """The same cameras and depth as on the CPU, and the same bits each time."""
    rgb = [np.asarray(255 * p.permute(1, 2, 0).numpy(), np.uint8) for p in pictures(5, 42, 84)]
    on_gpu = small()
    lower_precision(on_gpu, DTYPES[precision])
    network = WindowNetwork(CPU, fmt(84, 42), on_gpu.cuda())
    found, again, want = (network(rgb, Grid.of(120, 60)), network(rgb, Grid.of(120, 60)), estimates(5))
    for one, other, cpu in zip(found, again, want, strict=True):
        assert torch.equal(one.cam_from_world, other.cam_from_world) and torch.equal(one.inv_depth, other.inv_depth)
        error = float((one.inv_depth - cpu.inv_depth).norm() / cpu.inv_depth.norm())
        assert error < (1e-3 if precision == "fp32" else 0.05)


def test_only_full_windows_are_prepared_and_once() -> None:
    """An engine has one length; what is shorter, at most one window of a scene, runs as it is."""
    seen: list[tuple[str, list[tuple[int, ...]]]] = []

    def prepare(name: str, network: nn.Module, example: tuple[torch.Tensor, ...], /) -> Network:
        assert not any(value.is_inference() for value in example) and not torch.is_inference_mode_enabled()
        seen.append((name, [tuple(value.shape) for value in example]))
        return network

    network = WindowNetwork(CPU, fmt(84, 42), small(), prepare)
    rgb = [np.asarray(255 * p.permute(1, 2, 0).numpy(), np.uint8) for p in pictures(4, 42, 84)]
    for length in (3, 4, 4):
        network(rgb[:length], Grid.of(120, 60))
    assert seen == [("vggt4d", [(4, 3, 42, 84)]), ("vggt4d-second", [(4, 18, 64), (4, 18)])]


def test_no_memory_says_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Network:
        raise torch.cuda.OutOfMemoryError("a long story")

    rgb = [np.zeros((42, 84, 3), np.uint8)] * 4
    network = WindowNetwork(CPU, fmt(84, 42), small(), full)
    for memory, told in (
        (10**12, "about 3 would fit: use --vggt-window-frames 3"),
        (10**6, "smaller --vggt-long-side"),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, memory=memory: (0, memory))
        with pytest.raises(BackendError, match=told):
            network(rgb, Grid.of(120, 60))
    # The advice must be one that can be followed.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 10**12))
    config = replace(CPU, vggt_overlap_frames=3)
    with pytest.raises(BackendError, match="use --vggt-window-frames 3 --vggt-overlap-frames 1"):
        WindowNetwork(config, fmt(84, 42), small(), full)(rgb, Grid.of(120, 60))
    with torch.device("meta"):
        full_size = Vggt()
    fits = [frames_that_fit(full_size, (294, 518), gib << 30) for gib in (4, 16, 24, 80)]
    assert fits[0] == 0 and 16 <= fits[1] < fits[2] < fits[3]


def test_numbers_that_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    network = WindowNetwork(CPU, fmt(84, 42), small())
    bad = torch.full((2, 9), float("nan"))
    monkeypatch.setattr(network, "_runners", lambda _: [lambda _: (bad,) * 5, None])
    with pytest.raises(BackendError, match="not finite in bf16; use --vggt-precision fp32"):
        network([np.zeros((42, 84, 3), np.uint8)] * 2, Grid.of(120, 60))


def test_numbers_that_overflow_in_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = WindowNetwork(CPU, fmt(84, 42), small())
    bad = torch.full((4, 9), float("nan"))
    monkeypatch.setattr(network, "_runners", lambda _: [network._passes[0], lambda *_: (bad, bad)])
    monkeypatch.setattr("vs3r.reconstruct.vggt.window.confirmed", lambda found, _: torch.ones_like(found.standing_out))
    with pytest.raises(BackendError, match="not finite in bf16; use --vggt-precision fp32"):
        network([np.zeros((42, 84, 3), np.uint8)] * 4, Grid.of(120, 60))


def test_settings() -> None:
    with pytest.raises(InputError, match="vggt_overlap_frames: expected fewer than vggt_window_frames"):
        VggtConfig(vggt_window_frames=8, vggt_overlap_frames=8)
    assert delay_frames(Config(reconstruct=ReconstructConfig(backend="vggt4d"))) == 32 + 24 + delay_frames(Config())


def test_groups_and_thresholds() -> None:
    centres = 10 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(200) % 5
    points = centres[truth] + 0.1 * torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    labels = clusters(points, 5)
    assert torch.equal(labels, clusters(points, 5))
    assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 5
    assert len(set(clusters(points[:3]).tolist())) == 3
    values = np.concatenate([np.random.default_rng(0).normal(m, 0.02, 300) for m in (0.1, 0.4, 0.9)])
    low, high = otsu_thresholds(values, 3)
    assert 0.16 < low < 0.34 and 0.46 < high < 0.84
    assert 0.46 < upper_threshold(values) < 0.84
    assert upper_threshold(np.full(10, 0.5)) == float("inf")


@pytest.fixture
def tiny_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache with a checkpoint of the real class, at reduced width, in the place of VGGT-1B."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = weights_folder("vggt-1b")
    folder.mkdir(parents=True)
    torch.save(seeded_state(Vggt(SMALL)), folder / "model.pt")
    monkeypatch.setattr(module, "Vggt", lambda: Vggt(SMALL))
    return folder


def test_weights(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    network = load_network(CPU)
    assert not network.training and network.aggregator.camera_token.device.type == "cpu"
    assert network.aggregator.get_parameter("frame_blocks.0.mlp.fc1.weight").dtype == torch.bfloat16
    torch.testing.assert_close(
        network.camera_head.token_norm.bias, seeded_state(network)["camera_head.token_norm.bias"]
    )
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="expected an NVIDIA GPU, PyTorch sees none; use --reconstruct flow-ba"):
            load_network(VggtConfig())
    torch.save({"something.else": torch.zeros(2)}, tiny_checkpoint / "model.pt")
    with pytest.raises(InputError, match=r"no checkpoint of VGGT: aggregator\.camera_token is missing"):
        load_network(CPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_checkpoint))
    with pytest.raises(InputError, match="fetch them with: vs3r weights fetch vggt-1b"):
        make_reconstructor(Config(reconstruct=ReconstructConfig(backend="vggt4d"), vggt=CPU), fmt(84, 42))


@pytest.mark.usefixtures("tiny_checkpoint")
def test_stabilize_and_analyze(tmp_path: Path) -> None:
    """From file to file. A network that knows nothing does no harm: the video is that of the flow alone."""
    source = tmp_path / "in.mp4"
    write_clip(source, Clip(frames=7, width=160, height=100))
    options = [
        "--vggt-device",
        "cpu",
        "--vggt-window-frames",
        "4",
        "--vggt-overlap-frames",
        "2",
        "--vggt-long-side",
        "84",
    ]
    options += ["--analysis-pixels", "4096", "--reconstruct", "vggt4d", "--quiet"]
    assert cli.run(["stabilize", str(source), str(tmp_path / "out.mkv"), *options]) == 0
    assert (tmp_path / "out.mkv").stat().st_size > 1000
    for name, more in (("vggt", options), ("flow", ["--analysis-pixels", "4096", "--quiet"])):
        assert cli.run(["analyze", str(source), "-o", str(tmp_path / f"{name}.vs3r"), *more]) == 0
    found, plain = (load_track(str(tmp_path / f"{name}.vs3r")) for name in ("vggt", "flow"))
    assert len(found) == 7
    np.testing.assert_allclose(found.cam_from_world, plain.cam_from_world, atol=0.02)
