"""Whether an image can be a chest radiograph at all: a simple rule that finds what is empty, coloured, tiny or noise.

It knows nothing of anatomy: a grey photograph, or the radiograph of a hand, passes. On IU X-Ray's images the values are:
contrast at least 37, neighbours' correlation at least .94, colour 0, sides at most 1.5 : 1.
"""

import numpy as np
from PIL import Image

LEAST_SIDE = 64  # pixels
LONGEST = 2.5  # longer by shorter side
COLOUR = 6.0  # mean distance of the strongest channel from grey, of 255
CONTRAST = 8.0  # standard deviation of the grey levels, of 255
SMOOTH = 0.7  # correlation of neighbouring pixels
_SIDE = 128  # the rule looks at a smaller copy


def doubts(image: Image.Image) -> list[str]:
    """Why an image is hardly a chest radiograph, in a few words each; none for one that may be."""
    width, height = image.size
    found = []
    if min(width, height) < LEAST_SIDE:
        found.append(f"it has {width} x {height} pixels, fewer than {LEAST_SIDE} on a side")
    if max(width, height) > LONGEST * min(width, height):
        found.append(f"its sides are {width} x {height}, longer than {LONGEST} : 1")
    small = image.convert("RGB").resize((min(width, _SIDE), min(height, _SIDE)), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float64)
    grey = pixels.mean(2)
    if np.abs(pixels - grey[..., None]).max(2).mean() > COLOUR:
        found.append("it is coloured")
    if grey.std() < CONTRAST:
        found.append("it is nearly of one grey")
    elif _smoothness(grey) < SMOOTH:
        found.append("its neighbouring pixels have little to do with each other, as in noise")
    return found


def _smoothness(grey: np.ndarray) -> float:
    """The lower correlation of pixels with their right and their lower neighbours."""
    pairs = (grey[:, 1:], grey[:, :-1]), (grey[1:], grey[:-1])
    return min(_correlation(a.ravel(), b.ravel()) for a, b in pairs)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else 1.0
