"""MIMIC-CXR: PhysioNet's split and metadata tables, reports in their zip, images of MIMIC-CXR-JPG (or DICOM).

Read as they are given out: versions 2.0.0 and 2.1.0, tables packed or not, reports zipped or not, wget's mirror of the site.
"""

import functools
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import pandas

from data.preparation.custom_rules import EXCEPTIONS, conclusion
from data.preparation.image_files import ImageFolder
from data.preparation.sections import ADDENDUM_LINE, sections_of
from data.preparation.source import (
    Source,
    SourceImage,
    SourceStudy,
    candidate_folders,
    decode_report,
    find_file,
    read_columns,
    split_name,
    whole_numbers,
)
from modules.errors import InputError
from modules.progress import tracked

KEPT = ("findings", "impression", "indication", "history", "comparison", "technique", "last_paragraph")
_REPORT = re.compile(r"(?:^|/)s(\d+)\.txt$")
_CHUNK = 4000  # reports read by a process at once


def read_mimic(
    cxr: str | Path | None,
    jpg: str | Path | None,
    *,
    with_images: bool,
    sections_csv: str | Path | None = None,
    custom_rules: str = "skip",
    workers: int = 1,
) -> Source:
    """The studies of MIMIC-CXR by subject, study and image id.

    cxr: folder with mimic-cxr-reports.zip or the unpacked files/. jpg: folder of MIMIC-CXR-JPG with the tables and files/.
    sections_csv: texts to take instead of the reports' (columns study_id or study, findings, impression). custom_rules:
    "skip" leaves out the 54 studies of custom_rules.py, "use" takes what their rule names as the impression.
    InputError names the file that is not there.
    """
    folders = candidate_folders(jpg, cxr)
    split_path = find_file(folders, "mimic-cxr-*-split.csv*")
    if split_path is None:
        raise InputError(
            f"no mimic-cxr-2.0.0-split.csv.gz in {jpg or cxr} (--jpg): it comes with MIMIC-CXR-JPG on PhysioNet"
        )
    metadata_path = find_file(folders, "mimic-cxr-*-metadata.csv*")
    files = [path for path in (split_path, metadata_path) if path]
    images = ImageFolder(_image_root(folders)) if with_images else None
    studies = _studies(split_path, metadata_path)
    counts: Counter[str] = Counter()
    if metadata_path is None:
        counts["studies without metadata: no view, no time, no earlier study"] = len(studies)
    if sections_csv:
        files.append(Path(sections_csv))
        texts = _sections_table(Path(sections_csv))
    else:
        reports = _reports(folders)
        files += [reports] if reports.is_file() else []
        texts = read_reports(reports, [study.study_id for study in studies], workers, counts)
    _add_texts(studies, texts, custom_rules, counts)
    return Source("MIMIC-CXR", studies, files, images, counts)


def _studies(split_path: Path, metadata_path: Path | None) -> list[SourceStudy]:
    """Studies without texts, by subject, study and image id; paths without an ending known to be .jpg."""
    numbers = ("subject_id", "study_id")
    table = read_columns(split_path, ("dicom_id", *numbers, "split"))
    table = whole_numbers(table, numbers, split_path)
    twice = table["dicom_id"][table["dicom_id"].duplicated()]
    if len(twice):
        raise InputError(f"{split_path}: {len(twice)} dicom_id stand more than once, such as {twice.iloc[0]}")
    names = {name: split_name(name, str(split_path)) for name in table["split"].unique()}
    if metadata_path is None:
        table = table.assign(ViewPosition="", time="")
    else:
        more = read_columns(metadata_path, ("dicom_id", "ViewPosition", "StudyDate", "StudyTime"))
        more["time"] = [study_time(*pair) for pair in zip(more["StudyDate"], more["StudyTime"])]
        more = more.drop_duplicates("dicom_id")[["dicom_id", "ViewPosition", "time"]]
        table = table.merge(more, on="dicom_id", how="left", sort=False).fillna({"ViewPosition": "", "time": ""})
    table = table.sort_values([*numbers, "dicom_id"], kind="stable")
    studies: list[SourceStudy] = []
    columns = [table[name].tolist() for name in (*numbers, "dicom_id", "split", "ViewPosition", "time")]
    for subject, study, image, split, view, time in zip(*columns):
        if not studies or (studies[-1].subject_id, studies[-1].study_id) != (subject, study):
            studies.append(SourceStudy(study, subject, names[split], {}, [], time))
        path = f"p{str(subject)[:2]}/p{subject}/s{study}/{image}.jpg"
        studies[-1].images.append(SourceImage(image, path, view))
        if time and (not studies[-1].time or time < studies[-1].time):
            studies[-1].time = time
    return studies


def study_time(date: str, time: str) -> str:
    """ISO 8601 of StudyDate (yyyymmdd) and StudyTime (hhmmss.fff, leading zeros may lack); "" without a date."""
    if not re.fullmatch(r"\d{8}", date):
        return ""
    whole, _, part = time.partition(".")
    whole = whole.rjust(6, "0") if whole.isdigit() else "000000"
    clock = f"{whole[:2]}:{whole[2:4]}:{whole[4:6]}" + (f".{part}" if part else "")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{clock}"


def _image_root(folders: Sequence[Path]) -> Path:
    """The folder that holds p10 ... p19 of images; InputError where there is none."""
    for folder in folders:
        for root in (folder / "files", folder):
            first = next(iter(sorted(root.glob("p1[0-9]"))), None)
            if first and any(path.is_dir() for patient in _some(first.glob("p*")) for path in patient.glob("s*")):
                return root
    raise InputError(
        f"no files/p10/p1.../s.../ with images in {folders[0]} (--jpg); --no_images makes the annotation alone"
    )


def _some(paths: Iterable[Path]) -> Iterator[Path]:
    yield from (path for _, path in zip(range(20), paths))


def _reports(folders: Sequence[Path]) -> Path:
    """The zip of the reports, or the folder that holds p10 ... of them."""
    archive = find_file(folders, "mimic-cxr-reports.zip")
    if archive:
        return archive
    for folder in folders:
        for root in (folder / "mimic-cxr-reports" / "files", folder / "files", folder):
            if any(True for _ in _some(root.glob("p1[0-9]/p*/s*.txt"))):
                return root
    raise InputError(
        f"neither mimic-cxr-reports.zip nor files/p10/p1.../s....txt in {folders[-1]} (--cxr): the reports come with "
        "MIMIC-CXR on PhysioNet"
    )


def read_reports(
    where: Path, studies: Sequence[int | str], workers: int, counts: Counter
) -> dict[int | str, dict[str, str]]:
    """{study: sections of KEPT, and the conclusion of the 54} of the reports in a zip or a folder, each read once.

    counts: takes reports without a study, files that are no UTF-8, reports with an addendum on top.
    """
    known = set(studies)
    if where.is_file():
        try:
            with zipfile.ZipFile(where) as archive:
                names = archive.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{where} cannot be read: {error}; fetch it again") from error
    else:
        names = [path.relative_to(where).as_posix() for path in where.glob("p1[0-9]/p*/s*.txt")]
    numbered = [(int(match[1]), name) for name in names if (match := _REPORT.search(name))]
    counts["reports without a study in the split table"] = sum(study not in known for study, _ in numbered)
    numbered = [(study, name) for study, name in numbered if study in known]
    chunks = [numbered[first : first + _CHUNK] for first in range(0, len(numbered), _CHUNK)]
    found: dict[int | str, dict[str, str]] = {}
    bar = tracked(total=len(numbered), desc="reports")
    with ProcessPoolExecutor(workers) if workers > 1 else _Here() as pool, bar:
        for part in pool.map(_read_chunk, repeat(where), chunks):
            for study, sections, other, addendum in part:
                found[study] = sections
                counts["reports that are no UTF-8, read as Latin-1"] += other
                counts["reports with a line of underscores (addendum on top)"] += addendum
            bar.update(len(part))
    return found


class _Here:
    """The pool of one process: the command itself."""

    map = staticmethod(map)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@functools.cache
def _open_zip(where: Path, process: int) -> zipfile.ZipFile:
    """One per process, so that its list of 227,835 names is read once and no two processes share a position in the file."""
    del process
    return zipfile.ZipFile(where)


def _read_chunk(where: Path, chunk: Sequence[tuple[int, str]]) -> list[tuple[int, dict[str, str], bool, bool]]:
    """[(study, sections, whether it was no UTF-8, whether it has an addendum)]"""
    archive = _open_zip(where, os.getpid()) if where.is_file() else None
    made = []
    for study, name in chunk:
        try:
            content = archive.read(name) if archive else (where / name).read_bytes()
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{where}: {name} cannot be read: {error}; fetch it again") from error
        text, other = decode_report(content)
        sections = sections_of(text)
        kept = {section: sections[section] for section in KEPT if section in sections}
        if study in EXCEPTIONS:
            kept["conclusion"] = conclusion(study, text, sections)
        made.append((study, kept, other, bool(ADDENDUM_LINE.search(text))))
    return made


def _sections_table(path: Path) -> dict[int | str, dict[str, str]]:
    """{study: sections} of a CSV with study_id (or the official table's study, with an s before it)."""
    header = pandas.read_csv(path, nrows=0).columns if path.is_file() else []
    key = "study" if "study" in header and "study_id" not in header else "study_id"
    table = read_columns(path, (key,), KEPT)
    table[key] = table[key].str.removeprefix("s")
    table = whole_numbers(table, (key,), path)
    texts = zip(*(table[section].str.strip().tolist() for section in KEPT))
    return {
        study: {section: text for section, text in zip(KEPT, row) if text}
        for study, row in zip(table[key].tolist(), texts)
    }


def _add_texts(
    studies: list[SourceStudy], texts: dict[int | str, dict[str, str]], custom_rules: str, counts: Counter
) -> None:
    for study in studies:
        sections = texts.get(study.study_id)
        if sections is None:
            study.left_out = "no report"
            continue
        if "conclusion" in sections and custom_rules == "skip":
            study.left_out = "one of the 54 with rules of its own (--custom_rules use takes them)"
        elif "conclusion" in sections:
            sections["impression"] = sections.pop("conclusion")
            counts["studies whose impression is what one of the 54 rules names"] += 1
        study.sections = sections
