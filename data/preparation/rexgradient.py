"""ReXGradient-160K: metadata/{train,valid,test}_metadata.csv with a JSON of the images each."""

from collections import Counter
from pathlib import Path

from data.preparation.image_files import ImageFolder
from data.preparation.source import Source, SourceImage, SourceStudy, read_columns
from modules.artefact import read_json
from modules.errors import InputError

SPLITS = {"train": "train", "valid": "val", "test": "test"}
SECTIONS = {"findings": "Findings", "impression": "Impression", "indication": "Indication", "comparison": "Comparison"}


def read_rexgradient(folder: str | Path, images: str | Path | None) -> Source:
    """The studies of the three official splits, in the tables' order. folder: holds metadata/.

    The patient is a study's id up to its first underscore. images: the folder that holds the unpacked deid_png/.
    """
    tables = [Path(folder) / "metadata" / f"{split}_metadata.csv" for split in SPLITS]
    if not any(path.is_file() for path in tables):
        raise InputError(f"no metadata/train_metadata.csv in {folder}")
    studies, files = [], []
    counts: Counter[str] = Counter()
    for (name, split), table in zip(SPLITS.items(), tables):
        if not table.is_file():
            counts[f"no {table.name}: no {split} studies"] += 1
            continue
        beside = table.with_name(f"{name}_metadata_view_position.json")
        views = _views(beside)
        files += [table, beside]
        columns = ("id", "StudyDate", *SECTIONS.values())
        rows = read_columns(table, columns)
        for study, date, *texts in zip(*(rows[column].tolist() for column in columns)):
            sections = {section: text.strip() for section, text in zip(SECTIONS, texts)}
            shown = _images(study, views.get(study, {}), beside)
            studies.append(SourceStudy(study, study.partition("_")[0], split, sections, shown, date))
    return Source("ReXGradient-160K", studies, files, _open(images) if images else None, counts)


def _views(path: Path) -> dict[str, dict]:
    content = read_json(path, "it names the images")
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected {{study id: {{"ImagePath": [...], "ImageViewPosition": [...]}}}}')
    return content


def _images(study: str, entry: dict, where: Path) -> list[SourceImage]:
    paths = entry.get("ImagePath", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InputError(f"{where}: ImagePath of {study} is no list of paths")
    views = entry.get("ImageViewPosition")
    if not isinstance(views, list) or len(views) != len(paths):
        views = [""] * len(paths)  # which view belongs to which image is not said
    return [
        SourceImage(f"{study}_{number}", path.removeprefix("../"), str(view or "").upper())
        for number, (path, view) in enumerate(zip(paths, views))
    ]


def _open(images: str | Path) -> ImageFolder:
    root = Path(images).resolve()
    if root.name == "deid_png":
        root = root.parent
    if not (root / "deid_png").is_dir():
        if any(root.glob("deid_png.part*")):
            raise InputError(f"{root} holds the packed images: unpack them with cat deid_png.part* | tar --zstd -xf -")
        raise InputError(f"no deid_png/ in {root}")
    return ImageFolder(root)
