"""How a miniature study looks: a chest from the front and from the side, and the findings in it.

Coordinates are fractions of the image, x to the right and y down. The patient's right lies left in the frontal view;
the lateral view looks to the left. A image is a map of attenuation (0 air outside, about 1 bone) turned into grey
values by a fixed curve, so that a finding changes the image only where it lies.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.miniature_set.text import BODY, FIRST_FINDING, TEXTURE, DrawnStudy, stream

VIEWS = ("frontal", "lateral")
SIGN = {"right": -1, "left": 1}                # side of the frontal image, seen from the midline


def sample_body(rng) -> dict[str, float]:
    """Shape and exposure of one patient, shared by both views."""
    return {
        "shift": rng.normal(0, 0.010), "width": rng.uniform(0.335, 0.385), "top": rng.uniform(0.09, 0.13),
        "right_dome": rng.uniform(0.70, 0.76), "left_lower": rng.uniform(0.010, 0.035),
        "heart": rng.uniform(0.40, 0.46), "heart_y": rng.uniform(0.575, 0.615), "knob": rng.uniform(0.034, 0.046),
        "breast": rng.uniform(0.05, 0.11) * (rng.random() < 0.5), "thick": rng.uniform(0.0, 0.08),
        "rib_pitch": rng.uniform(0.076, 0.088), "rib_phase": rng.uniform(0, 1), "rib": rng.uniform(0.07, 0.11),
        "stomach": rng.uniform(0.3, 1.0) * (rng.random() < 0.6), "marker": rng.random(),
        "depth": rng.uniform(-0.03, 0.03), "tilt": rng.normal(0, 0.010), "bright": rng.normal(0, 0.020),
        "gamma": rng.uniform(0.92, 1.08), "vessels": rng.uniform(0.8, 1.15), "noise": rng.uniform(0.008, 0.016),
    }


# ---- drawing tools ------------------------------------------------------------------------------------------------

def edge(distance, softness):
    """0 below zero, 1 above, a smooth ramp of about +-softness between (cheaper than a sigmoid)."""
    t = distance * np.float32(0.5 / softness)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    ramp = t * t
    t *= -2
    t += 3
    ramp *= t
    return ramp


def ellipse(x, y, cx, cy, rx, ry, turn=0.0, softness=0.1):
    """Soft ellipse [size, size]; softness as a share of its radius; `turn` in radians, clockwise in the image."""
    size = x.shape[1]
    out = np.zeros((size, size), np.float32)
    wide, high = ((rx, ry) if turn == 0 else (max(rx, ry),) * 2)
    x0, x1 = (int(np.clip((cx + way * wide * (1 + softness)) * size + way, 0, size)) for way in (-1, 1))
    y0, y1 = (int(np.clip((cy + way * high * (1 + softness)) * size + way, 0, size)) for way in (-1, 1))
    if x0 >= x1 or y0 >= y1:
        return out
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    dx, dy = x[:, x0:x1] - np.float32(cx), y[y0:y1] - np.float32(cy)
    along = dx * (c / np.float32(rx)) + dy * (s / np.float32(rx))
    across = dy * (c / np.float32(ry)) - dx * (s / np.float32(ry))
    out[y0:y1, x0:x1] = edge(1 - np.sqrt(along * along + across * across), softness)
    return out


def strokes(size: int, lines, blur: float = 0.0) -> np.ndarray:
    """Lines [(points, width)] in fractions of the image, drawn at double size; `blur` likewise. [size, size] 0..1."""
    big = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(big)
    for points, width in lines:
        thick = max(1, round(width * 2 * size))
        pen.line([(px * 2 * size, py * 2 * size) for px, py in points], fill=255, width=thick, joint="curve")
    drawn = big.reduce(2)
    if blur:
        drawn = drawn.filter(ImageFilter.GaussianBlur(blur * size))
    return np.asarray(drawn, dtype=np.float32) / 255


def mottle(rng, size: int, cells: int) -> np.ndarray:
    """Smooth noise, about -1..1, with `cells` humps across the image whatever its size."""
    small = Image.fromarray(rng.normal(0, 0.5, (cells, cells)).astype(np.float32))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def vessel_tree(rng, x, y, heading, width, length, depth=0):
    """Branching strokes of a lung's vessels, from the hilum outwards."""
    lines, points = [], [(x, y)]
    for _ in range(4):
        heading += rng.normal(0, 0.16)
        x, y = x + length / 4 * np.cos(heading), y + length / 4 * np.sin(heading)
        points.append((x, y))
    lines.append((points, width))
    if depth < 3:
        for turn in (rng.uniform(0.25, 0.65), -rng.uniform(0.25, 0.65)):
            lines += vessel_tree(rng, x, y, heading + turn, width * 0.66, length * 0.8, depth + 1)
    return lines


@functools.lru_cache(maxsize=8)
def grid(size: int):
    """x and y of the pixel centres, in fractions, as [1, size] and [size, 1]."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[None, :], at[:, None]


# ---- the frontal view ---------------------------------------------------------------------------------------------

class Frontal:
    """One patient from the front, as soft masks [size, size]; findings change them, `image` adds them up."""

    def __init__(self, body: dict, size: int, heart_scale: float = 1.0):
        self.body, self.size, self.fine = body, size, 1.0 / size
        self.x, self.y = x, y = grid(size)
        self.cx, self.top, self.wide = 0.5 + body["shift"], body["top"], body["width"]
        soft = max(0.006, self.fine)
        self.lung, self.outer, self.inner, self.depth, self.dome, self.floor = {}, {}, {}, {}, {}, {}
        for side, sign in SIGN.items():
            self.dome[side] = body["right_dome"] + (body["left_lower"] if side == "left" else 0.0)
            t = np.clip((y - self.top) / (self.dome[side] + 0.10 - self.top), 0, 1)
            outer = 0.13 + (self.wide - 0.13) * np.sqrt(1 - (1 - t) ** 2.6)
            inner = 0.13 - 0.075 * np.sqrt(1 - (1 - t) ** 4)
            away = sign * (x - self.cx - np.float32(body["tilt"]) * (y - 0.5))          # distance from the midline
            u = (away - 0.20) / np.float32(self.wide - 0.19)
            floor = self.dome[side] + np.where(u > 0, 0.12 * np.abs(u) ** 2.4, 0.05 * np.abs(u) ** 2)
            self.outer[side], self.inner[side], self.depth[side], self.floor[side] = outer, inner, away, floor
            self.lung[side] = edge(outer - away, soft) * edge(away - inner, soft) * edge(floor - y, soft) \
                * edge(y - self.top, soft)
        self.away = np.abs(x - self.cx)
        self.heart = self._heart(heart_scale)
        self.aerated = {side: self.lung[side] * (1 - 0.80 * self.heart) for side in SIGN}
        self.added = np.zeros((size, size), np.float32)         # findings: tissue, fluid and metal
        self.markings = np.ones((size, size), np.float32)       # findings: vessel markings kept
        self.rib_shift = None

    def _heart(self, scale: float):
        """`scale` 1 is a normal heart: its width over the chest's is body['heart']."""
        half = self.wide * self.body["heart"] * scale
        start, end = self.top + 0.30 - 0.03 * (scale - 1), self.body["heart_y"] + 0.19
        t = np.clip((self.y - start) / (end - start), 0, 1)
        apex = np.sin(np.pi / 2 * np.clip(t / 0.76, 0, 1) ** 1.25) * np.sqrt(1 - np.clip((t - 0.76) / 0.30, 0, 1) ** 2)
        bulge = np.sin(np.pi * np.clip(0.04 + 0.93 * t, 0, 1)) ** 0.6
        left = 0.055 + (1.34 * half - 0.055) * apex
        right = 0.050 + (0.66 * half - 0.050) * bulge
        across = self.x - self.cx
        return edge(left - across, 0.014) * edge(right + across, 0.014) * edge(self.y - start, 0.02) \
            * edge(end - self.y, 0.02)

    def spot(self, side: str, height: float, across: float) -> tuple[float, float]:
        """A point inside the visible lung: height 0 apex .. 1 base, across 0 mediastinum or heart .. 1 chest wall."""
        py = self.top + height * (self.dome[side] + 0.04 - self.top)
        row = min(int(py * self.size), self.size - 1)
        free = np.flatnonzero(self.aerated[side][row] > 0.5)
        first, last = (free[0], free[-1]) if SIGN[side] > 0 else (free[-1], free[0])
        return float(first + across * (last - first) + 0.5) / self.size, float(py)

    def image(self, rng) -> np.ndarray:
        """The attenuation map [size, size]."""
        b, x, y = self.body, self.x, self.y
        lungs = sum(self.lung.values())
        shoulder = 0.10 + 0.46 * edge(y - 0.115, 0.085)
        flank = self.wide + 0.075 + b["thick"] * 0.6 + 0.03 * edge(y - 0.5, 0.4)
        half = shoulder + (flank - shoulder) * edge(y - 0.42, 0.20) * (shoulder > flank)
        within = edge(half - self.away, 0.02)
        arm = edge(self.away - flank - 0.045 - 0.04 * edge(y - 0.4, 0.4), 0.012) * edge(y - 0.30, 0.1) * 0.30
        wall = np.sqrt(np.clip((half - self.away) / 0.16, 0, 1))
        total = within * (0.28 + 0.34 * wall + b["thick"]) + arm
        total = total + 0.16 * edge(y - 0.80, 0.14) * within + 0.05 * edge(0.12 - self.away, 0.06) * within

        air = sum(self.aerated.values())
        total = total - (0.44 - 0.10 * y) * air
        trunk = ellipse(x, y, self.cx + 0.058, self.top + 0.285, 0.042, 0.060, 0, 0.3)
        total = total + lungs * (0.24 * self.knob() + 0.12 * trunk + 0.10 * self.veins()) + 0.07 * self.heart

        column = self.column()
        disks = 0.5 + 0.5 * np.cos((y - 0.02) * np.float32(2 * np.pi / 0.062))
        total = total + column * (0.09 + 0.05 * disks) * (1 - 0.35 * self.heart)
        spine_edge = np.exp(-((self.away - 0.042) / 0.008) ** 2)
        total = total + 0.04 * spine_edge
        total = total - 0.15 * self.windpipe()

        total = total + self._vessels(rng) * self.markings
        total = total + self._bones()
        for sign in SIGN.values():
            breast = ellipse(x, y, self.cx + sign * 0.21, 0.60, 0.155, 0.17, 0, 0.14)
            total = total + b["breast"] * breast * edge(y - 0.5, 0.25)
        gas = ellipse(x, y, self.cx + 0.17, self.dome["left"] + 0.075, 0.06, 0.032, 0.1, 0.25)
        total = total - 0.16 * b["stomach"] * gas * (1 - lungs)
        return np.maximum(total, 0.02) + self.added

    def knob(self):
        """The aortic knob."""
        return ellipse(self.x, self.y, self.cx + 0.060, self.top + 0.185, self.body["knob"], 0.042, 0, 0.15)

    def veins(self):
        """The superior vena cava, down to the right atrium."""
        return ellipse(self.x, self.y, self.cx - 0.045, self.top + 0.23, 0.032, 0.16, 0, 0.3)

    def column(self):
        """The spine."""
        return edge(0.042 - self.away, 0.010)

    def windpipe(self):
        """The trachea, which ends at the carina."""
        return edge(0.019 - np.abs(self.x - self.cx + 0.004), 0.008) * edge(self.top + 0.245 - self.y, 0.03)

    def hilum(self, side: str):
        """The hilum of one side."""
        s = SIGN[side]
        return ellipse(self.x, self.y, self.cx + s * 0.088, self.top + 0.31 - 0.012 * s, 0.030, 0.062, 0.3 * s, 0.5)

    def collar_bones(self):
        """The clavicles of both sides."""
        line = self.top + 0.060 - 0.16 * (self.away - 0.03) - 0.035 * np.sin(self.away * 12)
        shaft = edge(0.0135 - np.abs(self.y - line), 0.006)
        return shaft * edge(self.away - 0.035, 0.01) * edge(0.40 - self.away, 0.03)

    def _vessels(self, rng):
        lines = []
        for sign in SIGN.values():
            root = (self.cx + sign * 0.075, self.top + 0.30 - 0.012 * sign)
            for heading in (-1.25, -0.75, -0.15, 0.45, 0.95, 1.35):
                angle = heading + rng.normal(0, 0.12)
                angle = angle if sign > 0 else np.pi - angle
                lines += vessel_tree(rng, *root, angle, 0.013, 0.105)
        drawn = strokes(self.size, lines, blur=0.0035)
        air = sum(self.aerated.values())
        hila = sum(map(self.hilum, SIGN))
        fading = 1 - 0.75 * edge(self.away - 0.10, 0.22)
        texture = mottle(rng, self.size, 60) * 0.020 + mottle(rng, self.size, 14) * 0.014
        return air * self.body["vessels"] * (0.20 * drawn * fading + 0.12 * hila + texture)

    def _bones(self):
        """Ribs as one periodic pattern (all at once), collar bones and shoulder blades."""
        b, x, y = self.body, self.x, self.y
        u = self.away / np.float32(self.wide)
        rise = -0.055 * np.sin(np.minimum(u, 1) * 2.2) + 0.10 * u * u * u
        at = (y - self.top - rise) / np.float32(b["rib_pitch"]) + np.float32(b["rib_phase"])
        keep, bump = 1.0, 0.0
        if self.rib_shift is not None:
            shift, keep, bump = self.rib_shift
            at = at - shift / np.float32(b["rib_pitch"])
        cage = sum(edge(self.outer[s] + 0.022 - self.depth[s], 0.008) * edge(self.depth[s] - 0.03, 0.01) for s in SIGN)
        cage = cage * edge(y - self.top - 0.015, 0.02) * edge(0.90 - y, 0.06)
        across = np.abs(at - np.floor(at) - 0.5) * 2                               # 0 middle of a rib .. 1 between two
        back = edge(0.46 - across, 0.10) * (0.75 + 0.5 * np.clip(across / 0.46, 0, 1) ** 2)
        slope = (y - self.top - 0.15 + 0.42 * (u - 1.0) ** 2 - 0.20 * u) / np.float32(b["rib_pitch"] * 1.1)
        beyond = np.abs(slope - np.floor(slope) - 0.5) * 2
        front = edge(0.42 - beyond, 0.14) * edge(u - 0.42, 0.15)
        ribs = cage * (b["rib"] * back * keep + 0.35 * b["rib"] * front) + bump
        rim = sum(np.exp(-((self.depth[s] - self.outer[s] - 0.008) / 0.012) ** 2) for s in SIGN)
        ribs = ribs + 0.05 * rim * edge(y - self.top - 0.05, 0.05) * edge(0.85 - y, 0.05)
        blades = sum(ellipse(x, y, self.cx + s * 0.385, self.top + 0.13, 0.040, 0.15, -0.25 * s, 0.25)
                     for s in SIGN.values())
        return ribs + 0.15 * self.collar_bones() + 0.06 * blades


# ---- the lateral view ---------------------------------------------------------------------------------------------

class Lateral:
    """The same patient from the side: breast bone left, spine right."""

    def __init__(self, body: dict, size: int, heart_scale: float = 1.0):
        self.body, self.size, self.fine = body, size, 1.0 / size
        self.x, self.y = x, y = grid(size)
        self.top, self.dome = body["top"] + 0.01, body["right_dome"] - 0.02
        soft = max(0.008, self.fine)
        t = np.clip((y - self.top) / 0.72, 0, 1)
        self.front = 0.385 - (0.20 + body["depth"]) * t ** 0.75
        self.back = 0.66 + 0.36 * t - 0.26 * t ** 2
        reach = np.clip((x - self.front) / (self.back - self.front), 0, 1)
        self.reach = reach                                                         # 0 breast bone .. 1 back
        floor = self.dome + 0.16 * np.abs(reach - 0.30) ** 1.6 * np.where(reach > 0.3, 1.9, 1.0)
        self.floor = floor
        self.lung = edge(x - self.front, soft) * edge(self.back - x, soft) * edge(floor - y, soft) \
            * edge(y - self.top - 0.10 * (2 * reach - 1) ** 2, 0.03)
        half = 0.128 * (0.45 + 0.55 * heart_scale) * (0.9 + body["heart"] * 0.23)
        middle = self.front_at(0.58) + 0.080 + 0.35 * half
        self.heart = ellipse(x, y, middle, body["heart_y"] + 0.035, half * 1.38, half * 1.06, -0.70, 0.30)
        self.aerated = self.lung * (1 - 0.58 * self.heart)
        self.added = np.zeros((size, size), np.float32)
        self.markings = np.ones((size, size), np.float32)

    def front_at(self, y: float) -> float:
        return float(self.front[min(int(y * self.size), self.size - 1), 0])

    def back_at(self, y: float) -> float:
        return float(self.back[min(int(y * self.size), self.size - 1), 0])

    def spot(self, height: float, across: float) -> tuple[float, float]:
        """A point in the lungs: height 0 apex .. 1 base, across 0 breast bone .. 1 back."""
        py = self.top + height * (self.dome + 0.06 - self.top)
        return self.front_at(py) + across * (self.back_at(py) - self.front_at(py)), py

    def image(self, rng) -> np.ndarray:
        b, x, y = self.body, self.x, self.y
        skin_front = self.front - 0.055 - b["thick"] * 0.6 - b["breast"] * 0.8 * np.exp(-((y - 0.55) / 0.14) ** 2)
        skin_front = skin_front + 0.10 * edge(0.10 - y, 0.12)
        skin_back = self.back + 0.115 + b["thick"] * 0.4 + 0.03 * np.sin((y - 0.1) * 3)
        within = edge(x - skin_front, 0.012) * edge(skin_back - x, 0.012)
        wall = np.sqrt(np.clip(np.minimum(x - skin_front, skin_back - x) / 0.13, 0, 1))
        total = within * (0.26 + 0.38 * wall + b["thick"])
        total = total + within * (0.18 * edge(y - 0.80, 0.14) + 0.16 * edge(self.top + 0.07 - y, 0.12))
        arms = edge(0.13 - np.abs(y - self.top - 0.02 + 0.22 * (x - 0.45)), 0.07)
        total = total + 0.16 * arms * edge(0.75 - x, 0.1)

        total = total - (0.40 - 0.12 * y + 0.06 * self.reach * edge(y - 0.45, 0.2)) * self.aerated + 0.06 * self.heart
        arch = ellipse(x, y, 0.53, self.top + 0.20, 0.055, 0.06, 0, 0.4)
        total = total + 0.07 * arch * self.lung
        axis = self.back - 0.035
        column = edge(0.040 - np.abs(x - axis), 0.012)
        blocks = 0.5 + 0.5 * np.cos((y + 0.15 * (x - axis)) * np.float32(2 * np.pi / 0.068))
        total = total + column * (0.08 + 0.07 * edge(blocks - 0.22, 0.25)) * edge(y - 0.05, 0.05)
        bone = np.exp(-((x - self.front + 0.012) / 0.011) ** 2) * edge(y - self.top - 0.05, 0.05) * edge(0.72 - y, 0.05)
        total = total + 0.10 * bone
        pitch = np.float32(b["rib_pitch"] * 0.95)
        at = (y - 0.26 * (self.reach - 0.2) ** 2 + 0.24 * self.reach + 0.02) / pitch + np.float32(b["rib_phase"])
        across = np.abs(at - np.floor(at) - 0.5) * 2
        ribs = edge(0.40 - across, 0.12) * edge(self.reach - 0.35, 0.3) * edge(x - self.front, 0.01)
        total = total + 0.6 * b["rib"] * ribs * edge(self.back + 0.03 - x, 0.01) * edge(y - self.top - 0.02, 0.03) \
            * edge(0.9 - y, 0.05)
        windpipe = edge(0.020 - np.abs(x - 0.49 - 0.12 * (y - self.top)), 0.009) * edge(self.top + 0.23 - y, 0.03)
        total = total - 0.12 * windpipe

        lines = []
        for heading in (-2.6, -1.9, -1.1, -0.3, 0.4, 1.0, 1.6, 2.3):
            lines += vessel_tree(rng, 0.525, self.top + 0.32, heading + rng.normal(0, 0.12), 0.012, 0.085)
        hilum = ellipse(x, y, 0.525, self.top + 0.31, 0.045, 0.055, 0, 0.5)
        texture = mottle(rng, self.size, 60) * 0.020 + mottle(rng, self.size, 14) * 0.016
        marks = self.aerated * b["vessels"] * (0.11 * strokes(self.size, lines, 0.005) + 0.12 * hilum + texture)
        total = total + marks * self.markings
        second = self.floor + 0.028                                     # the other half of the diaphragm
        total = total + 0.05 * np.exp(-((y - second) / 0.006) ** 2) * within * edge(self.back - x, 0.02)
        return np.maximum(total, 0.02) + self.added


# ---- findings -----------------------------------------------------------------------------------------------------
# Each takes (view, finding, rng), changes the anatomy and returns its mask [size, size] 0..1, or None: not seen here.

DEGREE = {"small": 0, "mild": 0, "moderate": 1, "large": 2, "severe": 2}
HEART_SCALE = {"mild": 1.27, "moderate": 1.45, "severe": 1.66}
HEIGHT = {"upper": 0.27, "mid": 0.52, "lower": 0.80, "base": 0.86}


def fill(view, cover, strength: float) -> None:
    """Less air where `cover` is 1: the lung takes the grey of soft tissue, and its vessels fade."""
    parts = view.aerated.items() if isinstance(view.aerated, dict) else [(None, view.aerated)]
    for side, air in parts:
        if side is None:
            view.aerated = air * (1 - strength * cover)
        else:
            view.aerated[side] = air * (1 - strength * cover)


def lung_of(view, finding):
    return view.lung[finding.side] if isinstance(view, Frontal) else view.lung


def on_side(view, finding):
    """1 on the finding's side of the midline (a mask times the lung's own soft rim would leave a dark seam)."""
    return edge(view.depth[finding.side], 0.004) if isinstance(view, Frontal) else 1.0


def place_of(view, finding, rng, spread=0.04):
    """Centre of a focal finding; both views take the same numbers from `rng`, so the heights agree."""
    height = HEIGHT[finding.place] + rng.uniform(-spread, spread)
    across, depth = rng.uniform(0.38, 0.68), rng.uniform(0.55, 0.80)
    return view.spot(finding.side, height, across) if isinstance(view, Frontal) else view.spot(height, depth)


def draw_heart(view, finding, rng):
    return view.heart


def draw_effusion(view, finding, rng):
    level = (0.035, 0.13, 0.27)[DEGREE[finding.size]] + rng.uniform(-0.012, 0.012)
    if isinstance(view, Frontal):
        base = view.dome[finding.side] + 0.045
        share = np.clip(view.depth[finding.side] / np.float32(view.wide), 0, 1)
        surface = base - level - 0.075 * share ** 4                      # fluid climbs along the chest wall
    else:
        surface = view.dome + 0.15 - level - 0.085 * view.reach ** 3
    fluid = edge(view.y - surface, 0.012) * on_side(view, finding)
    fill(view, fluid, 1.0)
    view.markings = view.markings * (1 - fluid)
    cover = fluid * lung_of(view, finding)
    view.added += 0.05 * cover
    return cover


def draw_cloud(view, finding, rng):
    """Consolidation (dense, patchy, ragged) or a hazy opacity (pale, even, soft)."""
    dense = finding.kind == "consolidation"
    px, py = place_of(view, finding, rng)
    radius = ((0.072, 0.115) if dense else (0.080, 0.130))[DEGREE[finding.size] > 0] * rng.uniform(0.92, 1.08)
    narrow = 0.85 if isinstance(view, Frontal) else 1.0
    cover = ellipse(view.x, view.y, px, py, radius * narrow, radius, rng.uniform(-0.5, 0.5), 0.60)
    if dense:
        for angle in rng.uniform(0, 1.6) + np.arange(4) * 1.57:
            reach = radius * rng.uniform(0.5, 0.9)
            patch = ellipse(view.x, view.y, px + narrow * reach * np.cos(angle), py + reach * np.sin(angle),
                            radius * rng.uniform(0.35, 0.65), radius * rng.uniform(0.35, 0.65), angle, 0.8)
            cover = np.maximum(cover, patch)
        cover = np.clip(cover * (1.05 + 0.45 * mottle(rng, view.size, 32)), 0, 1) * lung_of(view, finding)
        fill(view, cover, 0.80)
        view.added += 0.05 * cover
        view.markings = view.markings * (1 - 0.8 * cover)
    else:
        cover = cover * lung_of(view, finding)
        fill(view, cover, 0.52)
    return cover


def draw_lesion(view, finding, rng):
    px, py = place_of(view, finding, rng)
    radius = {"nodule": 0.036, "mass": 0.078}[finding.kind] * rng.uniform(0.92, 1.08)
    cover = ellipse(view.x, view.y, px, py, radius * rng.uniform(0.92, 1.08), radius, 0, 0.16)
    if finding.kind == "mass":
        lobes = [ellipse(view.x, view.y, px + radius * 0.7 * np.cos(a), py + radius * 0.7 * np.sin(a), radius * 0.5,
                         radius * 0.5, 0, 0.25) for a in rng.uniform(0, 6.28, 3)]
        cover = np.maximum.reduce([cover, *lobes])
    cover = cover * lung_of(view, finding)
    fill(view, cover, 0.55)
    view.added += 0.13 * cover
    return cover


def draw_bands(view, finding, rng):
    px, py = place_of(view, finding, rng, spread=0.02)
    much = DEGREE[finding.severity] > 0
    length, thick = ((0.085, 0.011), (0.120, 0.016))[much]
    turn = rng.uniform(-0.25, 0.25)
    cover = np.zeros((view.size, view.size), np.float32)
    for step in range(3 if much else 2):
        dx, dy = rng.uniform(-0.015, 0.015), (step - (1 if much else 0.5)) * 0.045
        reach, angle = length * rng.uniform(0.85, 1.1), turn + rng.normal(0, 0.08)
        cover = np.maximum(cover, ellipse(view.x, view.y, px + dx, py + dy, reach, thick, angle, 0.5))
    cover = cover * lung_of(view, finding)
    fill(view, cover, 0.35)
    view.added += 0.17 * cover
    return cover


def draw_edema(view, finding, rng):
    strength = (0.42, 0.58, 0.74)[DEGREE[finding.severity]]
    reach = (0.85, 1.0, 1.15)[DEGREE[finding.severity]]
    patches = 1 + 0.30 * mottle(rng, view.size, 22)
    if isinstance(view, Frontal):
        wide, high, middle = 0.135 * reach, 0.25 * reach, view.top + 0.36
        wings = [ellipse(view.x, view.y, view.cx + s * 0.135, middle, wide, high, 0.12 * s, 0.75)
                 for s in SIGN.values()]
        lungs = sum(view.lung.values())
        cover = np.clip(sum(wings) * patches, 0, 1) * lungs
        ends = [(view.cx + s * (view.wide - 0.012), view.cx + s * (view.wide - 0.075)) for s in SIGN.values()]
        lines = [([(wall, at), (deep, at + rng.normal(0, 0.004))], 0.006)
                 for wall, deep in ends for at in rng.uniform(0.52, 0.74, 6)]
        kerley = strokes(view.size, lines) * lungs                      # short lines at the chest wall
    else:
        cover = ellipse(view.x, view.y, 0.525, view.top + 0.34, 0.17 * reach, 0.22 * reach, 0, 0.75)
        cover, kerley = np.clip(cover * patches, 0, 1) * view.lung, 0.0
    fill(view, cover, strength)
    view.markings = view.markings * (1 + 0.6 * cover)
    view.added += 0.10 * kerley
    return cover


def draw_pneumothorax(view, finding, rng):
    """A dark rim without vessels outside a thin white line, widest at the apex. Not seen from the side."""
    if not isinstance(view, Frontal):
        return None
    gap, drop = ((0.030, 0.115), (0.060, 0.180), (0.115, 0.270))[DEGREE[finding.size]]
    side, far = finding.side, 1.0 if finding.size == "large" else 0.55
    t = np.clip((view.y - view.top) / 0.62, 0, 1)
    wall = (view.outer[side] - view.depth[side]) - gap * (1 - t / np.float32(far + 0.35))
    apex = (view.y - view.top - drop + 3.0 * (view.depth[side] - 0.10) ** 2) * 0.7
    inside = 0.5 * (wall + apex - np.hypot(wall - apex, 0.045))          # > 0: still lung; a rounded minimum
    lung = view.lung[side]
    fade = edge(far + 0.15 - t, 0.10)
    cover = edge(-inside, 0.004 + view.fine / 2) * lung * fade
    view.markings = view.markings * (1 - cover)
    view.added -= 0.115 * cover
    view.added += 0.13 * np.exp(-(inside / np.float32(0.0055)) ** 2) * lung * fade
    shrunk = lung * (1 - cover) * fade
    view.aerated[side] = view.aerated[side] * (1 - (0.05, 0.12, 0.25)[DEGREE[finding.size]] * shrunk)
    return cover


def draw_fracture(view, finding, rng):
    """A rib broken near the chest wall: gap, step and bright ends. Not seen from the side."""
    if not isinstance(view, Frontal):
        return None
    b, sign = view.body, SIGN[finding.side]
    u0 = 0.80 + rng.uniform(-0.04, 0.04)
    target = {"upper": 0.36, "lower": 0.60}[finding.place] + rng.uniform(-0.02, 0.02)
    rise = -0.055 * np.sin(u0 * 2.2) + 0.10 * u0 ** 3
    rib = np.floor((target - view.top - rise) / b["rib_pitch"] + b["rib_phase"]) + 0.5
    py = (rib - b["rib_phase"]) * b["rib_pitch"] + view.top + rise
    px = view.cx + sign * u0 * view.wide
    much = DEGREE[finding.severity] > 0
    step = (0.018, 0.034)[much]
    near = ellipse(view.x, view.y, px, py, 0.115, 0.052, 0, 0.25)
    beyond = edge(sign * (view.x - px), 0.004)
    gap = np.exp(-((view.x - px) / 0.007) ** 2) * near
    inner = ellipse(view.x, view.y, px - sign * 0.026, py, 0.030, 0.021, 0.3 * sign, 0.4)
    outer = ellipse(view.x, view.y, px + sign * 0.026, py + step, 0.030, 0.021, 0.5 * sign, 0.4)
    ends = np.maximum(inner, outer)
    view.rib_shift = (near * beyond * np.float32(step), 1 - gap * 0.9, (0.18, 0.22)[much] * ends)
    return ends


def draw_device(view, finding, rng):
    """Metal and plastic: a pacemaker with its lead, a central venous catheter, or an endotracheal tube."""
    frontal = isinstance(view, Frontal)
    sway = rng.normal(0, 0.006, 8)
    sign = SIGN.get(finding.side, 0)
    case = 0.0
    if finding.kind == "tube":
        if not frontal:
            return None
        path = [(view.cx + 0.004, 0.0), (view.cx + sway[0], view.top + 0.09), (view.cx + sway[1], view.top + 0.175)]
        lines = [(path, 0.017)]
    elif frontal:
        cava = view.cx - 0.052 + sway[0]
        vein = [(view.cx + sign * 0.24, view.top + 0.115), (view.cx + sign * 0.15, view.top + 0.065 + sway[1]),
                (view.cx + sign * 0.07, view.top + 0.085), (cava, view.top + 0.16)]
        if finding.kind == "pacemaker":
            box = (view.cx + sign * (0.275 + sway[2]), view.top + 0.155 + sway[3])
            case = ellipse(view.x, view.y, *box, 0.056, 0.046, 0.3 * sign, 0.12)
            apex = (view.cx + 0.12 + sway[4], view.body["heart_y"] + 0.085)
            atrium = (cava + 0.004, view.top + 0.36), (view.cx - 0.01, view.body["heart_y"] + 0.03)
            lines = [([box, *vein, *atrium, apex], 0.010)]
        else:
            entry_point = (view.cx + sign * 0.33, view.top + 0.10)
            lines = [([entry_point, *vein, (cava, view.top + 0.30 + sway[5])], 0.0125)]
    elif finding.kind == "pacemaker":
        box = (view.front_at(0.27) + 0.03, 0.27 + sway[3])
        case = ellipse(view.x, view.y, *box, 0.026, 0.056, 0.3, 0.15)
        lines = [([box, (0.44, 0.23), (0.47, 0.34), (0.44, 0.56), (0.36 + sway[4], 0.66)], 0.010)]
    else:
        lines = [([(0.40, 0.02), (0.44, 0.16), (0.465, 0.30), (0.465, view.top + 0.34)], 0.0125)]
    cover = np.maximum(strokes(view.size, lines), case)
    weight = {"pacemaker": 0.42, "catheter": 0.30, "tube": 0.28}[finding.kind]
    view.added += weight * cover
    return cover


DRAW = {
    "Cardiomegaly": draw_heart,
    "Edema": draw_edema,
    "Consolidation": draw_cloud,
    "Lung Opacity": draw_cloud,
    "Lung Lesion": draw_lesion,
    "Atelectasis": draw_bands,
    "Pneumothorax": draw_pneumothorax,
    "Pleural Effusion": draw_effusion,
    "Fracture": draw_fracture,
    "Support Devices": draw_device,
}


def patient_of(study: DrawnStudy, findings) -> tuple[dict, float]:
    """Measures of a study's patient, and the scale that `findings` give the heart."""
    scale = next((HEART_SCALE[f.severity] for f in findings if f.label == "Cardiomegaly"), 1.0)
    return sample_body(stream(study.seed, study.index, BODY)), scale


def draw(study: DrawnStudy, view: str, image_size: int, without: int | None = None):
    """One image, uint8 [image_size, image_size], and the mask of each finding ([..] 0..1, or None: not seen).

    `without` leaves the finding of that number undrawn (its mask is None); all the rest is the same.
    """
    drawn = [finding for number, finding in enumerate(study.findings) if number != without]
    body, heart_scale = patient_of(study, drawn)  # the findings have not changed the lungs yet
    anatomy = (Frontal if view == "frontal" else Lateral)(body, image_size, heart_scale)
    masks = []
    for number, finding in enumerate(study.findings):
        rng = stream(study.seed, study.index, FIRST_FINDING + number)
        masks.append(None if number == without else DRAW[finding.label](anatomy, finding, rng))
    rng = stream(study.seed, study.index, TEXTURE + VIEWS.index(view))
    total = anatomy.image(rng)
    grain = rng.standard_normal((image_size, image_size), dtype=np.float32)
    grain = grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1)
    grey = np.clip(total * 1.06 + body["bright"], 0, None) ** np.float32(body["gamma"])
    square = (grey / 1.05) ** 2
    grey = grey / np.sqrt(np.cbrt(1 + square * square * square))        # bone and metal saturate softly
    grey = grey + body["noise"] * 0.6 * grain
    if view == "frontal" and body["marker"] < 0.6:
        x, y = grid(image_size)
        letter = np.maximum(edge(0.005 - np.abs(x - 0.925), 0.003) * edge(0.022 - np.abs(y - 0.045), 0.003),
                            edge(0.013 - np.abs(x - 0.937), 0.003) * edge(0.005 - np.abs(y - 0.064), 0.003))
        grey = np.maximum(grey, letter * 0.95)
    return (np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8), masks
