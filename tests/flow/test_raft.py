"""RAFT-Large: numbers of the two public implementations, checkpoints of both, the two lookups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.flow.raft_weights import some_pictures, some_weights, torchvision_names
from vs3r.errors import InputError
from vs3r.flow.raft import LEVELS, PARAMETERS, RADIUS, AllPairs, OnDemand, Raft, load_raft
from vs3r.networks import compiled_parts

# Flow at (y, x) after 3 iterations with the weights and pictures of raft_weights.py, from torchvision 0.29 (no start)
# and from Princeton's code (start (1.5, -0.5)). Ours was within 2.3e-5 px of either over the whole picture.
PROBES = [(0, 0), (5, 70), (64, 80), (100, 31), (127, 159)]
TORCHVISION = [[1.48214, -0.62905], [4.2141, -3.71315], [2.83314, -12.65956], [4.15087, -8.92632], [-0.25906, -0.81011]]
PRINCETON = [[6.28476, -2.37222], [13.1353, -6.26965], [15.5036, -14.35637], [15.46631, -12.81582], [5.52017, -2.93094]]
TOLERANCE_PX = 5e-4


@pytest.fixture(scope="module")
def network() -> Raft:
    network = Raft(iterations=3).eval()
    network.load_state_dict(some_weights(network))
    return network


def start_of(x: float, y: float) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, 16, 20)


@pytest.mark.parametrize(
    ("start", "golden", "on_demand"), [((0.0, 0.0), TORCHVISION, False), ((1.5, -0.5), PRINCETON, True)]
)
def test_flow_is_that_of_the_public_implementations(
    network: Raft, start: tuple[float, float], golden: list[list[float]], on_demand: bool
) -> None:
    other = Raft(iterations=3, all_pairs_pixels=0 if on_demand else 128 * 160).eval()
    other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        flow = other(*some_pictures(), start_of(*start))
    assert flow.shape == (1, 2, 128, 160)
    found = torch.stack([flow[0, :, y, x] for y, x in PROBES])
    torch.testing.assert_close(found, torch.tensor(golden), atol=TOLERANCE_PX, rtol=0)


def test_size(network: Raft) -> None:
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS


def test_torchvision_checkpoint(network: Raft) -> None:
    names, ours = torchvision_names(), network.state_dict()
    assert sorted(names.values()) == sorted(ours)
    other = Raft()
    load_raft(other, {theirs: ours[name] for theirs, name in names.items()})
    assert all(torch.equal(value, ours[name]) for name, value in other.state_dict().items())


def test_princeton_checkpoint(network: Raft) -> None:
    ours = network.state_dict()
    # As saved from DataParallel; the norm after a strided shortcut is listed twice.
    theirs = {f"module.{name}": value for name, value in ours.items()}
    for layer in (2, 3):
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            theirs[f"module.cnet.layer{layer}.0.norm3.{part}"] = ours[f"cnet.layer{layer}.0.downsample.1.{part}"]
    other = Raft()
    load_raft(other, theirs)
    assert all(torch.equal(value, ours[name]) for name, value in other.state_dict().items())


def test_a_wrong_checkpoint_is_named(network: Raft) -> None:
    state = network.state_dict()
    value = state.pop("fnet.conv1.weight")
    with pytest.raises(InputError, match=r"fnet\.conv1\.weight is missing; fetch it"):
        load_raft(Raft(), state)
    with pytest.raises(InputError, match=r"fnet\.conv1\.weight is \(64, 3, 7, 6\) instead of \(64, 3, 7, 7\)"):
        load_raft(Raft(), {**state, "fnet.conv1.weight": value[..., :6]})
    with pytest.raises(InputError, match="head is unexpected"):
        load_raft(Raft(), {**state, "fnet.conv1.weight": value, "head": value})
    with pytest.raises(InputError, match=r"and \d+ more"):
        load_raft(Raft(), {})


def literal_lookup(src: Tensor, dst: Tensor, at: Tensor) -> Tensor:
    """Correlation around positions one by one, in float64, as the paper says it; x is the window's slower axis."""
    _, C, h, w = src.shape
    out = torch.zeros(1, LEVELS * (2 * RADIUS + 1) ** 2, h, w, dtype=torch.float64)
    for level in range(LEVELS):
        pooled = F.avg_pool2d(dst.double(), 2**level)
        H, W = pooled.shape[2:]
        for i in range(h):
            for j in range(w):
                score = torch.einsum("c,chw->hw", src[0, :, i, j].double(), pooled[0]) / C**0.5
                x0, y0 = (at[0, i, j].double() / 2**level).tolist()
                k = level * (2 * RADIUS + 1) ** 2
                for dx in range(-RADIUS, RADIUS + 1):
                    for dy in range(-RADIUS, RADIUS + 1):
                        out[0, k, i, j] = bilinear(score, x0 + dx, y0 + dy, H, W)
                        k += 1
    return out


def bilinear(score: Tensor, x: float, y: float, H: int, W: int) -> float:
    left, top, total = int(x // 1), int(y // 1), 0.0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        if 0 <= column < W and 0 <= row < H:
            total += (1 - abs(x - column)) * (1 - abs(y - row)) * float(score[row, column])
    return total


@pytest.mark.parametrize("lookup", [AllPairs, OnDemand])
def test_lookup_is_the_papers(lookup: type[AllPairs] | type[OnDemand]) -> None:
    torch.manual_seed(0)
    src, dst = torch.randn(1, 6, 2, 3), torch.randn(1, 6, 17, 19)
    # Some positions lie far outside.
    at = torch.rand(1, 2, 3, 2) * torch.tensor([30.0, 28.0]) - 6
    if lookup is AllPairs:
        # It takes equal sizes: the first picture lies in the corner of a larger one.
        large, places = torch.zeros(1, 6, 17, 19), torch.zeros(1, 17, 19, 2)
        large[..., :2, :3], places[:, :2, :3] = src, at
        found = AllPairs(large, dst)(places)[..., :2, :3]
    else:
        found = OnDemand(src, dst)(at)
    # Worst error seen: 6e-7.
    torch.testing.assert_close(found.double(), literal_lookup(src, dst, at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("on_demand", [False, True])
def test_iterations_share_what_is_compiled(compiled_graphs: list[Any], *, on_demand: bool) -> None:
    network = Raft(iterations=3, all_pairs_pixels=0 if on_demand else 128 * 136).eval()
    one, other = torch.rand(2, 1, 3, 128, 136, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    start = torch.zeros(1, 2, 16, 17)
    with torch.inference_mode():
        want = network(one, other, start)
        with compiled_parts():
            torch.testing.assert_close(network(one, other, start), want, atol=1e-4, rtol=0)
    assert len(compiled_graphs) == 3  # two encoders and an iteration


@pytest.mark.needs_cuda
@pytest.mark.parametrize(
    ("dtype", "tolerance_px"), [(torch.float32, 0.01), (torch.float16, 0.3), (torch.bfloat16, 1.5)]
)
def test_gpu_and_low_precision(network: Raft, dtype: torch.dtype, tolerance_px: float) -> None:
    src, dst = some_pictures()
    with torch.inference_mode():
        want = network(src, dst, start_of(0.0, 0.0))
        other = Raft(iterations=3).eval()
        other.load_state_dict(network.state_dict())
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = other.to("cuda", dtype)(src.cuda(), dst.cuda(), start_of(0.0, 0.0).cuda())
    assert found.dtype == torch.float32
    assert float((found.cpu() - want).norm(dim=1).mean()) < tolerance_px
