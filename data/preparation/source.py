"""What every reader of official files gives: studies with their sections and images, in the order of the rows to come."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas

from data.preparation.image_files import ImageFiles
from modules.errors import InputError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
          "dev": "val", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(slots=True)
class SourceImage:
    """One image: its id, its path below the image folder ("/" between folders), its view ("" where unknown)."""

    id: str
    path: str
    view: str = ""


@dataclass(slots=True)
class SourceStudy:
    """One study: official split or None, texts by section name, images in the source's order.

    time: ISO 8601, or anything that sorts within a patient; "" where unknown. left_out: why its text may not be used.
    boxes: findings with their boxes, for PadChest-GR's side file.
    """

    study_id: int | str
    subject_id: int | str | None
    split: str | None
    sections: dict[str, str]
    images: list[SourceImage]
    time: str = ""
    left_out: str = ""
    boxes: list[dict] | None = None


@dataclass
class Source:
    """A data set as its official files give it.

    files: those that decide the rows; their hashes go into the manifest. counts: what a reader counted on the way.
    images: where image files lie; None with --no_images.
    """

    name: str
    studies: list[SourceStudy]
    files: list[Path]
    images: ImageFiles | None = None
    counts: Counter = field(default_factory=Counter)


def candidate_folders(*folders: str | Path | None) -> list[Path]:
    """Where the files of a PhysioNet project may lie: the folders given, below them, and in wget's mirror of the site."""
    found = []
    for folder in (Path(folder) for folder in folders if folder):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}")
        found.append(folder)
        for pattern in (
            "2.*",
            "mimic-cxr*",
            "mimic-cxr*/2.*",
            "files/mimic-cxr*/2.*",
            "physionet.org/files/mimic-cxr*/2.*",
        ):
            found += sorted((path for path in folder.glob(pattern) if path.is_dir()), reverse=True)
    return list(dict.fromkeys(found))


def find_file(folders: Sequence[Path], pattern: str) -> Path | None:
    """The first file that matches a glob pattern in the folders; of several versions the newest."""
    return next(
        (path for folder in folders for path in sorted(folder.glob(pattern), reverse=True) if path.is_file()), None
    )


def read_columns(path: str | Path, columns: Iterable[str], optional: Iterable[str] = ()) -> pandas.DataFrame:
    """The named columns of a CSV (.gz too) as texts, "" where empty. InputError names the file and the columns it lacks."""
    columns, optional = list(columns), list(optional)
    try:
        header = pandas.read_csv(path, nrows=0, dtype=str).columns
        lacking = [column for column in columns if column not in header]
        if lacking:
            raise InputError(f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(map(str, header))}")
        wanted = columns + [column for column in optional if column in header]
        table = pandas.read_csv(path, usecols=wanted, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except (OSError, EOFError, ValueError, pandas.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a CSV table: {str(error).splitlines()[0]}") from error
    for column in optional:
        if column not in table:
            table[column] = ""
    return table


def whole_numbers(table: pandas.DataFrame, columns: Iterable[str], path: Path) -> pandas.DataFrame:
    """The table with these columns as int64; InputError names the first value that is none."""
    for column in columns:
        wrong = table[column][~table[column].str.fullmatch(r"\d+")]
        if len(wrong):
            raise InputError(f"{path}: column {column}, row {wrong.index[0] + 1}: {wrong.iloc[0]!r} is no whole number")
        table[column] = table[column].astype("int64")
    return table


def split_name(name: str, where: str) -> str | None:
    """train, val or test for the name a data set uses; None for "". InputError for any other."""
    if not name:
        return None
    known = SPLITS.get(name.strip().lower())
    if known is None:
        raise InputError(f"{where}: split {name!r} is unknown; known are {', '.join(SPLITS)}")
    return known


def decode_report(content: bytes) -> tuple[str, bool]:
    """(text, whether it was no UTF-8): UTF-8, else Latin-1; line ends become newlines."""
    try:
        text, other = content.decode("utf-8"), False
    except UnicodeDecodeError:
        text, other = content.decode("latin-1"), True
    return re.sub("\r\n?", "\n", text), other
