"""The worlds that the shots are taken in. The ground is y = 0, up is -y, forward is +z; metres."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.scenes import textures as tx
from tests.scenes.renderer import F64, Quad, Scene, Texture

Point = tuple[float, float]
SUN = np.array([-0.55, -0.75, -0.36])
"""Direction towards the sun; it only sets how bright a face is."""


def _gain(normal_x: float, normal_z: float) -> float:
    return float(0.74 + 0.34 * max(normal_x * SUN[0] + normal_z * SUN[2], -0.35))


def wall(start: Point, end: Point, height: float, texture: Texture, *, tile: Point | None = None, **kind: Any) -> Quad:
    """An upright rectangle from start to end (x, z), seen from where start is on the left.

    tile: width and height of one texture picture in metres; the whole wall without it.
    """
    run = np.array([end[0] - start[0], end[1] - start[1]])
    length = float(np.hypot(*run))
    base = float(kind.pop("base", 0.0))
    return Quad(
        corner=(start[0], -base - height, start[1]),
        edge_u=(float(run[0]), 0.0, float(run[1])),
        edge_v=(0.0, height, 0.0),
        textures=(texture,),
        repeat=(length / tile[0], height / tile[1]) if tile else (1.0, 1.0),
        gain=float(kind.pop("gain", _gain(run[1] / length, -run[0] / length))),
        **kind,
    )


def ground(low: Point, high: Point, texture: Texture, tile: float, *, level: float = 0.0, **kind: Any) -> Quad:
    """A horizontal rectangle between two (x, z) corners, seen from above."""
    return Quad(
        corner=(low[0], -level, high[1]),
        edge_u=(high[0] - low[0], 0.0, 0.0),
        edge_v=(0.0, 0.0, low[1] - high[1]),
        textures=(texture,),
        repeat=((high[0] - low[0]) / tile, (high[1] - low[1]) / tile),
        **kind,
    )


def box(
    centre: Point,
    size: tuple[float, float, float],
    texture: Texture,
    *,
    yaw_deg: float = 0.0,
    tile: float = 1.0,
    **kind: Any,
) -> list[Quad]:
    """A box on the ground: centre (x, z), size (x, height, z), four sides and a top."""
    turn = np.deg2rad(yaw_deg)
    right, forward = np.array([np.cos(turn), -np.sin(turn)]), np.array([np.sin(turn), np.cos(turn)])
    a, b = right * size[0] / 2, forward * size[2] / 2
    corners = (np.array(centre) + offset for offset in (-a - b, a - b, a + b, -a + b))
    feet = [(float(x), float(z)) for x, z in corners]
    sides = [wall(feet[k], feet[(k + 1) % 4], size[1], texture, tile=(tile, tile), **kind) for k in range(4)]
    base = float(kind.pop("base", 0.0))
    top = Quad(
        corner=(feet[3][0], -size[1] - base, feet[3][1]),
        edge_u=(2 * float(a[0]), 0.0, 2 * float(a[1])),
        edge_v=(-2 * float(b[0]), 0.0, -2 * float(b[1])),
        textures=(texture,),
        repeat=(size[0] / tile, size[2] / tile),
        gain=1.05,
        **kind,
    )
    return [*sides, top]


def pole(at: Point, height: float, texture: Texture, *, thickness: float = 0.16, **kind: Any) -> list[Quad]:
    """A square post."""
    return box(at, (thickness, height, thickness), texture, tile=1.0, **kind)


def tree(at: Point, seed: int, *, height: float = 5.0, object_id: int) -> list[Quad]:
    """A trunk, and a crown of crossed billboards."""
    trunk = tx.mottled(900, (70.0, 58.0, 44.0), (128.0, 108.0, 84.0), slope=0.7)
    out = box(at, (0.28, height * 0.5, 0.28), trunk, object_id=object_id)
    size = height * 0.62
    for k in range(4):
        turn = np.pi * (k / 4 + 0.1 * seed)
        dx, dz = size / 2 * np.cos(turn), size / 2 * np.sin(turn)
        out.append(
            wall(
                (at[0] - dx, at[1] - dz),
                (at[0] + dx, at[1] + dz),
                size,
                tx.foliage(seed + k % 2),
                base=height * 0.4,
                gain=0.92 + 0.06 * k,
                two_sided=True,
                object_id=object_id,
            )
        )
    return out


def walker(start: Point, velocity: Point, seed: int, *, object_id: int, height: float = 1.75) -> Quad:
    """A person who walks through the world: an animated cut-out, upright along its way."""
    speed = float(np.hypot(*velocity))
    way = np.array(velocity) / speed
    world_from_object = np.eye(4)
    world_from_object[:3, 0] = way[0], 0.0, way[1]
    world_from_object[:3, 2] = np.cross(world_from_object[:3, 0], [0.0, 1.0, 0.0])

    def motion(time_s: float) -> F64:
        out = world_from_object.copy()
        out[:3, 3] = start[0] + velocity[0] * time_s, 0.0, start[1] + velocity[1] * time_s
        return out

    return Quad(
        corner=(-height / 4, -height, 0.0),
        edge_u=(height / 2, 0.0, 0.0),
        edge_v=(0.0, height, 0.0),
        textures=tx.walker(seed),
        two_sided=True,
        object_id=object_id,
        motion=motion,
        cycle_s=1.35 / max(speed, 0.3) * (height / 1.75),
        gain=0.95,
    )


def _crates(seed: int, count: int, *, first_id: int) -> list[Quad]:
    """Boxes of many sizes all around the origin, none nearer than 3.5 m."""
    rng = np.random.default_rng(seed)
    out: list[Quad] = []
    for number in range(count):
        angle, distance = 2 * np.pi * (number + rng.uniform(0, 0.6)) / count, rng.uniform(3.5, 9.5)
        width, height, depth = (rng.uniform(0.5, 1.5, 3) * np.array([1.0, 1.2, 1.0])).tolist()
        out += box(
            (float(distance * np.sin(angle)), float(distance * np.cos(angle))),
            (width, height, depth),
            tx.lettering(20 + number % 5) if number % 3 else tx.bricks(40 + number % 3, (120.0, 105.0, 95.0)),
            yaw_deg=float(rng.uniform(0, 90)),
            tile=float(rng.uniform(1.0, 2.0)),
            object_id=first_id + number,
        )
    return out


def _square(half: float) -> list[Quad]:
    """Paving enclosed by four rows of house fronts."""
    out = [ground((-half, -half), (half, half), tx.paving(2), 4.0, object_id=1)]
    corners = [(-half, half), (half, half), (half, -half), (-half, -half)]
    colours = ((196.0, 176.0, 140.0), (165.0, 98.0, 78.0), (150.0, 160.0, 165.0), (206.0, 190.0, 168.0))
    for side in range(4):
        a, b = np.array(corners[side]), np.array(corners[(side + 1) % 4])
        for part in range(3):
            front = tx.facade(60 + part + side, floors=3, columns=4, colour=colours[(side + part) % 4], brick=part == 1)
            ends = [tuple((a + (b - a) * share / 3).tolist()) for share in (part, part + 1)]
            out.append(wall(ends[0], ends[1], 8.0 + 1.2 * ((part + side) % 3), front, object_id=2 + side * 3 + part))
    return out


@functools.cache
def square() -> Scene:
    """A town square with things standing about, interesting in every direction; nobody moves."""
    trees = [
        quad
        for number, at in enumerate([(-4.5, 8.0), (7.0, 5.5), (6.0, -7.0), (-8.0, -5.0)])
        for quad in tree(at, 70 + number, object_id=60 + number)
    ]
    return Scene(quads=[*_square(14.0), *_crates(5, 14, first_id=20), *trees], sky=tx.sky(7))


@functools.cache
def square_with_walker() -> Scene:
    """The square, and one person who crosses it."""
    quads = [*square().quads, walker((-3.2, 4.6), (1.3, 0.0), 3, object_id=100)]
    return Scene(quads=quads, sky=tx.sky(7))


@functools.cache
def crowd() -> Scene:
    """The square, full of people who walk across the view."""
    rng = np.random.default_rng(12)
    people = []
    for number in range(16):
        z, speed = 2.9 + 0.36 * number, float(rng.uniform(0.5, 1.3)) * (1 if number % 2 else -1)
        halfway_x = 0.62 * z * ((number * 5 % 16) / 7.5 - 1)  # spread over the picture after 1.5 s
        people.append(
            walker(
                (halfway_x - 1.5 * speed, z),
                (speed, float(rng.uniform(-0.12, 0.12))),
                80 + number % 8,
                object_id=100 + number,
                height=float(rng.uniform(1.6, 1.9)),
            )
        )
    standing = [quad for quad in square().quads if not 20 <= quad.object_id < 60 or quad.corner[2] > 8.0]
    return Scene(quads=[*standing, *people], sky=tx.sky(7))


def _car(at: Point, colour: tx.Colour, *, object_id: int) -> list[Quad]:
    """A car parked along the street, nose ahead, 1.74 x 1.35 x 4.3 m: a body, a narrower cabin, and its shadow."""
    x0, x1, z0, z1 = at[0] - 0.87, at[0] + 0.87, at[1], at[1] + 4.3
    belt, roof, inset = 0.85, 1.335, 0.13
    front = tx.car_end(colour, lamps=(235.0, 232.0, 215.0))
    paint = tx.mottled(950, _scaled(colour, 0.9), _scaled(colour, 1.1), size=256)

    def side(x: float, gain: float, *, cabin: bool) -> Quad:
        # The picture runs from tail to nose, so that a side seen from the left stands mirrored.
        picture = (tx.car_side(colour, cabin=cabin),)
        edge_u, edge_v = (0, 0, 4.3), (0, 1.45, 0)
        corner = (x, -1.45, z0)
        return Quad(
            corner=corner,
            edge_u=edge_u,
            edge_v=edge_v,
            textures=picture,
            two_sided=True,
            gain=gain,
            object_id=object_id,
        )

    def across(height: float, z: float, slope: Point, texture: Texture, narrower: float) -> Quad:
        # Its upper edge lies at z; from there it goes down and forward by slope.
        return Quad(
            corner=(x0 + narrower, -height, z),
            edge_u=(x1 - x0 - 2 * narrower, 0, 0),
            edge_v=(0, *slope),
            textures=(texture,),
            two_sided=True,
            object_id=object_id,
        )

    glass, drop = tx.car_glass(5), roof - belt
    return [
        ground((x0 - 0.15, z0 - 0.1), (x1 + 0.15, z1 + 0.1), tx.asphalt(11), 4.0, level=0.006, gain=0.4, object_id=1),
        *(side(x, gain, cabin=False) for x, gain in ((x0, 0.75), (x1, 0.9))),
        *(side(x, gain, cabin=True) for x, gain in ((x0 + inset, 0.75), (x1 - inset, 0.9))),
        wall((x0, z0 + 0.02), (x1, z0 + 0.02), 1.45, tx.car_end(colour), object_id=object_id),
        wall((x1, z1 - 0.02), (x0, z1 - 0.02), 1.45, front, object_id=object_id),
        across(belt, z1 - 0.02, (0.0, -4.26), paint, 0.0),
        across(roof, z0 + 3.05, (0.0, -1.25), paint, inset),
        across(roof, z0 + 1.8, (drop, -0.7), glass, inset),
        across(roof, z0 + 3.05, (drop, 0.65), glass, inset),
    ]


def _scaled(colour: tx.Colour, factor: float) -> tx.Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


@functools.cache
def street() -> Scene:
    """A street with houses, trees, lamps, parked cars and a few people."""
    rng = np.random.default_rng(31)
    kerb = tx.mottled(910, (120.0, 118.0, 112.0), (176.0, 172.0, 165.0))
    quads = [
        ground((-4.0, -20.0), (4.0, 90.0), tx.asphalt(11), 4.0, object_id=1),
        ground((-7.5, -20.0), (-4.0, 90.0), tx.paving(12), 2.4, level=0.12, object_id=2),
        ground((4.0, -20.0), (7.5, 90.0), tx.paving(13), 2.4, level=0.12, object_id=3),
        wall((-4.0, -20.0), (-4.0, 90.0), 0.12, kerb, tile=(1.0, 1.0), object_id=2),
        wall((4.0, 90.0), (4.0, -20.0), 0.12, kerb, tile=(1.0, 1.0), object_id=3),
    ]
    paint = tx.mottled(920, (205.0, 203.0, 196.0), (238.0, 236.0, 230.0), size=256)
    quads += [ground((-0.07, z), (0.07, z + 2.0), paint, 1.0, level=0.004, object_id=1) for z in range(0, 80, 5)]
    quads += _houses(rng)
    for number, z in enumerate((6.0, 14.5, 23.0, 32.0, 43.0, 56.0)):
        side = -1 if number % 2 else 1
        quads += tree((side * 4.6, z), 130 + number, height=5.6, object_id=60 + number)
        quads += _lamp((-side * 4.5, z + 2.0), -side, object_id=70 + number)
    colours = [
        (158.0, 36.0, 38.0),
        (52.0, 74.0, 128.0),
        (205.0, 205.0, 202.0),
        (62.0, 92.0, 74.0),
        (186.0, 150.0, 60.0),
    ]
    parked = [(-3.0, 5.5), (3.0, 9.0), (-3.0, 12.5), (3.0, 18.0), (-3.0, 21.0), (3.0, 27.0), (-3.0, 33.0)]
    for number, (x, z) in enumerate(parked):
        quads += _car((x, z), colours[number % 5], object_id=40 + number)
    quads += box((5.6, 11.0), (0.7, 0.9, 0.5), tx.lettering(22), object_id=80)
    quads += box((-5.2, 9.2), (0.5, 1.1, 0.5), tx.lettering(23), object_id=81)
    quads += [
        walker((-2.6, 10.8), (0.95, 0.0), 201, object_id=100),
        walker((5.4, 16.0), (0.06, -1.1), 202, object_id=101),
        walker((4.2, 23.0), (-1.2, -0.1), 203, object_id=102),
        walker((-5.4, 8.5), (0.25, 1.0), 204, object_id=103),
    ]
    return Scene(quads=quads, sky=tx.sky(17))


def _houses(rng: np.random.Generator) -> list[Quad]:
    colours = [
        (204.0, 184.0, 146.0),
        (164.0, 92.0, 74.0),
        (176.0, 182.0, 184.0),
        (214.0, 198.0, 178.0),
        (150.0, 116.0, 92.0),
    ]
    out: list[Quad] = []
    for side in (-1, 1):
        z = -20.0
        for number in range(12):
            length, height = float(rng.uniform(8.0, 11.0)), float(rng.uniform(8.0, 12.0))
            front = tx.facade(
                300 + number % 4 + 10 * side,
                floors=3 + number % 2,
                columns=4,
                colour=colours[(number + side) % 5],
                brick=number % 3 == 1,
            )
            x = side * (7.5 + float(rng.uniform(-0.1, 0.25)))
            ends = [(x, z), (x, z + length)]
            if side > 0:
                ends.reverse()
            object_id = 10 + number + (13 if side > 0 else 0)
            out.append(wall(ends[0], ends[1], height, front, object_id=object_id))
            gable = tx.bricks(320 + number % 3)
            for at, turned in ((z, False), (z + length, True)):
                feet = [(x, at), (x + side * 6.0, at)]
                if (side > 0) == turned:
                    feet.reverse()
                out.append(wall(feet[0], feet[1], height, gable, tile=(4.0, 4.0), object_id=object_id))
            z += length
    far = tx.facade(350, floors=4, columns=6, colour=colours[0])
    out.append(wall((-9.0, 78.0), (9.0, 78.0), 14.0, far, object_id=36))
    return out


def _lamp(at: Point, side: int, *, object_id: int) -> list[Quad]:
    iron = tx.mottled(930, (38.0, 44.0, 42.0), (84.0, 92.0, 88.0), size=256)
    arm = [(at[0], at[1]), (at[0] - side * 1.0, at[1])]
    arm.sort()
    return [
        *pole(at, 4.6, iron, thickness=0.12, object_id=object_id),
        wall(arm[0], arm[1], 0.1, iron, base=4.5, two_sided=True, object_id=object_id),
        *box((at[0] - side * 1.0, at[1]), (0.5, 0.16, 0.24), iron, base=4.34, object_id=object_id),
    ]
