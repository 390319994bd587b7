"""PadChest-GR: grounded_reports_20240819.json, sentences with boxes, and master_table.csv with split and patient."""

from collections import Counter
from pathlib import Path

from data.preparation.image_files import ImageFolder
from data.preparation.source import Source, SourceImage, SourceStudy, read_columns, split_name
from modules.artefact import read_json
from modules.errors import InputError

KEPT = ("abnormal", "labels", "locations", "progression", "boxes", "extra_boxes")


def read_padchest_gr(
    reports: str | Path, master_table: str | Path, images: str | Path | None, *, language: str = "en"
) -> Source:
    """Studies in the JSON's order; the report is its sentences in order, the boxes go into the side file.

    Boxes are [x1, y1, x2, y2] from 0 to 1 of width and height; extra_boxes are the second reader's. language: "en", "es".
    images: the folder of the images, or one above it.
    """
    table = read_columns(master_table, ("StudyID", "ImageID", "split", "PatientID")).drop_duplicates(
        ["StudyID", "ImageID"]
    )
    listed = {(study, image): (split, patient) for study, image, split, patient in table.itertuples(index=False)}
    studies = []
    counts: Counter[str] = Counter()
    for number, entry in enumerate(_entries(Path(reports))):
        key = (str(entry.get("StudyID", "")), str(entry.get("ImageID", "")))
        if key not in listed:
            raise InputError(f"{reports}: entry {number}, study {key[0]!r}, image {key[1]!r}, is not in {master_table}")
        split, patient = listed[key]
        boxes = [_finding(finding, language, f"{reports}: study {key[0]}") for finding in entry.get("findings", [])]
        outside = sum(not 0 <= side <= 1 for one in boxes for name in KEPT[-2:] for box in one[name] for side in box)
        counts["sides of boxes outside of the image"] += outside
        text = " ".join(one["sentence"] for one in boxes if one["sentence"])
        image = SourceImage(key[1], key[1])
        studies.append(
            SourceStudy(
                key[0], patient or None, split_name(split, str(master_table)), {"findings": text}, [image], boxes=boxes
            )
        )
    store = ImageFolder(_image_root(Path(images))) if images else None
    return Source("PadChest-GR", studies, [Path(reports), Path(master_table)], store, counts)


def _entries(path: Path) -> list[dict]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path}: expected a list of studies, each with StudyID, ImageID and findings")
    return content


def _finding(finding: dict, language: str, where: str) -> dict:
    sentence = finding.get(f"sentence_{language}")
    if not isinstance(sentence, str):
        raise InputError(f"{where}: a finding without sentence_{language}")
    kept = {name: finding.get(name) for name in KEPT}
    for name in KEPT[-2:]:
        boxes = kept[name] = kept[name] or []
        sides = [side for box in boxes for side in (box if isinstance(box, list) and len(box) == 4 else [None])]
        if not all(isinstance(side, (int, float)) for side in sides):
            raise InputError(f"{where}: {name} are not lists of x1, y1, x2, y2")
    return {"sentence": sentence.strip(), **kept}


def _image_root(images: Path) -> Path:
    known = (images / "Padchest_GR_files" / "PadChest_GR", images / "PadChest_GR")
    return next((root for root in known if root.is_dir()), images)
