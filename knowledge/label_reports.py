"""Label reports with the rule-based labeler, show its reasons, or measure it against the labels of another one.

    python -m knowledge.label_reports --dataset_name iu_xray [--phrases phrases.json]
    python -m knowledge.label_reports --agreement other.csv --texts texts.csv --text_column impression [--held_out]
    python -m knowledge.label_reports --text "No effusion, mild cardiomegaly."

The first writes `split,id,<14 labels>` to <knowledge_dir>/labels.csv and a manifest beside it. The second counts uncertain as
positive on both sides; `--held_out` takes only the studies that the rules were not written on (see `held_out`).
"""

import csv
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from knowledge.command import out, read
from modules.artefact import make_manifest, manifest_path, read_manifest, sha256, write_atomic, write_json
from modules.errors import InputError, Problems, entry
from modules.flags import Flag
from modules.scoring.predictions import read_reports
from modules.text.cleaning import SPLITS
from modules.text.labeler import UNCERTAIN_RULES, VERSION, label_report, label_reports, label_values
from modules.text.labels import CHEXPERT_14, NO_FINDING, read_label_table, write_label_table

HELD_OUT_BELOW = 90  # of 256: about 35 %


def held_out(study: str) -> bool:
    """Whether a study was set aside before any rule was written: first byte of the SHA-1 of its id below 90."""
    return hashlib.sha1(study.encode()).digest()[0] < HELD_OUT_BELOW


def label_annotation(ann_path: str, out: str, uncertain: str, phrases: str | None, *, keep: bool = False) -> None:
    """Write the label table of an annotation, its manifest, and on request the deciding phrases.

    keep: a table of others, or of these reports with other settings, is left as it is.
    """
    rows = read_reports(ann_path, "--ann_path")
    made_from = {"labeler": VERSION, "uncertain": uncertain, "source_sha256": sha256(ann_path)}
    old = read_manifest(out) if Path(out).is_file() else None
    if old and made_from.items() <= old.items() and old["table_sha256"] == sha256(out) and not phrases:
        print(f"{out} is there and was made from these reports: kept")
        return
    if keep and Path(out).is_file() and (old is None or old.get("source_sha256") == made_from["source_sha256"]):
        print(f"{out}: kept, though it was made otherwise: {old.get('labeler') if old else 'by others, it has no manifest'}")
        return
    mentions = [label_report(row.text) for row in rows]
    table = [(row.split, row.id, label_values(found, uncertain)) for row, found in zip(rows, mentions)]
    write_label_table(out, table)
    positives = {label: sum(values[i] == 1 for _, _, values in table) for i, label in enumerate(CHEXPERT_14)}
    manifest = make_manifest(
        "report labels",
        **made_from,
        labels=list(CHEXPERT_14),
        source=str(ann_path),
        table_sha256=sha256(out),
        studies={split: sum(row.split == split for row in rows) for split in SPLITS},
        positives=positives,
    )
    write_json(manifest_path(out), manifest)
    print(f"{out}: {len(rows)} reports, uncertain counted {uncertain}; manifest {manifest_path(out)}")
    if phrases:
        said = {
            row.id: {label: list(mention) for label, mention in found.items() if mention.state != "absent"}
            for row, found in zip(rows, mentions)
        }
        text = json.dumps(said, indent=0, ensure_ascii=False) + "\n"
        write_atomic(phrases, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"{phrases}: the words that decided each label")


def read_texts(path: str | Path, column: str) -> dict[str, str]:
    """{id: text} of a CSV with an id column and `column`."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            absent = [name for name in ("id", column) if name not in (reader.fieldnames or [])]
            if absent:
                raise InputError(f"--texts: {path} has no column {', '.join(absent)}")
            return {row["id"]: row[column] or "" for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--texts: cannot read {path} ({error})") from error


def f1(hits: int, false: int, missed: int) -> float:
    """F1 from counts; 0 where nothing was there and nothing found."""
    return 2 * hits / (2 * hits + false + missed) if hits else 0.0


def agreement(theirs: Mapping[str, Sequence[int]], texts: Mapping[str, str], studies: Iterable[str]) -> dict:
    """Agreement over `studies` of our labels for `texts` with `theirs` (CHEXPERT_14 order), uncertain as positive.

    Out: per label (precision, recall, f1, positives); micro_13 over all findings but No Finding; macro_14; reports and
    seconds of our labeling. InputError names what is missing.
    """
    studies = list(studies)
    lost = [study for study in studies if study not in texts]
    if lost or not studies:
        raise InputError(f"{len(lost)} of {len(studies)} labelled studies have no text, such as {lost[:3]}")
    start = time.perf_counter()
    ours = label_reports(texts[study] for study in studies)
    seconds = time.perf_counter() - start
    rows: dict[str, tuple[float, float, float, int]] = {}
    result = {"labels": rows, "reports": len(studies), "seconds": seconds}
    total = [0, 0, 0]
    for i, label in enumerate(CHEXPERT_14):
        pairs = [(int(row[i]), int(theirs[study][i] == 1)) for row, study in zip(ours, studies)]
        hits, false, missed = pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1))
        precision, recall = hits / max(1, hits + false), hits / max(1, hits + missed)
        rows[label] = (precision, recall, f1(hits, false, missed), hits + missed)
        if label != NO_FINDING:
            total = [a + b for a, b in zip(total, (hits, false, missed))]
    result["micro_13"] = f1(*total)
    result["macro_14"] = sum(row[2] for row in rows.values()) / len(CHEXPERT_14)
    return result


def show_agreement(labels_path: str, texts_path: str, column: str, only_held_out: bool) -> dict:
    """Print the agreement of two tables; returns what `agreement` returns."""
    theirs, texts = read_label_table(labels_path), read_texts(texts_path, column)
    studies = [study for study in theirs if held_out(study)] if only_held_out else list(theirs)
    result = agreement(theirs, texts, studies)
    print(f"{'label':28s} precision  recall     f1  positives")
    for label, (precision, recall, score, positives) in result["labels"].items():
        print(f"{label:28s} {precision:9.3f} {recall:7.3f} {score:6.3f} {positives:10d}")
    print(f"micro-F1 of 13 findings {result['micro_13']:.4f}, macro-F1 of 14 labels {result['macro_14']:.4f}")
    speed = result["reports"] / max(result["seconds"], 1e-9)
    part = "held-out studies" if only_held_out else "studies"
    print(f"{result['reports']} {part}, {speed:,.0f} reports/s, labeler {VERSION}")
    return result


# fmt: off
OWN = (
    Flag("another labeler", "agreement", str, None, "CSV of another labeler's labels: measure ours against it, and leave"),
    Flag("another labeler", "texts", str, None, "CSV with the texts, column id among them (with --agreement)"),
    Flag("another labeler", "text_column", str, "impression", "column of --texts to label"),
    Flag("another labeler", "held_out", bool, False, "only the studies the rules were not written on"),
    Flag("one report", "text", str, None, "print its labels and the words that decided them, and leave"),
    Flag("labels", "phrases", str, None, "JSON to write: per study the deciding words"),
    Flag("labels", "uncertain", str, "positive", "what an uncertain finding becomes; keep: -1", choices=tuple(UNCERTAIN_RULES)),
    *out("labels.csv", "CSV"),
)
# fmt: on


@entry
def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = read(argv, "label_reports", __doc__, ("dataset_name", "data_dir", "ann_path", "knowledge_dir"), OWN)
    problems, placed = Problems(), {"out", "dataset_name", "knowledge_dir"} & args.typed
    problems.check("ann_path" not in args.typed or placed, "--ann_path needs --out, the CSV to write, or --dataset_name")
    problems.check(not args.agreement or args.texts, "--agreement needs --texts, the CSV that holds the reports")
    problems.check(len({"agreement", "text"} & args.typed) < 2, "--agreement and --text: one at a time")
    problems.stop_if_any()
    if args.agreement:
        show_agreement(args.agreement, args.texts, args.text_column, args.held_out)
    elif args.text is not None:
        for label, (state, phrase) in label_report(args.text).items():
            print(f"{label:28s} {state:10s} {phrase}")
    else:
        label_annotation(args.ann_path, args.out, args.uncertain, args.phrases, keep=args.keep)


if __name__ == "__main__":
    main()
