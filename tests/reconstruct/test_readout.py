"""What is believed of a read-out time, block after block."""

from __future__ import annotations

import pytest
import torch

from vs3r.reconstruct.problem import State
from vs3r.reconstruct.readout import AFTER_CUT_PX2, PRIOR_PX2, SETTLED_PX2, ReadoutBelief
from vs3r.types import ROW_MOTION_ORDER

INTERVAL_S = 1 / 30


def after_block(belief: ReadoutBelief, seen_frames: float, seen_px2: float) -> State:
    """What an adjustment makes of a block that says `seen_frames`, so surely."""
    readout_s = belief.readout_s
    for _ in range(50):
        expected, known = belief.prior(readout_s, INTERVAL_S)
        px2 = known * INTERVAL_S**2
        readout_s = (px2 * expected + seen_px2 * seen_frames * INTERVAL_S) / (px2 + seen_px2)
    info = (px2 + seen_px2) / INTERVAL_S**2
    return State(
        cam_from_world=torch.eye(4).double()[None],
        log_focal=torch.zeros(1).double(),
        inv_depth=torch.ones(1, 1),
        readout=torch.tensor(readout_s).double(),
        readout_info=torch.tensor(info).double(),
        wobble=torch.zeros(1, ROW_MOTION_ORDER, 3).double(),
    )


def found_frames(*blocks: tuple[float, float]) -> float:
    belief = ReadoutBelief(None)
    for seen_frames, seen_px2 in blocks:
        belief.learn(after_block(belief, seen_frames, seen_px2), INTERVAL_S)
    return belief.readout_s / INTERVAL_S


def test_a_short_readout_needs_more_than_a_long_one() -> None:
    assert abs(found_frames((-0.33, 1300))) < 0.16
    assert found_frames((0.9, 1300)) > 0.65
    # The first block of a walk. Cauchy's loss took 0.013 of it.
    assert found_frames((-1.0, 1.25e4)) == pytest.approx(-1, abs=0.005)


def test_blocks_add_up() -> None:
    """Two blocks say what one twice as sure says, and none of it is lost to what was believed before."""
    assert found_frames((0.6, 4e3), (0.6, 4e3)) == pytest.approx(found_frames((0.6, 8e3)), abs=1e-6)
    assert found_frames((0.1, 500), (0.8, 5e4)) == pytest.approx(0.8, abs=0.02)


def settled(belief: ReadoutBelief) -> bool:
    return not belief.unsettled


def test_it_settles_until_a_cut() -> None:
    belief = ReadoutBelief(None)
    assert not settled(belief) and belief.prior(0.0, INTERVAL_S) == (0.0, PRIOR_PX2 / INTERVAL_S**2)
    belief.learn(after_block(belief, 0.5, 1.01 * SETTLED_PX2), INTERVAL_S)
    assert settled(belief)
    belief.cut()
    assert not settled(belief)
    assert belief.prior(belief.readout_s, INTERVAL_S)[1] * INTERVAL_S**2 < 1.2 * AFTER_CUT_PX2
    belief.reset()
    assert belief.readout_s == 0


def test_one_that_is_given_stays() -> None:
    belief = ReadoutBelief(-0.02)
    assert settled(belief) and belief.readout_s == -0.02
    belief.reset()
    assert belief.readout_s == -0.02


def test_frames_that_come_much_faster_say_nothing_of_a_longer_one() -> None:
    """As where a clip goes on in slow motion, or its times are wrong: what was found is kept for what comes later."""
    belief = ReadoutBelief(None)
    belief.learn(after_block(belief, 0.6, 2 * SETTLED_PX2), INTERVAL_S)
    found_s = belief.readout_s
    for faster_s in (INTERVAL_S / 10, INTERVAL_S / 1000):
        assert belief.prior(faster_s, faster_s)[0] == faster_s
        belief.learn(after_block(belief, 0.1, SETTLED_PX2), faster_s)
    assert belief.readout_s == found_s
    assert belief.prior(found_s, INTERVAL_S)[0] == pytest.approx(found_s, rel=0.02)
