"""CheXpert Plus: df_chexpert_plus_240401.csv, one row per image; the JPEG or the PNG release."""

import re
from collections import Counter
from pathlib import Path

from data.preparation.image_files import ImageFolder
from data.preparation.source import Source, SourceImage, SourceStudy, read_columns, split_name
from modules.errors import InputError

SECTIONS = {"findings": "section_findings", "impression": "section_impression", "comparison": "section_comparison",
            "technique": "section_technique", "history": "section_history",
            "indication": "section_clinical_history"}  # fmt: skip
_COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "patient_report_date_order", "split", *SECTIONS.values())
_PATH = re.compile(r"(?:.*/)?((?:train|valid)/(patient\d+)/(study\d+)/([^/.]+)\.\w+)")


def read_chexpert_plus(table: str | Path, images: str | Path | None) -> Source:
    """Studies (patient64620_study1) in the table's order; the official splits train and valid.

    Rows of a study carry near-copies of one report (their anonymised dates differ): the first is taken. images: the folder
    that holds train/ and valid/.
    """
    rows = read_columns(table, _COLUMNS)
    studies: dict[str, SourceStudy] = {}
    counts: Counter[str] = Counter()
    for path, lateral, projection, order, split, *texts in zip(*(rows[name].tolist() for name in _COLUMNS)):
        found = _PATH.fullmatch(path)
        if not found:
            raise InputError(f"{table}: path_to_image {path!r} is not train/patient1/study1/view1_frontal.jpg")
        relative, patient, number, view = found.groups()
        name = f"{patient}_{number}"
        sections = {section: text.strip() for section, text in zip(SECTIONS, texts)}
        if name not in studies:
            # whole numbers of one width sort as texts do
            time = f"{int(float(order)):06d}" if order else ""
            studies[name] = SourceStudy(name, patient, split_name(split, str(table)), sections, [], time)
        elif studies[name].sections != sections:
            counts["rows whose report differs from the first of their study (which is taken)"] += 1
        shown = projection or lateral
        studies[name].images.append(SourceImage(f"{name}_{view}", relative, shown.upper()))
    store = ImageFolder(images) if images else None
    return Source("CheXpert Plus", list(studies.values()), [Path(table)], store, counts)
