"""RAFT as a flow estimator: padding, start, weights, and the confidence made of flow and flow back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.clips import Clip, write_clip
from tests.flow.raft_weights import some_weights
from vs3r.config import FlowConfig
from vs3r.engine import cli
from vs3r.engine.track_file import load_track
from vs3r.errors import BackendError, InputError, ShapeError
from vs3r.flow import make_flow
from vs3r.flow.learned import RaftFlow, padded_size
from vs3r.flow.raft import Raft
from vs3r.networks import Network
from vs3r.reconstruct.observe import FlowWindow, Grid


class Seen:
    """In RAFT's place: notes what it is given and returns its start, upsampled."""

    def __init__(self) -> None:
        self.prepared: list[tuple[str, tuple[int, ...]]] = []
        self.inputs: tuple[Tensor, ...] = ()

    def prepare(self, name: str, _network: nn.Module, example: tuple[Tensor, ...], /) -> Network:
        assert not any(value.is_inference() for value in example)
        assert not torch.is_inference_mode_enabled()
        self.prepared.append((name, tuple(example[0].shape)))
        return self.run

    def run(self, src: Tensor, dst: Tensor, start: Tensor) -> Tensor:
        self.inputs = (src, dst, start)
        return 8 * start.repeat_interleave(8, 2).repeat_interleave(8, 3)


def picture(width: int, height: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "padded"),
    [((50, 70), (128, 128)), ((130, 129), (136, 136)), ((480, 270), (480, 272)), ((128, 136), (128, 136))],
)
def test_padding_and_start(size: tuple[int, int], padded: tuple[int, int]) -> None:
    seen = Seen()
    flow = RaftFlow(Raft(iterations=1).eval(), seen.prepare)
    src, dst = picture(*size), picture(*size, seed=1)
    guess = np.full((size[1], size[0], 2), (4.0, -2.0), np.float32)
    there, back = flow(src, dst, (guess, None))
    assert padded_size(*size) == padded
    assert seen.prepared == [("raft", (2, 3, padded[1], padded[0]))]
    first, second, starts = seen.inputs
    assert starts.shape == (2, 2, padded[1] // 8, padded[0] // 8)
    # Pixels of an eighth of the size: the flow is an eighth as long; it comes back as it went in.
    torch.testing.assert_close(starts[0], torch.tensor([0.5, -0.25]).view(2, 1, 1).expand_as(starts[0]))
    assert not starts[1].any()
    np.testing.assert_allclose(there, guess)
    assert back.shape == there.shape and not back.any()
    for given, shown in ((first[0], src), (first[1], dst)):
        assert all(torch.equal(given[0], channel) for channel in given)
        np.testing.assert_allclose((given[0, : size[1], : size[0]] + 1) * 127.5, shown, atol=1e-4)
        assert torch.equal(given[0, :, -1], given[0, :, size[0] - 1])
    assert torch.equal(second, first.flip(0))
    flow(dst, src)
    assert len(seen.prepared) == 1
    assert not seen.inputs[2].any()


def test_sizes_that_differ() -> None:
    flow = RaftFlow(Raft(iterations=1).eval())
    with pytest.raises(ShapeError, match="expected two"):
        flow(picture(20, 16), picture(20, 17))
    with pytest.raises(ShapeError, match="guess"):
        flow(picture(20, 16), picture(20, 16), (None, np.zeros((16, 21, 2), np.float32)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_overflow_are_no_flow(value: float) -> None:
    """As in fp16 they may: they would pass for a film in which nothing is found again."""

    def run(src: Tensor, _dst: Tensor, _start: Tensor) -> Tensor:
        flow = torch.zeros(2, 2, *src.shape[2:])
        flow[1, 0, 20, 30] = value
        return flow

    flow = RaftFlow(Raft(iterations=1).eval().half(), lambda *_: run)
    with pytest.raises(BackendError, match=r"^RAFT gave .*not finite in float16; use --raft-precision fp32; if"):
        flow(picture(64, 48), picture(64, 48))


def test_no_memory_is_one_line() -> None:
    def full(*_: object) -> Network:
        raise torch.cuda.OutOfMemoryError("a long story")

    with pytest.raises(BackendError, match="not enough GPU memory for RAFT at 20x16; use fewer"):
        RaftFlow(Raft(iterations=1).eval(), full)(picture(20, 16), picture(20, 16))


@pytest.mark.parametrize("agrees", [True, False])
def test_confidence_is_the_agreement_of_flow_and_flow_back(agrees: bool) -> None:
    """Weights near 1 where the flow back undoes the flow, near 0 where it is 4 px off."""

    def shifts(*_: object) -> Network:
        def run(_src: Tensor, _dst: Tensor, start: Tensor) -> Tensor:
            height, width = 8 * start.shape[2], 8 * start.shape[3]
            flows = torch.tensor([[3.0, 0.0], [-3.0 if agrees else 1.0, 0.0]])
            return flows.view(2, 2, 1, 1).expand(2, 2, height, width)

        return run

    window = FlowWindow(RaftFlow(Raft(iterations=1).eval(), shifts), Grid.of(160, 128))
    window.push(0, picture(160, 128))
    forward, backward = window.push(1, picture(160, 128, seed=1))[:2]
    inner = forward.fine_weight[4:-4, 4:-4]
    assert (inner > 0.99).all() if agrees else (inner < 0.01).all()
    assert forward.flow[5, 5, 0] == pytest.approx(3.0)
    assert backward.flow[5, 5, 0] == pytest.approx(-3.0 if agrees else 1.0)


@pytest.fixture
def weights_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache with RAFT's weights in it: random ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "vs3r" / "weights" / "raft-large"
    folder.mkdir(parents=True)
    torch.save(some_weights(Raft()), folder / "raft.pth")
    return folder


def test_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"expected the weights raft-large.*vs3r weights fetch raft-large"):
        make_flow(FlowConfig(backend="raft"))


def test_settings_reach_the_network(weights_here: Path) -> None:
    seen: list[nn.Module] = []

    def prepare(_name: str, network: nn.Module, _example: tuple[Tensor, ...], /) -> Network:
        seen.append(network)
        return lambda *inputs: inputs[0][:, :2].float()

    other = FlowConfig(backend="raft", raft_iterations=5, raft_precision="bf16")
    for config in (other, FlowConfig(backend="raft")):
        make_flow(config, prepare)(picture(20, 16), picture(20, 16))
    first, second = seen
    assert isinstance(first, Raft) and isinstance(second, Raft)
    assert (first.iterations, first.fnet.conv1.weight.dtype) == (5, torch.bfloat16)
    assert (second.iterations, second.fnet.conv1.weight.dtype) == (12, torch.float32)
    assert not first.training
    (weights_here / "raft.pth").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read"):
        make_flow(other)


@pytest.mark.usefixtures("weights_here")
def test_analyze_with_raft(tmp_path: Path) -> None:
    source, track = tmp_path / "in.mp4", tmp_path / "out.vs3r"
    write_clip(source, Clip(frames=3))
    options = ["--flow", "raft", "--raft-iterations", "1", "--analysis-pixels", "4096"]
    assert cli.run(["analyze", str(source), "-o", str(track), "--quiet", *options]) == 0
    assert len(load_track(str(track))) == 3
