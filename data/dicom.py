"""DICOM files: from stored values to a grey image of 8 bits, and from a folder of files to studies.

Two rules. "voi" shows the image as its maker meant it: modality LUT or rescale, VOI LUT or window, else the image's own
range. "mimic" makes what MIMIC-CXR-JPG 2.0.0 made of its DICOM: own range, no window, histogram equalisation (its JPEG
step at quality 95 is left out). MONOCHROME1 is inverted once by either. What identifies a patient is never read.
Source: DICOM PS3.3 C.11.1, C.11.2, C.7.6.3.1; MIMIC-CXR-JPG's documentation. Needs pydicom.
"""

import contextlib
import gzip
import hashlib
import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.equalize import equalize
from modules.errors import InputError

RULES = ("voi", "mimic")
MAX_PIXELS = 100_000_000  # a chest film scanned at the finest has 50 million
MAX_BYTES = 1 << 30
INSTALL = "pip install pydicom python-gdcm pylibjpeg-openjpeg"
# projection radiography; OT and none at all are what converters write
MODALITIES = ("CR", "DX", "RG", "RF", "XA", "OT", "")
# what decodes a compressed transfer syntax that the installed packages do not (UIDs below 1.2.840.10008.1.2)
DECODERS = {
    "4.50": "pillow", "4.51": "pylibjpeg pylibjpeg-libjpeg (GPL-3)", "4.57": "python-gdcm", "4.70": "python-gdcm",
    "4.80": "python-gdcm", "4.81": "python-gdcm", "4.90": "pylibjpeg pylibjpeg-openjpeg",
    "4.91": "pylibjpeg pylibjpeg-openjpeg", "4.201": "pylibjpeg pylibjpeg-openjpeg",
    "4.202": "pylibjpeg pylibjpeg-openjpeg", "4.203": "pylibjpeg pylibjpeg-openjpeg",
}  # fmt: skip
FRONTAL, LATERAL = ("PA", "AP"), ("LL", "RL", "LATERAL")
VIEW_CODES = {  # SNOMED's numbers and, of older files, its letters in ViewCodeSequence
    "272479007": "PA", "399348003": "AP", "399173006": "LL", "399198007": "RL", "399067008": "LATERAL",
    "R-10214": "PA", "R-10206": "AP", "R-10236": "LL", "R-10232": "RL", "R-102CD": "LATERAL",
}  # fmt: skip
# what pydicom and its decoders raise on files that are damaged or not as the standard says
FAULTS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
log = logging.getLogger(__name__)
_SAID: set[str] = set()


@dataclass(frozen=True)
class DicomStudy:
    """name: 12 hex digits made of the StudyInstanceUID; images: paths, frontal ones first; views: one per image or ""."""

    name: str
    images: tuple[Path, ...]
    views: tuple[str, ...]


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM, packed by gzip or not: the mark DICM at byte 128 decides, not the name.

    OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(132)
    if start[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as file:
                start = file.read(132)
        except (OSError, EOFError, zlib.error):
            return False
    return start[128:] == b"DICM"


def read_dicom(path: str | Path, rule: str = "voi") -> np.ndarray:
    """The image of a DICOM file by a rule of RULES: uint8 [H, W], bright = dense.

    Raises InputError with the file and the reason for everything that is not one projection image.
    """
    if rule not in RULES:
        raise ValueError(f"DICOM rule {rule!r}: choose from {', '.join(RULES)}")
    with _sentences(path):
        record = _read(path, pixels=True)
        pixels = _decode(path, record)
        photometric = str(record.get("PhotometricInterpretation", ""))
        pixels = _grey(pixels, record, photometric, path) if pixels.ndim == 3 or "PALETTE" in photometric else pixels
        if pixels.ndim != 2 or not pixels.size or not np.isfinite(pixels).all():
            raise InputError(f"image {path} cannot be used: its pixels are no image of finite numbers")
        shown = _shown(pixels, record) if rule == "voi" else _truncated(pixels)
    shown = 255 - shown if photometric == "MONOCHROME1" else shown
    return equalize(shown) if rule == "mimic" else shown


def dicom_problem(path: str | Path) -> str | None:
    """Why a DICOM file cannot be used, as far as its header and the installed decoders tell, or None."""
    try:
        with _sentences(path):
            _syntax(path, _read(path, pixels=False))
        return None
    except InputError as error:
        return str(error)


def dicom_studies(folder: str | Path) -> list[DicomStudy]:
    """The DICOM files below `folder` (sorted by path), grouped by StudyInstanceUID in the order of their first files.

    Within a study frontal images come first, then lateral ones, then those whose view is not told; a file without a
    StudyInstanceUID is a study of its own. Raises InputError, all unusable files in one message.
    """
    found: dict[str, list[tuple[int, Path, str]]] = {}
    problems = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file() and is_dicom(path)):
        problem = dicom_problem(path)
        if problem:
            problems.append(problem)
            continue
        record = _read(path, pixels=False)
        view = _view(record)
        rank = 0 if view in FRONTAL else 1 if view in LATERAL else 2
        found.setdefault(str(record.get("StudyInstanceUID") or path), []).append((rank, path, view))
    if problems:
        raise InputError(f"{folder}: {len(problems)} DICOM files cannot be used:\n  - " + "\n  - ".join(problems[:20]))
    if not found:
        raise InputError(f"{folder}: no DICOM file in it")
    studies = []
    for uid, rows in found.items():
        rows.sort(key=lambda row: row[0])
        name = hashlib.sha256(uid.encode()).hexdigest()[:12]
        studies.append(DicomStudy(name, tuple(row[1] for row in rows), tuple(row[2] for row in rows)))
    return studies


def _view(record) -> str:
    """ViewPosition, else the name of ViewCodeSequence's code, else ""."""
    codes = [str(item.get("CodeValue", "")) for item in record.get("ViewCodeSequence") or ()]
    return str(record.get("ViewPosition") or "").upper() or next((VIEW_CODES[c] for c in codes if c in VIEW_CODES), "")


def _pydicom(path: str | Path):
    """pydicom, silent: its warnings and log lines quote values of the file, names among them. InputError without it."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"image {path} is DICOM: {INSTALL}") from error
    if pydicom.config.settings.reading_validation_mode != pydicom.config.IGNORE:
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def _say_once(what: str, sentence: str) -> None:
    if what not in _SAID:
        _SAID.add(what)
        log.warning(sentence)


@contextlib.contextmanager
def _sentences(path: str | Path):
    """Turns what pydicom and its decoders raise on a file into an InputError."""
    dicom = _pydicom(path)
    try:
        yield
    except (*FAULTS, dicom.errors.BytesLengthException, dicom.errors.InvalidDicomError) as error:
        if isinstance(error, (InputError, FileNotFoundError)):
            raise
        raise InputError(f"image {path} cannot be read as DICOM: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """An error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read(path: str | Path, *, pixels: bool):
    """The record of a file whose header is that of one projection image; InputError else."""
    dicom = _pydicom(path)
    if not is_dicom(path):
        raise InputError(f"image {path} has no DICM mark at byte 128: it is no DICOM file, or lost its header")
    with open(path, "rb") as file:
        source = io.BytesIO(_unpacked(path)) if file.read(2) == b"\x1f\x8b" else file
        source.seek(0)
        record = dicom.dcmread(source, stop_before_pixels=True)
        _check_header(path, record)
        if pixels:
            source.seek(0)
            record = dicom.dcmread(source)
    if pixels and not any(name in record for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(f"image {path} cannot be used: a DICOM file without pixel data")
    return record


def _unpacked(path: str | Path) -> bytes:
    with gzip.open(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"image {path} is larger than {MAX_BYTES >> 20} MiB when unpacked")
    return content


def _check_header(path: str | Path, record) -> None:
    modality = str(record.get("Modality") or "")
    if modality not in MODALITIES:
        known = ", ".join(filter(None, MODALITIES))
        raise InputError(f"image {path} is no projection radiograph: its modality is {modality[:16]}, not {known}")
    frames = str(record.get("NumberOfFrames") or 1)
    if frames != "1":
        raise InputError(f"image {path} has several frames ({frames[:16]}); one image per file is read: split it")
    rows, columns = int(record.get("Rows") or 0), int(record.get("Columns") or 0)
    if not rows or not columns:
        raise InputError(f"image {path} cannot be used: a DICOM file without an image")
    if rows * columns > MAX_PIXELS:
        raise InputError(f"image {path} has {columns} x {rows} pixels, more than {MAX_PIXELS:,d}")


def _syntax(path: str | Path, record):
    """The transfer syntax; InputError where it is not told, or nothing here decodes it."""
    from pydicom.pixels import get_decoder

    syntax = getattr(record.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        raise InputError(f"image {path} cannot be used: its header lacks the transfer syntax")
    try:
        there = get_decoder(syntax).is_available
    except NotImplementedError:
        raise InputError(f"image {path}: {syntax.name} ({syntax}) is a transfer syntax that is not read here") from None
    if not there:
        raise InputError(f"image {path}: no decoder for {syntax.name} ({syntax}); {_advice(syntax)}")
    return syntax


def _advice(syntax: str) -> str:
    packages, _, licence = DECODERS.get(str(syntax).removeprefix("1.2.840.10008.1.2."), "").partition(" (")
    note = f" (its licence is {licence.rstrip(')')})" if licence else ""
    return f"pip install {packages}{note}" if packages else "convert it to an uncompressed file"


def _decode(path: str | Path, record) -> np.ndarray:
    """Stored values [H, W], or colours [H, W, 3]."""
    syntax = _syntax(path, record)
    try:
        return record.pixel_array
    except RuntimeError as error:
        if not syntax.is_compressed:
            raise
        text = f"image {path}: the installed decoders fail on {syntax.name} ({syntax}): {_brief(error)}"
        raise InputError(f"{text}; {_advice(syntax)}, or the file is damaged") from error


def _grey(pixels: np.ndarray, record, photometric: str, path) -> np.ndarray:
    """Colours [H, W, 3], or indices of a palette [H, W], to grey by ITU-R 601's weights."""
    if "PALETTE" in photometric:
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, record)
    _say_once(photometric, f"colour DICOM files ({photometric}) are turned to grey, first {path}")
    return pixels[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _shown(pixels: np.ndarray, record) -> np.ndarray:
    """Rule "voi": uint8, before MONOCHROME1 is inverted."""
    values, inside = pixels.astype(np.float64), ~_padding(pixels, record)
    if record.get("ModalityLUTSequence"):
        values, _ = _looked_up(values, record.ModalityLUTSequence[0], record)
    else:
        values = values * _number(record, "RescaleSlope", 1) + _number(record, "RescaleIntercept", 0)
    centre, width = _number(record, "WindowCenter", None), _number(record, "WindowWidth", 0)
    if record.get("VOILUTSequence"):
        values, bits = _looked_up(values, record.VOILUTSequence[0], record)
        part = values / (2**bits - 1)
    elif width > 0 and centre is not None:  # a window without a width is none
        part = _windowed(values, centre, width, str(record.get("VOILUTFunction") or "LINEAR"))
    else:
        seen = values[inside] if inside.any() else values
        part = (values - seen.min()) / max(seen.max() - seen.min(), 1e-9)
    return np.rint(255 * np.clip(part, 0, 1)).astype(np.uint8)


Default = TypeVar("Default", float, None)


def _number(record, name: str, default: Default) -> float | Default:
    """The value of an element, the first where a file brings several windows."""
    value = record.get(name)
    if not isinstance(value, (str, int, float, type(None))):
        value = next(iter(value), None)
    return default if value is None or value == "" else float(value)


def _padding(pixels: np.ndarray, record) -> np.ndarray:
    """Which stored values are no image: PixelPaddingValue to PixelPaddingRangeLimit."""
    if record.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, dtype=bool)
    ends = int(record.PixelPaddingValue), int(record.get("PixelPaddingRangeLimit") or record.PixelPaddingValue)
    return (pixels >= min(ends)) & (pixels <= max(ends))


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Part of full brightness by VOILUTFunction; PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _looked_up(values: np.ndarray, item, record) -> tuple[np.ndarray, int]:
    """Values through a LUT of the file, and its bits; PS3.3 C.11.1.1.1. pydicom's own wraps where 8 bits have 4,096 entries."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries, table = entries or 1 << 16, item.LUTData
    if isinstance(table, bytes):
        order = "<" if record.original_encoding[1] else ">"
        table = np.frombuffer(table, np.uint8 if len(table) == entries else f"{order}u2")
    table = np.atleast_1d(np.asarray(table, dtype=np.float64))
    if len(table) < entries or not 1 <= bits <= 16:
        raise ValueError(f"a look-up table of {len(table)} entries of {bits} bits where {entries} are announced")
    return table[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)], bits


def _truncated(pixels: np.ndarray) -> np.ndarray:
    """Rule "mimic", before inversion and equalisation: less the minimum, by the maximum, times 255, truncated."""
    values = pixels.astype(np.float64) - pixels.min()
    return (values / max(values.max(), 1e-9) * 255).astype(np.uint8)
