"""What the three preparation commands share: their flags, and the run from a source to annotation, images and manifest."""

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.preparation.annotation import (
    check_out,
    compare_annotations,
    compare_ids,
    count_lines,
    left_out_lines,
    manifest_file,
    write_annotation,
)
from data.preparation.rows import (
    ORDERS,
    SECTIONS,
    SPLITS,
    UNITS,
    VIEWS,
    Rows,
    Rules,
    make_rows,
    without_images,
)
from data.preparation.source import Source
from modules.artefact import sha256, write_json
from modules.errors import InputError

_RULE_FLAGS = ("unit", "views", "section", "order", "min_words", "max_words", "context", "priors", "split", "seed",
               "own_validation", "layout", "views_key")  # fmt: skip
_SHOWN = 5


@dataclass(frozen=True)
class Preset:
    """Rules of a published preparation, the rows it has by split (several joined by +), its hashes, a word on it."""

    rules: Mapping[str, Any]
    expected: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def command_flags(module: str, description: str) -> argparse.ArgumentParser:
    """The flags of every preparation; those that are not given are the preset's."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rules = flags.add_argument_group("rows")
    rules.add_argument("--unit", choices=UNITS, help="a row per image or per study")
    rules.add_argument("--views", choices=VIEWS, help="all images, the first two, or one: PA, else AP, else the first")
    rules.add_argument("--section", choices=SECTIONS, help="text of the report; any: whatever there is")
    rules.add_argument("--order", choices=ORDERS, help="order of a study's images: the source's, or frontal ones first")
    rules.add_argument("--min_words", type=int, help="shorter reports are left out (0: none)")
    rules.add_argument("--max_words", type=int, help="longer reports are left out (0: none)")
    rules.add_argument("--context", action=argparse.BooleanOptionalAction, help="write the other sections as keys")
    rules.add_argument("--priors", action=argparse.BooleanOptionalAction, help="write study_time and prior_study_id")
    rules.add_argument("--split", help="official, or shares of train, val and test cut by patient, such as 7:1:2")
    rules.add_argument("--seed", type=int, help="of the cut by patient")
    rules.add_argument("--own_validation", type=int, metavar="STUDIES", help="cut val out of train, by patient; the official "
                       "val is test where there is none, else unused")  # fmt: skip
    out = flags.add_argument_group("what is written")
    out.add_argument("--out", required=True, type=Path, help="folder of annotation.json, its manifest, and images/")
    how = out.add_mutually_exclusive_group()
    how.add_argument("--symlink", action="store_true", help="images/ is made of links (default for a folder)")
    how.add_argument("--copy", action="store_true", help="images/ holds copies (default for an archive)")
    how.add_argument("--resize", type=int, metavar="N", help="JPEG copies, shorter side at most N pixels")
    how.add_argument("--no_images", action="store_true", help="the annotation alone; no image is looked for")
    out.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    out.add_argument("--overwrite", action="store_true", help="an annotation that was made otherwise is replaced")
    check = flags.add_argument_group("held against")
    check.add_argument(
        "--compare_ids", type=Path, metavar="FILE", help="CSV of published outputs (dicom_id, study_id or id)"
    )
    check.add_argument(
        "--from_annotation", type=Path, metavar="JSON", help="an annotation of R2Gen's format got elsewhere"
    )
    check.add_argument("--strict_counts", action="store_true", help="other counts than the preset's are an error")
    return flags


def check_flags(args: argparse.Namespace) -> None:
    """InputError for numbers that make no sense."""
    for name, least in (("workers", 1), ("resize", 1), ("min_words", 0), ("max_words", 0), ("own_validation", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be {least} or more")
    for name in ("compare_ids", "from_annotation"):
        path = getattr(args, name)
        if path is not None and not path.is_file():
            raise InputError(f"--{name}: no file {path}")


def run(args: argparse.Namespace, source: Source, preset: Preset, settings: Mapping[str, object]) -> dict:
    """Make rows, images, annotation and manifest of a source, and say what was made. Returns the manifest.

    settings: what the reader was told beside the rules; it goes into the manifest.
    """
    rules, expected, own = _rules(args, source, preset)
    how = _how(args, source)
    inputs = {
        "source": source.name,
        **settings,
        "rules": dataclasses.asdict(rules),
        "images": how,
        "files": {path.name: _digest(path) for path in source.files},
    }
    annotation = args.out / "annotation.json"
    check_out(annotation, inputs, args.overwrite)
    made = make_rows(source, rules, resized=how.startswith("resize"))
    failed = _bring(args, source, made, how)
    without_images(made, failed)
    if not any(made.rows.values()):
        raise InputError(
            f"{source.name}: no study is left of {len(source.studies):,d}:\n" + "\n".join(left_out_lines(made.left_out))
        )
    found = {split: len(rows) for split, rows in made.rows.items()}
    unlike = count_lines(expected, found, _causes(source, made))
    if unlike and args.strict_counts:
        raise InputError(f"--strict_counts: {source.name} does not have the preset's counts:\n" + "\n".join(unlike))
    facts = {"expected": expected, "left_out": dict(sorted(made.left_out.items())), "counted": dict(source.counts),
             "missing_images": len(made.missing_images), "failed_images": len(failed)}  # fmt: skip
    if made.boxes:
        write_json(
            args.out / "boxes.json", {row["id"]: made.boxes[row["id"]] for rows in made.rows.values() for row in rows}
        )
    manifest = write_annotation(annotation, made.rows, inputs, **facts)
    _say(annotation, manifest, made, failed, unlike, own, preset)
    for name, lines in (
        ("compare_ids", lambda path: [compare_ids(made.rows, path)]),
        ("from_annotation", lambda path: compare_annotations(made.rows, path)),
    ):
        if getattr(args, name):
            print("\n".join(lines(getattr(args, name))))
    return manifest


def _rules(args, source: Source, preset: Preset) -> tuple[Rules, Mapping[str, int], list[str]]:
    """The rules; the counts to expect, none where a flag differs from the preset; those flags."""
    settings = dict(preset.rules)
    typed = {name: getattr(args, name) for name in _RULE_FLAGS if getattr(args, name, None) is not None}
    if "split" not in {**settings, **typed} and not any(study.split for study in source.studies):
        settings["split"] = "7:1:2"
        print("the data set names no split: cut by patient, 7:1:2 (--split)")
    rules = Rules(**{**settings, **typed})
    if rules.split != "official" and not any(study.subject_id is not None for study in source.studies):
        print("no patient is known: studies of one patient may fall into two splits")
    plain = Rules(**settings)
    rows_matter = [name for name in typed if name not in ("context", "priors", "views_key", "layout", "order")]
    own = [f"--{name}" for name in rows_matter if getattr(rules, name) != getattr(plain, name)]
    return rules, {} if own else preset.expected, own


def _how(args, source: Source) -> str:
    if args.resize:
        return f"resize {args.resize}"
    if source.images is None:
        return "none"
    return "link" if not args.copy and (args.symlink or source.images.path.is_dir()) else "copy"


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files below a folder."""
    if path.is_file():
        return sha256(path)
    lines = [
        f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in sorted(path.rglob("*")) if file.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bring(args, source: Source, made: Rows, how: str) -> dict[str, str]:
    if source.images is None:
        return {}
    from data.preparation.images import bring_images  # here: without images nothing needs PyTorch, which it imports

    return bring_images(made.images, source.images, args.out, how, args.workers)


def _causes(source: Source, made: Rows) -> list[str]:
    causes = [f"{reason}: {number:,d} studies" for reason, number in sorted(made.left_out.items()) if number]
    causes += [f"images that are not there: {len(made.missing_images):,d}"] if made.missing_images else []
    return causes + [f"{what}: {number:,d}" for what, number in source.counts.items() if number]


def _say(annotation, manifest, made: Rows, failed, unlike, own, preset: Preset) -> None:
    print(f"written: {annotation} and {manifest_file(annotation).name}")
    for split in SPLITS:
        facts = ", ".join(f"{number:,d} {what}" for what, number in manifest["counts"][split].items())
        print(f"  {split:5s} {facts}")
    print(
        "\n".join(left_out_lines(made.left_out) + [f"  {what}: {n:,d}" for what, n in manifest["counted"].items() if n])
    )
    for what, names in (
        ("images that are not there", made.missing_images),
        ("images that cannot be read", list(failed)),
    ):
        if names:
            print(f"  {what}: {len(names):,d}, such as {', '.join(names[:_SHOWN])}")
    print(f"  ids     sha256 {manifest['ids_sha256']}\n  reports sha256 {manifest['reports_sha256']}")
    if own:
        print(f"counts are not compared with the preset's: {', '.join(own)} differ from it")
    elif preset.hashes:
        same = all(manifest[name] == digest for name, digest in preset.hashes.items())
        print("both hashes are the published data set's" if same else "NOT the published data set: its hashes differ")
    if unlike:
        print("counts differ from the preset's:\n" + "\n".join(unlike))
    elif preset.expected and not own:
        print("counts are the preset's")
    if preset.note:
        print(preset.note)
