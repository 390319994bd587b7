"""Histogram equalisation and DICOM: grey levels against calculations by hand."""

from fractions import Fraction

import numpy as np
import pytest

from data.equalize import equalize


def by_hand(grey: np.ndarray) -> np.ndarray:
    """The formula in exact fractions, pixel by pixel of the 256 levels; Python rounds halves to even."""
    counts = [int((grey == level).sum()) for level in range(256)]
    lowest = next(level for level in range(256) if counts[level])
    rest = grey.size - counts[lowest]
    if rest == 0:
        return grey
    levels = [round(Fraction(255 * max(sum(counts[: g + 1]) - counts[lowest], 0), rest)) for g in range(256)]
    return np.array(levels, dtype=np.uint8)[grey]


def test_equalize_is_the_formula():
    draw = np.random.default_rng(4)
    for side in (1, 2, 7, 64, 300):
        for low, high in ((0, 255), (100, 103), (250, 255), (0, 1), (9, 9)):
            grey = draw.integers(low, high + 1, (side, side + 3)).astype(np.uint8)
            assert np.array_equal(equalize(grey), by_hand(grey))


def test_equalize_by_hand():
    grey = np.array([[10, 10, 20, 30]], dtype=np.uint8)  # 20: 255 * (3 - 2) / 2 = 127.5, to the even 128
    assert equalize(grey).tolist() == [[0, 0, 128, 255]]
    one = np.full((3, 3), 77, dtype=np.uint8)
    assert np.array_equal(equalize(one), one)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_equalize_refuses_what_is_no_grey_image(wrong):
    with pytest.raises(ValueError, match="uint8"):
        equalize(wrong)
