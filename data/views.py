"""Views of an image that a system may be shown instead of the image itself: enhanced, masked. Source: CSR-LMCA's code."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from data.equalize import equalize
from data.image_cache import ImageCache
from data.images import PLAIN, Augmentation, Reading, open_image, square
from data.mask_store import MaskStore
from modules.nets.adm import SIDE

HALF = 1 << 13  # what rounds a number with 14 binary places


def equalised(image: Image.Image) -> Image.Image:
    """RGB image, the histogram of its brightness equalised, as OpenCV's 8-bit YUV conversion gives it."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if (red == green).all() and (green == blue).all():
        grey = equalize(red.astype(np.uint8))
        return Image.fromarray(np.repeat(grey[..., None], 3, -1))
    y = _scaled(4899 * red + 9617 * green + 1868 * blue)
    u = _bytes(_scaled(8061 * (blue - y)) + 128).astype(np.int64) - 128
    v = _bytes(_scaled(14369 * (red - y)) + 128).astype(np.int64) - 128
    y = equalize(_bytes(y)).astype(np.int64)
    back = (y + _scaled(18678 * v), y + _scaled(-6472 * u - 9519 * v), y + _scaled(33292 * u))
    return Image.fromarray(_bytes(np.stack(back, -1)))


def _scaled(numbers: np.ndarray) -> np.ndarray:
    return (numbers + HALF) >> 14


def _bytes(numbers: np.ndarray) -> np.ndarray:
    return np.clip(numbers, 0, 255).astype(np.uint8)


def enhanced(image: Image.Image) -> Image.Image:
    """The enhanced view of an image at its full size: histogram of the brightness equalised, then sharpened; RGB."""
    return equalised(image).filter(ImageFilter.SHARPEN)


def masked(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The masked view: grey, 0 outside the mask, at the mask's size (300 x 300 as released; the aspect ratio is not kept).

    mask: bool [side, side]. An empty mask changes nothing, where the release makes a black image.
    """
    grey = image.resize(mask.shape[::-1]).convert("L")
    return Image.fromarray(np.asarray(grey) * mask) if mask.any() else grey


def view_of(image: Image.Image, kind: str, mask: np.ndarray | None = None) -> Image.Image:
    """One kind of view of an RGB image at its full size; mask: bool [side, side] for "masked"."""
    if kind == "enhanced":
        return enhanced(image)
    if kind == "masked" and mask is not None:
        return masked(image, mask)
    if kind == "complete":
        return image
    raise ValueError(f"view {kind}: choose complete, enhanced or masked")


class Views:
    """The views of a study: images at the size that augmentation starts from, from caches where they are kept.

    wanted: (kind, number of the study's image). masked_dir: folder of masked images by image path, instead of masks.
    caches: by kind, what `kept` says, or empty: the files are decoded at every call.
    """

    def __init__(
        self,
        wanted: tuple[tuple[str, int], ...],
        image_dir,
        sizes: Augmentation,
        *,
        masks: MaskStore | None = None,
        masked_dir=None,
        caches: dict[str, ImageCache] | None = None,
        reading: Reading = PLAIN,
    ) -> None:
        self.reading = reading
        self.wanted, self.sizes, self.masks, self.caches = wanted, sizes, masks, caches or {}
        self.kept = {kind: kept(kind, sizes, image_dir, masked_dir) for kind, _ in wanted}
        self.masked_dir, self.by_masks = masked_dir, masked_dir is None
        self.images = 1 + max(number for _, number in wanted)

    def __call__(self, paths: tuple[str, ...]) -> list[Image.Image]:
        """paths: the study's images. A view of an image that the study lacks is left out."""
        return [self._view(kind, paths[number]) for kind, number in self.wanted if number < len(paths)]

    def _view(self, kind: str, path: str) -> Image.Image:
        _, resize, folder = self.kept[kind]
        kept = self.caches[kind].get(path) if self.caches else None
        image = kept or resize(open_image(f"{folder}/{path}", self.reading))
        if kind == "masked" and self.by_masks:
            assert self.masks is not None, "masked views need masks or masked_dir"
            image = self.sizes.resize(masked(image, self.masks.get(path)))
        return image


def kept(kind: str, sizes: Augmentation, image_dir, masked_dir=None) -> tuple[str, Callable, str]:
    """What a cache keeps for a kind of view: its name, the function from the file's image, the folder of the files.

    The masks are laid on when a study is read, so the cache does not depend on them.
    """
    if kind == "enhanced":
        return f"{sizes.name}_enhanced", lambda image: sizes.resize(enhanced(image)), str(image_dir)
    if kind == "masked" and masked_dir is None:
        return f"square{SIDE}", lambda image: square(image, SIDE), str(image_dir)
    if kind == "masked":
        return f"{sizes.name}_masked", sizes.resize, str(masked_dir)
    return sizes.name, sizes.resize, str(image_dir)
