"""Random appearance: colors and textures of room and solids, wall panels, and lights."""

from __future__ import annotations

import colorsys

import numpy as np

from vitsplit.sample.layout import Light, Panel, Point
from vitsplit.sample.textures import RGB, Texture

Rng = np.random.Generator

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (200, 38, 40),
    "orange": (236, 124, 24),
    "yellow": (238, 206, 44),
    "green": (46, 146, 58),
    "blue": (38, 86, 190),
    "purple": (118, 54, 160),
    "pink": (238, 130, 170),
    "brown": (112, 70, 42),
    "white": (236, 234, 228),
    "black": (34, 34, 38),
}
"""Named colors of objects, in sRGB."""

LIGHT_SAMPLES = 24

_SOLID_PATTERNS = ("plain", "plain", "stripes", "checks", "dots", "grain", "marble", "weave", "terrazzo", "plaster")
_WALL_PATTERNS = ("plain", "plain", "plain", "plaster", "stripes", "brick", "dots", "hexagons", "planks")
_FLOOR_PATTERNS = ("planks", "planks", "tiles", "checks", "marble", "terrazzo", "hexagons", "plaster")
_CEILING_PATTERNS = ("plain", "plain", "plaster", "tiles", "planks")
_GLOSSY_FLOORS = ("planks", "tiles", "checks", "marble", "terrazzo", "hexagons")
_PERIOD = {
    "plain": (0.8, 1.6),
    "plaster": (0.5, 1.2),
    "stripes": (0.2, 0.5),
    "checks": (0.3, 0.6),
    "dots": (0.2, 0.4),
    "tiles": (0.3, 0.6),
    "brick": (0.09, 0.14),
    "planks": (0.12, 0.22),
    "grain": (0.4, 0.7),
    "marble": (0.6, 1.0),
    "terrazzo": (0.1, 0.18),
    "weave": (0.16, 0.3),
    "hexagons": (0.25, 0.45),
}
"""Range of the pattern's period in meters for the room; scaled with the size for solids."""
_WOODS = ((150, 104, 66), (186, 140, 92), (112, 74, 48), (205, 168, 124), (90, 66, 52))


def linear(srgb: tuple[float, ...]) -> RGB:
    """Converts sRGB values (0 to 255) to linear RGB (0 to 1)."""
    r, g, b = (
        float(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (value / 255 for value in srgb)
    )
    return r, g, b


def paint_solid(rng: Rng, scale: float) -> tuple[Texture, str]:
    """A texture in two shades of a named color for a solid of half width ``scale`` (meters), and the name."""
    name = str(rng.choice(list(COLORS)))
    kind = str(rng.choice(_SOLID_PATTERNS))
    main = np.clip(np.asarray(COLORS[name], float) + rng.normal(0, 6, 3), 8, 247)
    # The other shade has the same hue, so that the object has one color name.
    darker = name in ("white", "yellow", "pink") or (name != "black" and rng.random() < 0.5)
    lighter = rng.uniform(0.08, 0.16) if name == "black" else rng.uniform(0.16, 0.3)
    other = main * rng.uniform(0.6, 0.78) if darker else main + (255 - main) * lighter
    relative = _PERIOD[kind][0] * float(rng.uniform(1.0, 2.0))
    gloss = float(rng.choice([0.0, 0.03, 0.06, 0.12], p=[0.3, 0.3, 0.25, 0.15]))
    return Texture(
        kind, linear(tuple(main)), linear(tuple(other)), relative * scale * 2.2, 0.0, _shift(rng), gloss
    ), name


def paint_room(rng: Rng, room: Point) -> tuple[tuple[Texture, ...], tuple[Panel, ...]]:
    """Textures of the six planes, and pictures, doors and at most one window on the walls."""
    wall = _surface(rng, str(rng.choice(_WALL_PATTERNS)), _wall_color(rng))
    walls = [wall] * 4
    if rng.random() < 0.4:
        walls[rng.integers(4)] = _surface(rng, str(rng.choice(_WALL_PATTERNS)), _wall_color(rng))
    kind = str(rng.choice(_FLOOR_PATTERNS))
    wooden = kind == "planks" or rng.random() < 0.2
    floor_color = tuple(map(float, _WOODS[rng.integers(len(_WOODS))])) if wooden else _floor_color(rng)
    gloss = float(rng.choice([0.0, 0.03, 0.08])) if kind in _GLOSSY_FLOORS else 0.0
    floor = _surface(rng, kind, floor_color, gloss=gloss, angle=float(rng.choice([0, np.pi / 2, np.pi / 4])))
    light = rng.random() < 0.75
    ceiling_color = _hsv(rng, (0, 1), (0.0, 0.1), (0.85, 0.97)) if light else _hsv(rng, (0, 1), (0.1, 0.4), (0.45, 0.8))
    ceiling = _surface(rng, str(rng.choice(_CEILING_PATTERNS)), ceiling_color, contrast=0.5)
    return (*walls, floor, ceiling), _panels(rng, room)


def lights(rng: Rng, room: Point, panels: tuple[Panel, ...]) -> tuple[tuple[Light, ...], float, float]:
    """Area lights (a round ceiling lamp and the windows), the lamp's radius, and the ambient light."""
    key = float(rng.uniform(1.05, 1.5))
    radius = float(rng.uniform(0.22, 0.5))
    center = (*(float(extent * rng.uniform(0.3, 0.7)) for extent in room[:2]), room[2] - 0.01)
    i = np.arange(LIGHT_SAMPLES) + 0.5
    rho, turn = radius * np.sqrt(i / LIGHT_SAMPLES), i * np.pi * (3 - np.sqrt(5.0))
    points = np.asarray(center) + np.stack([rho * np.cos(turn), rho * np.sin(turn), 0 * i], 1)
    warm = float(rng.uniform(-0.04, 0.06))
    strength = key * (room[2] ** 2 + 0.5)
    power = (strength * (1 + warm), strength, strength * (1 - 1.5 * warm))
    found = [Light(points.astype(np.float32), np.asarray(center, np.float32), radius, (0.0, 0.0, -1.0), power)]
    found += [_window_light(rng, room, panel) for panel in panels if panel.glow is not None]
    ambient = float(rng.uniform(0.36, 0.5)) / len(found) ** 0.3
    return tuple(found), radius, ambient


def _window_light(rng: Rng, room: Point, panel: Panel) -> Light:
    i = np.arange(1, LIGHT_SAMPLES + 1)
    (u0, z0), (u1, z1) = panel.low, panel.high
    # The R2 sequence: strided subsets are evenly distributed too.
    u, z = u0 + (u1 - u0) * (i * 0.7548777 % 1), z0 + (z1 - z0) * (i * 0.5698403 % 1)
    axis, sign = panel.wall // 2, 1 - 2 * (panel.wall % 2)
    depth = np.full(LIGHT_SAMPLES, 0.01 if sign > 0 else room[axis] - 0.01)
    points = np.stack([depth, u, z] if axis == 0 else [u, depth, z], 1)
    center = points.mean(0)
    radius = float(np.hypot(u1 - u0, z1 - z0) / 2)
    strength = float(rng.uniform(2.5, 5.0))
    glow = np.asarray(panel.glow)
    r, g, b = (float(value) for value in strength * glow / glow.mean())
    facing = (float(sign), 0.0, 0.0) if axis == 0 else (0.0, float(sign), 0.0)
    return Light(points.astype(np.float32), center.astype(np.float32), radius, facing, (r, g, b))


def _panels(rng: Rng, room: Point) -> tuple[Panel, ...]:
    panels: list[Panel] = []
    window_wall = int(rng.integers(4)) if rng.random() < 0.5 else -1
    for wall in range(4):
        length = room[1] if wall < 2 else room[0]
        slots = int(length // 1.8)
        for slot in range(slots):
            middle = (slot + 0.5) * length / slots + float(rng.uniform(-0.1, 0.1))
            if wall == window_wall and slot == slots // 2:
                panels.append(_window(rng, wall, middle))
            elif rng.random() < 0.5:
                panels.append(_picture(rng, wall, middle) if rng.random() < 0.75 else _door(rng, wall, middle))
    return tuple(panels)


def _window(rng: Rng, wall: int, middle: float) -> Panel:
    half, z0, z1 = float(rng.uniform(0.45, 0.75)), float(rng.uniform(0.8, 1.0)), float(rng.uniform(1.9, 2.2))
    glow = ((1.1, 1.35, 1.7), (1.5, 1.45, 1.4), (1.8, 1.4, 1.05))[rng.integers(3)]
    white = linear((225, 222, 215))
    return Panel(wall, (middle - half, z0), (middle + half, z1), Texture("plain", white, white, 1.0), white, glow)


def _picture(rng: Rng, wall: int, middle: float) -> Panel:
    half, height, center = float(rng.uniform(0.25, 0.6)), float(rng.uniform(0.2, 0.45)), float(rng.uniform(1.4, 1.7))
    kind = str(rng.choice(["plaster", "marble", "checks", "dots", "stripes", "hexagons", "terrazzo"]))
    first, second = _hsv(rng, (0, 1), (0.2, 0.8), (0.3, 0.9)), _hsv(rng, (0, 1), (0.2, 0.8), (0.2, 0.95))
    texture = Texture(
        kind, linear(first), linear(second), float(rng.uniform(0.12, 0.4)), float(rng.uniform(0, 3)), _shift(rng)
    )
    frame = linear(((40, 36, 34), (225, 220, 210), (120, 84, 52), (176, 146, 80))[rng.integers(4)])
    return Panel(wall, (middle - half, center - height), (middle + half, center + height), texture, frame)


def _door(rng: Rng, wall: int, middle: float) -> Panel:
    wood = tuple(map(float, _WOODS[rng.integers(len(_WOODS))]))
    texture = _surface(rng, "grain", wood, angle=np.pi / 2)
    frame = linear(tuple(0.8 * value for value in wood))
    return Panel(wall, (middle - 0.45, -0.1), (middle + 0.45, 2.05), texture, frame)


def _surface(
    rng: Rng, kind: str, color: tuple[float, ...], *, contrast: float = 1.0, gloss: float = 0.0, angle: float = 0.0
) -> Texture:
    """A texture of the room; the second color is a lighter or darker shade of the first."""
    main = np.asarray(color, float)
    change = contrast * rng.uniform(0.2, 0.45)
    other = main * (1 - change) if rng.random() < 0.6 else main + (255 - main) * change
    other = np.clip(other + rng.normal(0, 8, 3), 5, 250)
    period = float(rng.uniform(*_PERIOD[kind]))
    return Texture(kind, linear(tuple(main)), linear(tuple(other)), period, angle, _shift(rng), gloss)


def _wall_color(rng: Rng) -> tuple[float, float, float]:
    if rng.random() < 0.35:
        return _hsv(rng, (0, 1), (0.0, 0.12), (0.6, 0.92))
    return _hsv(rng, (0, 1), (0.12, 0.5), (0.5, 0.88))


def _floor_color(rng: Rng) -> tuple[float, float, float]:
    return _hsv(rng, (0, 1), (0.0, 0.4), (0.35, 0.85))


def _hsv(
    rng: Rng, h: tuple[float, float], s: tuple[float, float], v: tuple[float, float]
) -> tuple[float, float, float]:
    r, g, b = colorsys.hsv_to_rgb(float(rng.uniform(*h)), float(rng.uniform(*s)), float(rng.uniform(*v)))
    return 255 * r, 255 * g, 255 * b


def _shift(rng: Rng) -> float:
    return float(rng.uniform(0, 60))
