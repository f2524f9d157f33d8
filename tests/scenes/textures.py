"""Procedural pictures for the scenes: detail on all scales, no files, the same on every run."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import numpy.typing as npt

from tests.scenes.renderer import F32, U8, Texture

Colour = tuple[float, float, float]


def noise(height: int, width: int, seed: int, *, slope: float = 1.0, longest: int = 256) -> F32:
    """(H, W) tileable noise, zero mean and unit deviation, whose amplitude falls as 1 / frequency**slope.

    longest: wavelengths above this many pixels are left out, so that a repeated tile does not show its pattern.
    """
    # Any part of an endless pattern is as good as another: a few patterns, shifted at random, serve for all seeds.
    shift = np.random.default_rng(seed).integers(0, (height, width)).tolist()
    return np.roll(_noise(height, width, seed % 4, slope, longest), shift, axis=(0, 1))


@functools.cache
def _noise(height: int, width: int, seed: int, slope: float, longest: int) -> F32:
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1.0 / longest)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
    spectrum *= np.hypot(fy, fx) >= 1.0 / longest
    out = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray((out - out.mean()) / out.std(), np.float32)


def _picture(colour: F32 | npt.NDArray[np.float64], alpha: npt.NDArray[np.float32] | None = None) -> U8:
    rgb = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    if alpha is None:
        return rgb
    return np.dstack([rgb, np.clip(np.rint(alpha), 0, 255).astype(np.uint8)])


def _tint(values: F32, dark: Colour, light: Colour) -> F32:
    """Noise (about -2 to 2) to a colour between two."""
    share = np.clip(values * 0.25 + 0.5, 0, 1)[..., None]
    return np.asarray(np.array(dark) + share * (np.array(light) - np.array(dark)), np.float32)


def _write(canvas: F32, words: str, origin: tuple[int, int], scale: float, colour: Colour) -> None:
    """Letters, bottom left at origin. OpenCV writes only into bytes, so through a mask."""
    ink = np.zeros(canvas.shape[:2], np.uint8)
    cv2.putText(ink, words, origin, cv2.FONT_HERSHEY_DUPLEX, scale, 255, 2, cv2.LINE_AA)
    canvas += (ink[..., None] / 255.0).astype(np.float32) * (np.array(colour, np.float32) - canvas)


@functools.cache
def mottled(seed: int, dark: Colour, light: Colour, *, slope: float = 0.9, size: int = 1024) -> Texture:
    """Plaster, asphalt, grass, bark: noise between two colours."""
    grain = noise(size, size, seed, slope=slope)
    hue = noise(size, size, seed + 1, slope=1.3)
    colour = _tint(grain, dark, light) * (1 + 0.06 * hue[..., None] * np.array([1, 0, -1]))
    return Texture(_picture(colour))


@functools.cache
def asphalt(seed: int) -> Texture:
    """Grey stones, patches and cracks; one tile is 4 m wide."""
    size = 1024
    grey = 98 + 14 * noise(size, size, seed, slope=0.3) + 6 * noise(size, size, seed + 1, slope=1.2)
    crack = np.abs(noise(size, size, seed + 2, slope=2.0))
    grey -= 45 * np.clip(1 - crack / 0.02, 0, 1)
    return Texture(_picture(grey[..., None] * np.array([1.0, 0.99, 0.97])))


@functools.cache
def paving(seed: int, *, across: int = 8, down: int = 8) -> Texture:
    """Slabs of different greys with dark joints."""
    size = 1024
    rng = np.random.default_rng(seed)
    tone = np.kron(rng.uniform(-26, 26, (down, across)), np.ones((size // down, size // across)))
    warm = np.kron(rng.uniform(-8, 8, (down, across)), np.ones((size // down, size // across)))
    grey = 142 + tone + 12 * noise(size, size, seed, slope=0.6) + 10 * noise(size, size, seed + 1, slope=1.5)
    colour = grey[..., None] + warm[..., None] * np.array([1.0, 0.0, -1.0])
    rows, cols = np.arange(size) % (size // down), np.arange(size) % (size // across)
    joint = (np.minimum(rows, size // down - rows)[:, None] < 4) | (np.minimum(cols, size // across - cols)[None] < 4)
    return Texture(_picture(np.where(joint[..., None], colour * 0.5, colour)))


def _brickwork(height: int, width: int, seed: int, colour: Colour, brick: tuple[int, int] = (64, 24)) -> F32:
    """(H, W, 3) bricks in running bond; sides that are multiples of the brick tile."""
    rng = np.random.default_rng(seed)
    columns, courses = -(-width // brick[0]), -(-height // brick[1])
    y = np.arange(height)
    course = y // brick[1]
    x = (np.arange(width)[None] + (course[:, None] % 2) * (brick[0] // 2)) % width
    tone = rng.uniform(0.72, 1.2, (courses, columns))[course[:, None], x // brick[0]]
    edge = np.minimum(x % brick[0], brick[0] - 1 - x % brick[0])
    edge = np.minimum(edge, np.minimum(y % brick[1], brick[1] - 1 - y % brick[1])[:, None])
    stone = np.array(colour) * tone[..., None]
    out = np.where((edge < 2)[..., None], np.array([172.0, 165.0, 152.0]), stone)
    grain = 1 + 0.09 * noise(height, width, seed, slope=0.4) + 0.05 * noise(height, width, seed + 1, slope=1.3)
    return np.asarray(out * grain[..., None], np.float32)


@functools.cache
def bricks(seed: int, colour: Colour = (150.0, 82.0, 62.0)) -> Texture:
    """A tile of brickwork, about 4 m wide."""
    return Texture(_picture(_brickwork(1024, 1024, seed, colour, brick=(64, 32))))


@functools.cache
def facade(seed: int, *, floors: int, columns: int, colour: Colour, brick: bool = False, shop: bool = True) -> Texture:
    """A house front: a wall with rows of windows, and shops with lettering on the ground floor."""
    rng = np.random.default_rng(seed)
    height = width = 1024
    if brick:
        wall = _brickwork(height, width, seed, colour, brick=(16, 8))
    else:
        grain = 1 + 0.05 * noise(height, width, seed, slope=0.5) + 0.08 * noise(height, width, seed + 1, slope=1.4)
        wall = np.asarray(np.array(colour) * grain[..., None], np.float32)
    streaks = cv2.GaussianBlur(noise(height, width, seed + 2, slope=0.5), (0, 0), sigmaX=2, sigmaY=30)
    wall *= (1 + 0.5 * streaks)[..., None]
    floor_height, bay = height / (floors + 0.2), width / columns
    for floor in range(floors):
        top = height - (floor + 1) * floor_height
        cv2.rectangle(
            wall, (0, int(top + floor_height * 0.94)), (width, int(top + floor_height)), [0.8 * c for c in colour], -1
        )
        if floor == 0 and shop:
            _shop_row(wall, rng, int(top + 0.04 * floor_height), height, columns)
            continue
        for column in range(columns):
            x0, x1 = (column + 0.24) * bay, (column + 0.76) * bay
            _window(wall, rng, (int(x0), int(top + 0.16 * floor_height), int(x1), int(top + 0.8 * floor_height)))
    wall[: int(height * 0.02)] = np.array(colour) * 0.55
    wall += 4 * noise(height, width, seed + 5, slope=0.2)[..., None]
    return Texture(_picture(wall), wrap=False)


def _window(wall: F32, rng: np.random.Generator, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    cv2.rectangle(wall, (x0 - 7, y0 - 8), (x1 + 7, y1 + 9), [196.0, 190.0, 178.0], -1)
    cv2.rectangle(wall, (x0 - 9, y1 + 5), (x1 + 9, y1 + 10), [120.0, 116.0, 108.0], -1)
    height, width = y1 - y0, x1 - x0
    shade = np.linspace(rng.uniform(50, 90), rng.uniform(20, 45), height)[:, None]
    glass = shade + 8 * noise(height, width, int(rng.integers(1 << 30)), slope=1.5)
    pane = glass[..., None] * np.array([0.85, 1.0, 1.15])
    if rng.random() < 0.6:  # curtains
        part = int(width * rng.uniform(0.15, 0.3))
        folds = 175 + 25 * np.sin(np.arange(part) * rng.uniform(0.5, 1.1))
        pane[:, :part] = folds[None, :, None]
        pane[:, width - part :] = folds[None, ::-1, None]
    wall[y0:y1, x0:x1] = pane
    cv2.line(wall, ((x0 + x1) // 2, y0), ((x0 + x1) // 2, y1), [214.0, 210.0, 200.0], 3)
    cv2.line(wall, (x0, y0 + height // 3), (x1, y0 + height // 3), [214.0, 210.0, 200.0], 3)


_WORDS = ("BAKERY", "BOOKS", "CAFE LUNA", "FLOWERS", "RADIO", "OPTIK", "MARKET", "SHOES 24", "PHARMACY", "TEA & CO")


def _shop_row(wall: F32, rng: np.random.Generator, top: int, bottom: int, columns: int) -> None:
    width = wall.shape[1]
    shops = max(columns // 2, 1)
    for shop in range(shops):
        x0, x1 = width * shop // shops + 10, width * (shop + 1) // shops - 10
        sign = top + (bottom - top) // 5
        colour = rng.uniform(30, 150, 3)
        cv2.rectangle(wall, (x0, top), (x1, sign), colour.tolist(), -1)
        word = _WORDS[int(rng.integers(len(_WORDS)))]
        scale = min((x1 - x0) / (22.0 * len(word)), (sign - top) / 34.0)
        origin = (x0 + 8, sign - (sign - top) // 4)
        _write(wall, word, origin, scale, (238.0, 230.0, 205.0))
        glass = wall[sign + 6 : bottom - 24, x0 + 6 : x1 - 6]
        goods = noise(glass.shape[0], glass.shape[1], int(rng.integers(1 << 30)), slope=1.6)
        glass[:] = _tint(goods, (38.0, 42.0, 46.0), (92.0, 88.0, 80.0))
        for _ in range(16):  # things in the window
            x, y = int(rng.integers(x0 + 12, x1 - 30)), int(rng.integers((sign + bottom) // 2, bottom - 60))
            size = rng.integers(8, 26, 2)
            cv2.rectangle(wall, (x, y), (x + int(size[0]), y + int(size[1])), rng.uniform(40, 230, 3).tolist(), -1)
        for x in np.linspace(x0 + 6, x1 - 6, 4):
            cv2.line(wall, (int(x), sign), (int(x), bottom - 20), [60.0, 58.0, 55.0], 6)


@functools.cache
def lettering(seed: int, *, size: int = 512) -> Texture:
    """A pin-board of words, figures and discs in many sizes and colours."""
    rng = np.random.default_rng(seed)
    canvas = _tint(noise(size, size, seed, slope=1.2), (150.0, 140.0, 120.0), (225.0, 220.0, 205.0))
    for _ in range(26):
        x, y = rng.integers(0, size, 2).tolist()
        colour = rng.uniform(0, 200, 3).tolist()
        if rng.random() < 0.4:
            cv2.circle(canvas, (x, y), int(rng.integers(5, 40)), colour, -1, cv2.LINE_AA)
        elif rng.random() < 0.4:
            w, h = rng.integers(10, 90, 2).tolist()
            cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, -1)
    for _ in range(40):
        x, y = rng.integers(-30, size, 2).tolist()
        word = _WORDS[int(rng.integers(len(_WORDS)))]
        scale = float(rng.uniform(0.4, 2.2))
        _write(canvas, word, (x, y), scale, tuple(rng.uniform(0, 170, 3)))
    canvas += 7 * noise(size, size, seed + 3, slope=0.3)[..., None]
    return Texture(_picture(canvas))


@functools.cache
def foliage(seed: int, *, size: int = 512, tint: Colour = (92.0, 128.0, 58.0)) -> Texture:
    """The crown of a tree: many leaves in a ragged disc, the rest cut out."""
    rng = np.random.default_rng(seed)
    rgb = np.zeros((size, size, 3), np.float32)
    rgb[:] = np.array(tint) * 0.5
    alpha = np.zeros((size, size), np.float32)
    count = 2600
    angle, radius = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count))
    lobes = 0.72 + 0.16 * np.sin(angle * 3 + seed) + 0.1 * np.sin(angle * 7 + 2 * seed)
    x, y = (size / 2 * (1 + radius * lobes * np.cos(angle))), (size / 2 * (1 + radius * lobes * np.sin(angle)))
    for number in range(count):
        light = 0.45 + 0.75 * number / count - 0.25 * (y[number] / size - 0.5) + rng.uniform(-0.15, 0.15)
        centre = (int(x[number]), int(y[number]))
        axes = (int(rng.integers(5, 12)), int(rng.integers(3, 6)))
        turn = float(rng.uniform(0, 180))
        colour = (np.array(tint) * light * rng.uniform(0.85, 1.15, 3)).tolist()
        cv2.ellipse(rgb, centre, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
        cv2.ellipse(alpha, centre, axes, turn, 0, 360, 255.0, -1, cv2.LINE_AA)
    return Texture(_picture(rgb, alpha), wrap=False)


@functools.cache
def sky(seed: int) -> Texture:
    """Blue with clouds, paler towards the horizon."""
    height, width = 512, 1024
    cloud = np.clip(noise(height, width, seed, slope=1.8) * 0.6 + 0.15, 0, 1)[..., None]
    latitude = np.linspace(0, 1, height)[:, None, None] * 2
    blue = np.array([92.0, 140.0, 205.0]) + np.clip(latitude, 0, 1) ** 2 * np.array([108.0, 78.0, 35.0])
    return Texture(_picture((blue * (1 - cloud) + cloud * 243).astype(np.float32)))


BELT_ROW = 106
"""Row of the cars' pictures (256 rows, 1.45 m) where the cabin stands on the body."""


@functools.cache
def car_side(colour: Colour, *, cabin: bool) -> Texture:
    """The cabin or the body of a parked car from the side, cut out; 4.3 m by 1.45 m, nose on the right."""
    height, width = 256, 512
    rgb = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    rgb[:] = np.linspace(1.12, 0.72, height)[:, None, None] * np.array(colour)
    cabin_line = [(130, 106), (190, 28), (215, 20), (360, 20), (385, 28), (440, 106)]
    outline = np.array([(2, 205), (2, 106), *cabin_line, (509, 106), (509, 205)], np.int32)
    cv2.fillPoly(alpha, [outline], 255.0, cv2.LINE_AA)
    for shape in ([(148, 98), (198, 36), (280, 34), (280, 98)], [(292, 98), (292, 34), (368, 36), (420, 98)]):
        cv2.fillPoly(rgb, [np.array(shape, np.int32)], [36.0, 44.0, 52.0], cv2.LINE_AA)
        cv2.line(rgb, shape[0], (shape[1][0] + 12, shape[1][1] + 4), [120.0, 132.0, 140.0], 3, cv2.LINE_AA)
    for x in (142, 286, 424):
        cv2.line(rgb, (x, 102), (x, 190), [0.45 * c for c in colour], 2, cv2.LINE_AA)
    cv2.line(rgb, (10, 140), (505, 132), [0.6 * c for c in colour], 3, cv2.LINE_AA)
    cv2.rectangle(rgb, (0, 188), (width, 210), [40.0, 40.0, 42.0], -1)
    cv2.rectangle(rgb, (488, 116), (508, 132), [230.0, 222.0, 190.0], -1)
    cv2.rectangle(rgb, (4, 118), (22, 136), [190.0, 30.0, 30.0], -1)
    for x in (100, 412):
        for layer in (rgb, alpha):
            cv2.circle(layer, (x, 208), 44, [22.0, 22.0, 24.0] if layer is rgb else 255.0, -1, cv2.LINE_AA)
        cv2.circle(rgb, (x, 208), 27, [150.0, 152.0, 155.0], -1, cv2.LINE_AA)
        for spoke in range(5):
            end = (int(x + 25 * math.cos(spoke * 1.2566)), int(208 + 25 * math.sin(spoke * 1.2566)))
            cv2.line(rgb, (x, 208), end, [60.0, 60.0, 62.0], 4, cv2.LINE_AA)
    rgb += 5 * noise(height, width, 7, slope=0.6)[..., None]
    alpha[BELT_ROW:] *= not cabin
    alpha[:BELT_ROW] *= cabin
    return Texture(_picture(rgb, alpha), wrap=False)


@functools.cache
def car_glass(seed: int) -> Texture:
    """A windscreen in its frame; 1.5 m by 0.7 m."""
    glass = np.linspace(74, 40, 64)[:, None] + 6 * noise(64, 128, seed, slope=1.2)
    colour = glass[..., None] * np.array([0.85, 1.0, 1.1])
    colour[:4], colour[-4:], colour[:, :5], colour[:, -5:] = 28.0, 28.0, 28.0, 28.0
    return Texture(_picture(colour), wrap=False)


@functools.cache
def car_end(colour: Colour, *, lamps: Colour = (190.0, 30.0, 30.0)) -> Texture:
    """The back (or, with white lamps, the front) of a car's body, cut out; the picture is 1.74 m by 1.45 m."""
    size = 256
    rgb = np.zeros((size, size, 3), np.float32)
    alpha = np.zeros((size, size), np.float32)
    rgb[:] = np.linspace(1.15, 0.75, size)[:, None, None] * np.array(colour)
    alpha[BELT_ROW:216] = 255.0
    cv2.rectangle(rgb, (0, 184), (256, 215), [45.0, 45.0, 47.0], -1)
    cv2.rectangle(rgb, (88, 138), (168, 164), [232.0, 232.0, 224.0], -1)
    _write(rgb, "VS 3R", (92, 159), 0.75, (20.0, 20.0, 30.0))
    for x in (8, 214):
        cv2.rectangle(rgb, (x, 116), (x + 34, 146), list(lamps), -1)
        cv2.rectangle(rgb, (x, 214), (x + 34, 252), [22.0, 22.0, 24.0], -1)
        cv2.rectangle(alpha, (x, 210), (x + 34, 252), 255.0, -1)
    rgb += 5 * noise(size, size, 8, slope=0.6)[..., None]
    return Texture(_picture(rgb, alpha), wrap=False)


_SKIN = (224.0, 178.0, 150.0)
_WALK_FRAMES = 24


@functools.cache
def walker(seed: int) -> tuple[Texture, ...]:
    """A walking person from the side, facing +u, in the pictures of one walking cycle; 0.9 m by 1.8 m."""
    rng = np.random.default_rng(seed)
    shirt, trousers = tuple(rng.uniform(40, 225, 3)), tuple(rng.uniform(25, 120, 3))
    hair = tuple(rng.uniform(15, 110) * np.array([1.0, 0.8, 0.55]))
    cloth = noise(512, 256, seed, slope=0.8)
    stripes = 1.0 + 0.22 * np.sign(np.sin(np.arange(512) / rng.uniform(3, 9)))[:, None]
    plaid = stripes if rng.random() < 0.6 else np.ones((512, 1))
    return tuple(
        _walker_frame(2 * math.pi * k / _WALK_FRAMES, shirt, trousers, hair, cloth, plaid) for k in range(_WALK_FRAMES)
    )


def _walker_frame(
    phase: float, shirt: Colour, trousers: Colour, hair: Colour, cloth: F32, plaid: npt.NDArray[np.float64]
) -> Texture:
    rgb = np.zeros((512, 256, 3), np.float32)
    rgb[:] = shirt
    alpha = np.zeros((512, 256), np.float32)
    bob = 4 * math.cos(2 * phase)
    hip, shoulder = np.array([128.0, 268 + bob]), np.array([130.0, 112 + bob])

    def limb(
        start: npt.NDArray[np.float64], angle: float, length: float, thick: int, colour: Colour
    ) -> npt.NDArray[np.float64]:
        end = start + length * np.array([math.sin(angle), math.cos(angle)])
        a, b = start.astype(int).tolist(), end.astype(int).tolist()
        cv2.line(rgb, a, b, list(colour), thick, cv2.LINE_AA)
        cv2.line(alpha, a, b, 255.0, thick, cv2.LINE_AA)
        return end

    def leg(at: float, shade: float) -> None:
        colour = tuple(shade * c for c in trousers)
        thigh = 0.5 * math.sin(at)
        knee = limb(hip, thigh, 112, 46, colour)  # type: ignore[arg-type]
        ankle = limb(knee, thigh - 0.35 - 0.35 * math.cos(at), 108, 34, colour)  # type: ignore[arg-type]
        limb(ankle, 1.45, 26, 18, (30.0, 26.0, 24.0))

    def arm(at: float, shade: float) -> None:
        swing = 0.55 * math.sin(at)
        elbow = limb(shoulder + np.array([0.0, 14.0]), swing, 74, 28, tuple(shade * c for c in shirt))  # type: ignore[arg-type]
        hand = limb(elbow, swing + 0.35, 62, 24, tuple(shade * 0.95 * c for c in shirt))  # type: ignore[arg-type]
        limb(hand, swing + 0.35, 8, 20, _SKIN)

    leg(phase + math.pi, 0.7)
    arm(phase, 0.7)
    leg(phase, 1.0)
    torso = np.array([[98, 104], [160, 104], [164, 190], [156, 284], [98, 284], [92, 190]]) + [0, round(bob)]
    cv2.fillPoly(alpha, [torso.astype(np.int32)], 255.0, cv2.LINE_AA)
    patterned = (np.array(shirt) * plaid[..., None]).astype(np.float32) + np.zeros_like(rgb)
    mask = np.zeros((512, 256), np.float32)
    cv2.fillPoly(mask, [torso.astype(np.int32)], 1.0, cv2.LINE_AA)
    rgb[:] = np.where(mask[..., None] > 0.5, patterned, rgb)
    arm(phase + math.pi, 0.88)
    centre = (136, int(58 + bob))
    for layer, skin, top in ((rgb, list(_SKIN), list(hair)), (alpha, 255.0, 255.0)):
        cv2.line(layer, (130, int(110 + bob)), centre, skin, 26, cv2.LINE_AA)
        cv2.ellipse(layer, centre, (29, 38), 0, 0, 360, skin, -1, cv2.LINE_AA)
        cv2.ellipse(layer, (centre[0] - 4, centre[1] - 10), (32, 32), 0, 150, 330, top, -1, cv2.LINE_AA)
    rgb *= (1 + 0.1 * cloth)[..., None]
    return Texture(_picture(rgb, alpha), wrap=False)
