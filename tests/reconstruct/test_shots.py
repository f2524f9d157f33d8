"""Where shots begin, and what interrupts them."""

from __future__ import annotations

import numpy as np
import pytest

from vs3r.reconstruct.observe import GAPS, Observation, ObservedFrame
from vs3r.reconstruct.shots import BLINK_FRAMES, Shots


def filmed(shown: str, *, first: int = 0) -> list[ObservedFrame]:
    """A frame for each letter: what it shows. Flow joins those that show the same, but for `-`, which is no scene."""

    def agreement(a: int, b: int) -> float:
        return 0.9 if shown[a] == shown[b] != "-" else 0.01

    def pair(a: int, b: int) -> list[Observation]:
        weight = np.full((4, 6), agreement(a, b), np.float32)
        flow = np.zeros((4, 6, 2), np.float32)
        return [
            Observation(src=first + s, dst=first + d, flow=flow, weight=weight, fine_flow=flow, fine_weight=weight)
            for s, d in ((a, b), (b, a))
        ]

    return [
        ObservedFrame(
            index=first + i,
            pts_s=i / 30,
            exposed_s=i / 30,
            first_shown=first + i,
            picture=np.zeros((8, 12), np.uint8),
            found=[o for gap in GAPS if i >= gap for o in pair(i - gap, i)],
            agreement=agreement(i - 1, i) if i else 1.0,
            change=0.0 if i and shown[i] == shown[i - 1] else 1.0,
        )
        for i in range(len(shown))
    ]


def told(frames: list[ObservedFrame]) -> str:
    """| where a shot begins, x what is blank, . else."""
    shots, known = Shots(), []
    for seen, frame in enumerate(frames, 1):
        known += shots.push(frame)
        assert seen - len(known) <= BLINK_FRAMES
    known += shots.flush()
    assert [k.index for k in known] == [f.index for f in frames]
    return "".join("|" if k.begins else "x" if k.blank else "." for k in known)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("aaaaaaaa", "........"),
        ("aaaabbbb", "....|..."),
        ("aaaa-aaaa", "....x...."),
        ("aaaa--aaaa", "....xx...."),
        ("aaaa---aaaa", "....xxx...."),
        ("aaaabbaaaa", "....xx...."),
        # Longer than a blink, or the end of the clip.
        ("aaaa----aaaa", "....|......."),
        ("aaaabbbbaaaa", "....|...|..."),
        ("aaaa--", "....|."),
        ("aaaabb", "....|."),
        # Through white into another shot.
        ("aaaa-bbbb", "....||..."),
        ("aaaaaa-aa-aaaa-bbbb", "......x..x....||..."),
        ("aaawbbbwbbb", "...||..x..."),
        ("aaabwbbbb", "...|x...."),
        # A whipped pan after a cut.
        ("aaaabcdeee", "....|....."),
        ("aaaabbbb-bbbb", "....|...x...."),
        ("ab", ".|"),
        ("aabbccdd", "..|.|.|."),
        ("abcdefgh", ".|......"),
        ("a-aaaa", ".x...."),
        # Flow joins one white frame to another, which is no way back into the shot.
        ("aaaa" + "wa" * 6 + "aa", "...." + "x." * 6 + ".."),
        ("aaaa" + "waaa" * 4 + "a", "...." + "x..." * 4 + "."),
        ("aaaa" + "bbaa" * 4 + "aa", "...." + "xx.." * 4 + ".."),
    ],
)
def test_where_shots_begin_and_what_is_blank(shown: str, expected: str) -> None:
    assert told(filmed(shown)) == expected


def test_what_was_before_a_reset_is_not_joined() -> None:
    """The first frame that is pushed begins nothing, whatever came before it, and nothing leads back beyond it."""
    frames = filmed("aaaab-aaaa")
    assert told(frames[4:]) == ".||..."
