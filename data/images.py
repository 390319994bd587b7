"""Opening images and turning them into tensors. Source of the numbers: systems EKAGen and DETR, as released."""

import os
import random
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from data.dicom import dicom_problem, is_dicom, read_dicom
from data.equalize import equalize, is_equalized
from modules.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
ImageFile.LOAD_TRUNCATED_IMAGES = False
FORMATS = ("JPEG", "PNG")  # of the data sets; some of Pillow's readers start other programs
MAX_PIXELS = 64_000_000  # a chest film scanned at the finest has 50 million
# what Pillow raises on files that are damaged or hostile
FAULTS = (
    ArithmeticError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, SyntaxError, TypeError, ValueError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How image files become grey levels: the rule for DICOM (data/dicom.py), and whether histograms are equalised."""

    dicom: str = "voi"
    equalize: bool = False

    @property
    def name(self) -> str:
        """Names a reading other than the plain one: images read alike share a cache."""
        rule = "" if self.dicom == "voi" else f"_{self.dicom}"
        return rule + ("_equalized" if self.equalize else "")


PLAIN = Reading()


def reading_of(args) -> Reading:
    """The reading of --dicom and --equalize."""
    return Reading(args.dicom or default_dicom(args.dataset_name), args.equalize == "on")


def default_dicom(dataset_name: str) -> str:
    """The rule for DICOM where --dicom is not given: images like those of the training set."""
    return "mimic" if dataset_name == "mimic_cxr" else "voi"


def open_image(path: str | Path, reading: Reading = PLAIN) -> Image.Image:
    """Read JPEG, PNG (8 or 16 bit) or DICOM as an RGB image. Raises InputError with the path and the reason."""
    image = _open(Path(path), reading.dicom)
    if not reading.equalize:
        return image
    return Image.fromarray(equalize(np.asarray(image.convert("L")))).convert("RGB")


def _open(path: Path, dicom: str) -> Image.Image:
    try:
        _check_regular(path)
        if is_dicom(path):
            return Image.fromarray(read_dicom(path, dicom)).convert("RGB")
        with _opened(path) as image:
            if image.mode.startswith(("I", "F")):  # 16 bit and more: scale to the image's own range
                return _eight_bits(np.asarray(image))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"no image {path}") from error
    except InputError:
        raise
    except FAULTS as error:
        raise InputError(f"image {path} cannot be read: {_reason(error)}") from error


def _opened(path: str | Path) -> Image.Image:
    """An image whose header has been read: JPEG or PNG, of a bearable size."""
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise InputError(
            f"image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: make it smaller"
        )
    return image


def _check_regular(path: str | Path) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would never end
        raise InputError(f"image {path} is no regular file")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no JPEG, PNG or DICOM file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _eight_bits(pixels: np.ndarray) -> Image.Image:
    pixels = pixels.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    return Image.fromarray(np.round(255 * (pixels - low) / max(high - low, 1e-9)).astype(np.uint8)).convert("RGB")


def image_problem(path: str | Path, depth: str) -> str | None:
    """What is wrong with an image file, or None. "full" decodes it; "quick" reads the header and the end mark."""
    try:
        if depth == "full":
            open_image(path)
            return None
        _check_regular(path)
        if is_dicom(path):
            return dicom_problem(path)
        with _opened(path) as image:
            kind = image.format
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 64, 0))
            end = file.read()
        whole = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind, b"") in end
        return None if whole else f"image {path} is cut off"
    except InputError as error:
        return str(error)
    except FileNotFoundError:
        return f"no image {path}"
    except FAULTS as error:
        return f"image {path} cannot be read: {_reason(error)}"


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}  # EKAGen's, the R2Gen family's


def square(image: Image.Image, side: int, resize_filter: str = "bicubic") -> Image.Image:
    """Resize to side x side pixels; the aspect ratio is not kept, as released."""
    return image.resize((side, side), FILTERS[resize_filter])


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Image, grey or RGB -> float32 [3, H, W], ImageNet mean and standard deviation. torchvision's values, bit for bit."""
    pixels = np.asarray(image).astype(np.float32)
    pixels /= np.float32(255)
    made = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(3):
        values = pixels if pixels.ndim == 2 else pixels[..., channel]
        np.subtract(values, np.float32(MEAN[channel]), out=made[channel])
        made[channel] /= np.float32(STD[channel])
    return torch.from_numpy(made)


def diagnosis_tensor(image: Image.Image, side: int = 224) -> torch.Tensor:
    """The DiagnosisBot's input: shorter side to `side`, centre crop, normalise -> [3, side, side]. Never augmented."""
    return to_tensor(functional.center_crop(functional.resize(image, side), [side, side]))


def evaluation_kind(args) -> str:
    """The Augmentation of images that are not augmented."""
    return "center" if args.eval_crop else "none"


class Augmentation:
    """Training-time changes of a study's images.

    released: each image on its own is turned by 0/90/180/270 degrees, jittered and flipped (EKAGen's released code).
    aligned: one draw for all images of a study: a turn of at most 5 degrees, jitter, no flip, so that "left" and
    "right" of the report stay true and teacher and student see the same image.
    crop, crop_flip: each image on its own is resized to a shorter side of 8/7 of `side` (256 for 224), cut at random to
    the square, and with crop_flip mirrored half of the time (the R2Gen family's released code).
    crop_aligned: the same size, one draw for all images of a study: each is cut at the same share of its own margins.
    rotate: one draw for all images of a study: a turn of at most 10 degrees, nearest pixel, black corners (SGRRG's code).
    cvt2: each image on its own is resized to a shorter side of 7/6 of `side` (448 for 384), cut at random to the square and
    turned by at most 5 degrees (CvT2DistilGPT2's released code). center: so resized, the middle cut out; nothing is drawn.
    none: resized to the square.
    Boxes are followed through aligned, rotate and none.
    """

    KINDS = ("released", "aligned", "crop", "crop_flip", "crop_aligned", "rotate", "cvt2", "center", "none")
    TURNS = {"aligned": 5, "rotate": 10, "none": 0}  # degrees to either side, drawn first

    def __init__(self, kind: str, side: int, resize_filter: str = "bicubic") -> None:
        if kind not in self.KINDS:
            raise ValueError(f"augmentation {kind}: choose {', '.join(self.KINDS)}")
        self.kind, self.side, self.resize_filter = kind, side, resize_filter
        larger = 8 / 7 if kind.startswith("crop") else 7 / 6 if kind in ("cvt2", "center") else None
        self.shorter = None if larger is None else round(side * larger)  # side before the cut

    @property
    def name(self) -> str:
        """Names what `resize` does: images resized alike share a cache."""
        form = f"square{self.side}" if self.shorter is None else f"shorter{self.shorter}"
        return form if self.resize_filter == "bicubic" else f"{form}{self.resize_filter}"

    def resize(self, image: Image.Image) -> Image.Image:
        """The image at the size that the changes start from."""
        if self.shorter is not None:
            return functional.resize(image, self.shorter, InterpolationMode(self.resize_filter))
        return square(image, self.side, self.resize_filter)

    def __call__(self, images: list[Image.Image], draw: random.Random) -> list[Image.Image]:
        """images of one study (all views, complete and masked) -> the same, changed; `draw` decides everything."""
        if self.kind == "none":
            return images
        if self.kind == "center":
            return [functional.center_crop(image, [self.side, self.side]) for image in images]
        if self.kind == "crop_aligned":
            shares = draw.random(), draw.random()
            return [self._cut(image, *(round(s * (n - self.side)) for s, n in zip(shares, image.size))) for image in images]
        if self.kind == "cvt2":
            return [functional.rotate(self._crop(image, draw), draw.uniform(-5, 5)) for image in images]
        if self.kind.startswith("crop"):
            return [self._crop(image, draw) for image in images]
        if self.kind == "released":
            return [self._released(image, draw) for image in images]
        angle = self._angle(draw)
        if self.kind == "rotate":
            return [functional.rotate(image, angle) for image in images]
        jitter = _jitter_settings(draw)
        return [_jitter(functional.rotate(p, angle, InterpolationMode.BILINEAR), jitter) for p in images]

    def boxes(self, boxes: np.ndarray, draw: random.Random) -> np.ndarray:
        """Boxes [N, 4] in fractions of the image -> float32 [N, 4] in pixels of what `__call__` makes of it with an equal draw.

        A box that is turned becomes the rectangle around its four corners, clipped to the image. ValueError for a kind that
        boxes cannot be followed through.
        """
        if self.kind not in self.TURNS:
            raise ValueError(f"boxes cannot be followed through --augment {self.kind}: choose {', '.join(self.TURNS)}")
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4) * np.float32(self.side)
        return boxes if self.kind == "none" else turned_boxes(boxes, self._angle(draw), self.side)

    def _angle(self, draw: random.Random) -> float:
        """Degrees of the turn, counter-clockwise; the first number of a study's draw."""
        return draw.uniform(-self.TURNS[self.kind], self.TURNS[self.kind])

    def frame(self, image: Image.Image) -> Image.Image:
        """The part of an image, at its own size, that the network sees of one that is not augmented."""
        if self.kind != "center" or self.shorter is None:
            return image
        side = round(min(image.size) * self.side / self.shorter)
        return functional.center_crop(image, [side, side])

    def _crop(self, image: Image.Image, draw: random.Random) -> Image.Image:
        left, top = (draw.randint(0, length - self.side) for length in image.size)
        image = self._cut(image, left, top)
        return functional.hflip(image) if self.kind == "crop_flip" and draw.random() < 0.5 else image

    def _cut(self, image: Image.Image, left: int, top: int) -> Image.Image:
        return image.crop((left, top, left + self.side, top + self.side))

    @staticmethod
    def _released(image: Image.Image, draw: random.Random) -> Image.Image:
        image = image.rotate(draw.choice((0, 90, 180, 270)), expand=True)
        image = _jitter(image, _jitter_settings(draw))
        return functional.hflip(image) if draw.random() < 0.5 else image


def turned_boxes(boxes: np.ndarray, angle: float, side: int) -> np.ndarray:
    """Boxes [N, 4] in pixels of a square image that is turned counter-clockwise by `angle` degrees about its middle.

    float32 [N, 4]: the rectangle around the four turned corners, clipped to the image.
    """
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    x, y = boxes[:, [0, 2, 0, 2]] - side / 2, boxes[:, [1, 1, 3, 3]] - side / 2
    x, y = x * cosine + y * sine + side / 2, y * cosine - x * sine + side / 2
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1).clip(0, side).astype(np.float32)


def _jitter_settings(draw: random.Random) -> tuple[list[int], dict[int, float]]:
    factors = {0: draw.uniform(0.5, 1.3), 1: draw.uniform(0.8, 1.5), 2: draw.uniform(0.2, 1.5)}
    order = list(factors)
    draw.shuffle(order)
    return order, factors


def _jitter(image: Image.Image, settings: tuple[list[int], dict[int, float]]) -> Image.Image:
    change = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    order, factors = settings
    for number in order:
        image = change[number](image, factors[number])
    return image


def equalized_share(images: list[Image.Image]) -> float | None:
    """Which share of images is histogram-equalised; None of none."""
    found = [is_equalized(np.asarray(image.convert("L"))) for image in images]
    return sum(found) / len(found) if found else None


def settle_equalize(mode: str, trained: float | None, here: float | None) -> str:
    """--equalize as "on" or "off". auto: on where most training images are equalised (`trained`) and most here are not.

    The reverse cannot be undone, and is said.
    """
    if mode != "auto" or trained is None or here is None:
        return "off" if mode == "auto" else mode
    if trained > 0.5 >= here:
        print("images are histogram-equalised (--equalize on), as those of the training set")
        return "on"
    if here > 0.5 >= trained:
        print("note: the images are histogram-equalised, those of the training set were not: expect worse reports")
    return "off"
