"""The official files of MIMIC-CXR and IU X-Ray: there, of the announced columns and rows, and matching each other."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data.check.findings import FOUND, MISSING, UNUSUAL, WRONG, Findings
from modules.artefact import sha256

GROUP = "raw files"
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """name: without its version's ending; columns it must have; rows of the official file; page: where it comes from."""

    name: str
    columns: tuple[str, ...]
    rows: int
    page: str
    needed: bool = True


JPG, CXR = "physionet.org, MIMIC-CXR-JPG", "physionet.org, MIMIC-CXR"
MIMIC = (
    Table("mimic-cxr-2.0.0-split.csv", ("dicom_id", "study_id", "subject_id", "split"), 377_110, JPG),
    Table("mimic-cxr-2.0.0-metadata.csv", ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"),
          377_110, JPG),
    Table("mimic-cxr-2.0.0-chexpert.csv", ("subject_id", "study_id", *LABELS), 227_827, JPG, needed=False),
    Table("mimic-cxr-2.0.0-negbio.csv", ("subject_id", "study_id", *LABELS), 227_827, JPG, needed=False),
    Table("mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id",), 687, JPG, needed=False),
    Table("cxr-record-list.csv", ("subject_id", "study_id", "dicom_id", "path"), 377_110, CXR, needed=False),
    Table("cxr-study-list.csv", ("subject_id", "study_id", "path"), 227_835, CXR, needed=False),
)  # fmt: skip
REPORTS = 227_835
OPENI_REPORTS, OPENI_IMAGES = 3955, 7470
MIRRORS = ("", "physionet.org/files/mimic-cxr/*", "physionet.org/files/mimic-cxr-jpg/*", "mimic-cxr", "mimic-cxr-jpg")


def check_raw(found: Findings, dataset_name: str, folders: Iterable[str]) -> None:
    """Adds the items of the group for the folders of --raw."""
    places = [
        place
        for folder in folders
        for mirror in MIRRORS
        for place in (sorted(Path(folder).glob(mirror)) if mirror else [Path(folder)])
    ]
    if dataset_name == "mimic_cxr":
        _mimic(found, places)
    elif dataset_name == "iu_xray":
        _openi(found, places)
    else:
        found.add(GROUP, FOUND, "none", f"no official files are known for --dataset_name {dataset_name}")


def _file(places: list[Path], *names: str) -> Path | None:
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def _facts(path: Path, text: str) -> str:
    return f"{path}, {path.stat().st_size:,d} bytes, {text}, sha256 {sha256(path)[:16]}"


def _mimic(found: Findings, places: list[Path]) -> None:
    split = None
    for table in MIMIC:
        path = _file(places, table.name + ".gz", table.name)
        if path is None:
            if table.needed:
                found.add(GROUP, MISSING, table.name, "needed by data.prepare_mimic", f"{table.page}")
            continue
        read = _table(found, table, path)
        split = read if table is MIMIC[0] else split
    reports = _file(places, "mimic-cxr-reports.zip")
    if reports is None:
        if not any((place / "files").is_dir() for place in places):
            found.add(GROUP, MISSING, "mimic-cxr-reports.zip", "needed by data.prepare_mimic", CXR)
        return
    numbers = _report_numbers(found, reports)
    if numbers is not None and split is not None:
        studies = set(split["study_id"])
        for what, lacking in (
            ("studies without report", studies - numbers),
            ("reports without study", numbers - studies),
        ):
            how = "the files are of different versions or cut off: download both again"
            found.judge(GROUP, what, sorted(map(str, lacking)), UNUSUAL, "none", "in number", how)


def _table(found: Findings, table: Table, path: Path) -> pd.DataFrame | None:
    """Read one table; its item is added."""
    try:
        header = pd.read_csv(path, nrows=0).columns
        lacking = [column for column in table.columns if column not in header]
        if lacking:
            found.add(
                GROUP, WRONG, table.name, f"{path} lacks {', '.join(lacking)}", f"download it again: {table.page}"
            )
            return None
        wanted = [column for column in ("study_id", "split") if column in header]
        content = pd.read_csv(path, usecols=wanted)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        found.add(GROUP, WRONG, table.name, f"{path} cannot be read: {error}", f"download it again: {table.page}")
        return None
    if "split" in content and not set(content["split"]) <= {"train", "validate", "test"}:
        odd = sorted(set(map(str, content["split"])) - {"train", "validate", "test"})
        found.add(GROUP, WRONG, table.name, f"{path}: split is {', '.join(odd[:5])}", "train, validate, test are known")
        return None
    text, how = f"{len(content):,d} rows", ""
    if len(content) != table.rows:
        text, how = f"{text} where the official file has {table.rows:,d}", f"a part, or cut off? {table.page}"
    found.add(GROUP, UNUSUAL if how else FOUND, table.name, _facts(path, text), how)
    return content


def _report_numbers(found: Findings, path: Path) -> set[int] | None:
    """Study numbers of the reports in the zip."""
    try:
        with zipfile.ZipFile(path) as content:
            names = [Path(name).stem for name in content.namelist() if name.endswith(".txt")]
    except (OSError, zipfile.BadZipFile) as error:
        found.add(GROUP, WRONG, path.name, f"{path} cannot be read: {error}", f"download it again: {CXR}")
        return None
    numbers = {int(name[1:]) for name in names if name[:1] == "s" and name[1:].isdigit()}
    text, how = f"{len(numbers):,d} reports", ""
    if len(numbers) != REPORTS:
        text, how = f"{text} where the official file has {REPORTS:,d}", f"a part, or cut off? {CXR}"
    found.add(GROUP, UNUSUAL if how else FOUND, path.name, _facts(path, text), how)
    return numbers


def _openi(found: Findings, places: list[Path]) -> None:
    page = "openi.nlm.nih.gov, Indiana University chest X-rays"
    for name, ending, count in (
        ("NLMCXR_reports.tgz", ".xml", OPENI_REPORTS),
        ("NLMCXR_png.tgz", ".png", OPENI_IMAGES),
    ):
        path = _file(places, name)
        if path is None:
            found.add(GROUP, MISSING, name, "needed by data.prepare_iu (a folder will do)", page)
            continue
        try:
            with tarfile.open(path) as content:
                there = sum(member.name.endswith(ending) for member in content)
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            found.add(GROUP, WRONG, name, f"{path} cannot be read: {error}", f"download it again: {page}")
            continue
        text, how = f"{there:,d} files {ending}", ""
        if there != count:
            text, how = f"{text} where the official archive has {count:,d}", f"a part, or cut off? {page}"
        found.add(GROUP, UNUSUAL if how else FOUND, name, _facts(path, text), how)
