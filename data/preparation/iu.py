"""IU X-Ray (OpenI): the XML reports, or their Kaggle copy; R2Gen's split is 2,955 numbers (iu_r2gen_split.txt)."""

import csv
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data.preparation.image_files import ImageFiles, open_images
from data.preparation.source import Source, SourceImage, SourceStudy, read_columns
from modules.errors import InputError

SPLIT_FILE = Path(__file__).with_name("iu_r2gen_split.txt")
SECTIONS = {"COMPARISON": "comparison", "INDICATION": "indication", "FINDINGS": "findings", "IMPRESSION": "impression"}
IDS_SHA256 = "b52a655b96b3e30fc3e9c5245b7b1d6aaf300e54acc2a906a16317b75446adce"
REPORTS_SHA256 = "42bf85e170cf74144e47055d861712ca4b49a1d675218650519cd02c8913b337"
_IMAGE = re.compile(r"CXR(\d+)(?:_\d+)?_IM-\d{4}(?:-\d+)*")
_KAGGLE = re.compile(r"(\d+)_(IM-\d{4}(?:-\d+)*)\.dcm\.png")


def read_iu(
    reports: str | Path, images: str | Path | None, *, projections: str | Path | None = None, r2gen_split: bool = True
) -> Source:
    """The studies of OpenI with images, in the order of R2Gen's split (else by number).

    reports: NLMCXR_reports.tgz, a folder of its XML, or indiana_reports.csv (with indiana_projections.csv beside it or
    given). images: NLMCXR_png.tgz, a folder of these or of Kaggle's PNG, or a folder in R2Gen's layout; None for none.
    projections: CSV that says which image is frontal; only with it the images have a view.
    """
    reports = Path(reports)
    beside = reports.with_name("indiana_projections.csv")
    table = Path(projections) if projections else beside if beside.is_file() else None
    if reports.suffix.lower() == ".csv":
        if table is None:
            raise InputError(f"no {beside}: it names the images of {reports}; give it with --projections")
        studies, files = _kaggle_studies(reports, table), [reports, table]
    else:
        studies, files = _openi_studies(reports), [reports] + ([Path(projections)] if projections else [])
    if projections:
        _add_views(studies, Path(projections))
    counts = Counter({"reports without an image": sum(not study.images for study in studies.values())})
    found = _split(studies) if r2gen_split else [studies[number] for number in sorted(studies)]
    files += [SPLIT_FILE] if r2gen_split else []
    store = open_images(images) if images else None
    if store is not None:
        _name_files(found, store)
    return Source("IU X-Ray", found, files, store, counts)


def _openi_studies(reports: Path) -> dict[int, SourceStudy]:
    studies = {}
    for name, content in _xml_files(reports):
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            raise InputError(f"{reports}: {name} is not XML: {error}; fetch it again") from error
        mark = root.find("uId")
        number = re.fullmatch(r"CXR(\d+)", mark.get("id", "") if mark is not None else "")
        if not number:
            raise InputError(f"{reports}: {name} has no uId such as CXR1")
        texts = {text.get("Label", ""): "".join(text.itertext()) for text in root.iter("AbstractText")}
        images = [image.get("id", "") for image in root.iter("parentImage")]
        studies[int(number[1])] = _study(int(number[1]), texts, images, f"{reports}: {name}")
    if not studies:
        raise InputError(f"{reports} holds no report N.xml of OpenI")
    return studies


def _xml_files(reports: Path) -> Iterator[tuple[str, bytes]]:
    if reports.is_dir():
        for path in sorted(reports.rglob("*.xml")):
            yield path.name, path.read_bytes()
        return
    try:
        with tarfile.open(reports) as archive:
            for member in archive:
                if member.name.endswith(".xml") and member.isfile() and (file := archive.extractfile(member)):
                    yield member.name, file.read()
    except FileNotFoundError:
        raise InputError(f"--reports: no file {reports}") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"--reports: {reports} cannot be read as an archive: {error}; fetch it again") from error


def _study(number: int, texts: dict[str, str], images: list[str], where: str) -> SourceStudy:
    wrong = [image for image in images if not _IMAGE.fullmatch(image)]
    if wrong:
        raise InputError(f"{where}: image {wrong[0]!r} is not named as OpenI names them (CXR1_1_IM-0001-3001)")
    sections = {name: texts.get(label) or "" for label, name in SECTIONS.items()}
    # R2Gen's id: the first image's name without its last part
    name = images[0].rpartition("-")[0] if images else f"CXR{number}"
    return SourceStudy(name, None, None, sections, [SourceImage(image, f"{image}.png") for image in images])


def _kaggle_studies(reports: Path, projections: Path) -> dict[int, SourceStudy]:
    named = defaultdict(list)
    for uid, name, _ in _projections(projections):
        named[uid].append(name)
    columns = ("comparison", "indication", "findings", "impression")
    table = read_columns(reports, ("uid", *columns))
    studies = {}
    for uid, *texts in zip(*(table[column].tolist() for column in ("uid", *columns))):
        found = {column.upper(): text for column, text in zip(columns, texts)}
        # OpenI lists the images of a report in the order of their names
        studies[int(uid)] = _study(int(uid), found, sorted(named[int(uid)]), str(reports))
    return studies


def _projections(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number of the report, OpenI's name of the image, Frontal or Lateral)"""
    table = read_columns(path, ("uid", "filename", "projection"))
    for uid, filename, projection in zip(*(table[column].tolist() for column in ("uid", "filename", "projection"))):
        found = _KAGGLE.fullmatch(filename)
        if not found or not uid.isdigit():
            raise InputError(
                f"{path}: {filename!r} of uid {uid!r} is not named as in Kaggle's copy (1_IM-0001-3001.dcm.png)"
            )
        yield int(uid), _openi_name(found), projection


def _openi_name(found: re.Match) -> str:
    # the first report's images alone have a number between: CXR1_1_IM-0001-3001
    return f"CXR{'1_1' if found[1] == '1' else found[1]}_{found[2]}"


def _add_views(studies: dict[int, SourceStudy], projections: Path) -> None:
    views = {name: projection for _, name, projection in _projections(projections)}
    for study in studies.values():
        for image in study.images:
            image.view = views.get(image.id, "").upper()


def _split(studies: dict[int, SourceStudy]) -> list[SourceStudy]:
    """R2Gen's studies in its order, then the others, which have no split. InputError where one of them is not there."""
    found, lost = [], []
    with open(SPLIT_FILE, encoding="ascii", newline="") as file:
        for split, *numbers in csv.reader(file, delimiter=" "):
            for number in map(int, numbers):
                if number in studies:
                    studies[number].split = split
                    found.append(studies.pop(number))
                else:
                    lost.append(number)
    if lost:
        raise InputError(f"{len(lost)} of R2Gen's reports are not there, such as CXR{lost[0]}: fetch the reports again")
    return found + [studies[number] for number in sorted(studies)]


def _name_files(studies: list[SourceStudy], store: ImageFiles) -> None:
    """Let the paths be those of the store: OpenI's flat files, Kaggle's names, or R2Gen's folders.

    InputError where no image has any of these names.
    """

    def openi(study: SourceStudy, place: int) -> str:
        return f"{study.images[place].id}.png"

    def kaggle(study: SourceStudy, place: int) -> str:
        return f"{study.images[place].id.removeprefix('CXR').replace('1_1_IM', '1_IM', 1)}.dcm.png"

    def r2gen(study: SourceStudy, place: int) -> str:
        return f"{study.study_id}/{place}.png"

    imaged = [study for study in studies if study.images]
    for naming in (openi, kaggle, r2gen):
        if any(store.find(naming(study, 0)) is not None for study in imaged):
            for study in imaged:
                for place, image in enumerate(study.images):
                    image.path = naming(study, place)
            return
    raise InputError(
        f"--images: {store.path} holds no image named as OpenI's (CXR1_1_IM-0001-3001.png), Kaggle's "
        "(1_IM-0001-3001.dcm.png) or R2Gen's (CXR1_1_IM-0001/0.png); --no_images makes the annotation alone"
    )
