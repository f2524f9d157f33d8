"""The network against the public implementation with the same seeded weights; what a checkpoint must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reconstruct.vggt.common import SMALL, pictures, seeded_state, small
from vs3r.errors import InputError, ShapeError
from vs3r.networks import compiled_parts
from vs3r.reconstruct.vggt.model import FirstPass, SecondPass, Vggt, load_state


def summary(pose: Tensor, depth: Tensor, confidence: Tensor) -> list[float]:
    """The poses, and of either field the mean and five samples."""
    fields = [torch.cat([f.mean()[None], f.flatten()[:: f.numel() // 5 + 1]]) for f in (depth, confidence)]
    return [float(x) for part in (pose.flatten(), *fields) for x in part]


# (S, H, W) and what the public implementation (facebookresearch/vggt) says of these weights and pictures.
GOLDEN = [
    (
        (3, 84, 84),
        [
            -2.576736,
            -3.733742,
            -3.358931,
            -0.797877,
            -5.631563,
            1.054932,
            -1.977743,
            1.297888,
            6.338394,
            -6.496984,
            -0.6423702,
            -2.096813,
            3.110243,
            -1.337606,
            3.795498,
            -3.08427,
            0,
            3.834665,
            -7.410409,
            -0.6459683,
            -1.982467,
            3.494376,
            -0.8594145,
            4.007866,
            -2.773852,
            0,
            1.108467,
            0.4518951,
            0.9650339,
            0.3783168,
            0.3252403,
            0.3933024,
            0.238979,
            1.54089,
            1.999754,
            1.446486,
            1.521211,
            1.342179,
            1.36729,
        ],
    ),
    (
        (2, 56, 98),
        [
            -2.926692,
            -1.560922,
            -3.110296,
            0.5524543,
            -3.621306,
            -0.9173453,
            -1.426535,
            0,
            2.269755,
            -6.943655,
            -0.5168696,
            -2.703688,
            5.387227,
            -1.310118,
            3.016932,
            -4.043799,
            0,
            0,
            0.4973737,
            0.9452355,
            0.3319796,
            0.5310046,
            0.5901263,
            0.3413813,
            1.593338,
            1.972908,
            1.391509,
            1.603137,
            1.480061,
            1.423281,
        ],
    ),
    (
        (1, 98, 56),
        [
            -2.726688,
            0.9589882,
            -2.74544,
            -0.2966334,
            -4.82169,
            -3.288452,
            -2.560235,
            0,
            0,
            0.5528794,
            0.9597176,
            0.444499,
            0.5687751,
            0.4440703,
            0.51802,
            1.639336,
            1.949286,
            1.577598,
            1.617369,
            1.789976,
            1.436418,
        ],
    ),
]


@pytest.mark.parametrize(("shape", "golden"), GOLDEN, ids=str)
def test_agrees_with_the_public_implementation(shape: tuple[int, int, int], golden: list[float]) -> None:
    with torch.no_grad():
        found = small()(pictures(*shape))
    assert found.pose.shape == (shape[0], 9) and found.depth.shape == found.confidence.shape == shape
    torch.testing.assert_close(
        torch.tensor(summary(found.pose, found.depth, found.confidence)), torch.tensor(golden), rtol=1e-4, atol=1e-5
    )


def test_size_of_the_public_checkpoint() -> None:
    with torch.device("meta"):
        network = Vggt()
    parts = (network, network.aggregator, network.camera_head, network.depth_head)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [1_157_941_492, 909_112_320, 216_174_610, 32_654_562]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"camera_head.embed_pose.weight": None}, "camera_head.embed_pose.weight is missing; use vggt-1b"),
        ({"aggregator.more": torch.zeros(1)}, "aggregator.more is unexpected"),
        ({"aggregator.camera_token": torch.zeros(1, 2, 1, 32)}, r"camera_token is \(1, 2, 1, 32\) instead of"),
    ],
)
def test_another_checkpoint_is_refused(change: dict[str, Tensor | None], told: str) -> None:
    network = Vggt(SMALL)
    state = seeded_state(network) | {"point_head.norm.weight": torch.zeros(3)}
    load_state(network, state)
    changed = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(InputError, match=told):
        load_state(network, changed)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of 14"):
        Vggt(SMALL)(torch.zeros(1, 3, 28, 30))


def test_alike_blocks_share_what_is_compiled(compiled_graphs: list[Any]) -> None:
    network, window = small(), pictures(3, 56, 84)
    first, second = FirstPass(network, 56, 84, cues=True), SecondPass(network, 56, 84)

    def found() -> list[Tensor]:
        with torch.inference_mode():
            values = first(window)
            return [*values, *second(values[4], torch.ones(3, 24))]

    want = found()
    with compiled_parts():
        torch.testing.assert_close(found(), want, atol=1e-5, rtol=0)
    # Blocks of the encoder, within a frame, over frames and of the camera head; of those over frames also what cues
    # look at. And depth, of three frames.
    assert len(compiled_graphs) == 10
    assert all(torch.equal(one, other) for one, other in zip(found(), want, strict=True))
