"""What a system reads beside images and reports, and the weights that a run looks for."""

from collections.abc import Iterable
from pathlib import Path

from data.check.findings import FOUND, MISSING, UNUSUAL, WRONG, Findings
from data.mask_store import open_masks
from modules.artefact import read_manifest, sha256
from modules.errors import InputError
from modules.text.labels import read_label_table

# what a system asks for -> the flag that names the file, and the command that makes it
ARTEFACTS = {
    "labels": ("labels_path", "python -m knowledge.label_reports"),
    "diagnosis": ("diagnosisbot", "python -m knowledge.train_diagnosisbot"),
    "knowledge": ("knowledge_path", "python -m knowledge.build_base"),
    "masks": ("adm_masks", "python -m knowledge.generate_adm"),
    "prototypes": ("prototypes", "python -m knowledge.build_prototypes"),
    "scene_graphs": ("scene_graphs", "python -m knowledge.build_scene_graphs"),
}


def check_artefacts(found: Findings, args, rows: dict[str, list[dict]], wanted: Iterable[str]) -> None:
    """One item for each of `wanted` (names of ARTEFACTS): there, whole, made from this annotation, complete."""
    digest = sha256(args.ann_path)
    for name in sorted(wanted):
        flag, command = ARTEFACTS[name]
        if name == "diagnosis" and args.diagnosis_path:
            flag = "diagnosis_path"
        path = getattr(args, flag)
        if not path or not Path(path).exists():
            how = f"{command}, or main_train.py --from_scratch builds it"
            found.add("artefacts", MISSING, name, f"--{flag}: no file {path}", how)
            continue
        try:
            facts, status, how = _made_from(path, digest, command)
            lacking = _lacking(args, name, flag, rows)
        except InputError as error:
            found.add("artefacts", WRONG, name, f"--{flag}: {error}", f"make it again: {command}")
            continue
        if lacking:
            text = f"{path} lacks {len(lacking):,d} of this annotation's"
            found.add("artefacts", WRONG, name, text, f"make it again: {command}", lacking)
        else:
            found.add("artefacts", status, name, facts, how)


def _made_from(path, digest: str, command: str) -> tuple[str, str, str]:
    """(facts, status, what to do) of an artefact by its manifest."""
    manifest = read_manifest(path)
    if manifest is None:
        return f"{path} has no manifest: made by others, from what is not known", FOUND, ""
    facts = manifest | manifest.get("inputs", {})
    if Path(path).is_file() and (facts.get("sha256") or facts.get("table_sha256")) != sha256(path):
        raise InputError(f"{path} was changed after it was built")
    theirs = facts.get("annotation_sha256") or facts.get("source_sha256")
    if theirs and theirs != digest:
        return f"{path} was made from another annotation", UNUSUAL, f"make it again: {command} --overwrite"
    return f"{path}" + (", made from this annotation" if theirs else ""), FOUND, ""


def _lacking(args, name: str, flag: str, rows: dict[str, list[dict]]) -> list[str]:
    """Ids or images that an artefact should know and does not."""
    if flag in ("labels_path", "diagnosis_path"):
        table = read_label_table(getattr(args, flag))
        splits = ("train",) if name == "labels" else tuple(rows)
        return sorted(str(row["id"]) for split in splits for row in rows[split] if str(row["id"]) not in table)
    if name == "masks":
        masks = open_masks(args.adm_masks)
        used = {path for split in rows for row in rows[split] for path in row["image_path"][: args.max_views]}
        return sorted(path for path in used if not masks.has(path))
    return []
