"""`main_test.py --score`, `--compare`, `--table`: scoring without weights or images."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from modules.artefact import read_json, sha256, write_atomic, write_json
from modules.errors import InputError
from modules.precision import choose_device
from modules.results_page.build import write_page
from modules.results_page.evidence import annotation_images, write_images
from modules.results_page.pair import run_name, write_comparison
from modules.run_folder import describe_run
from modules.scoring.baselines import without_baselines
from modules.scoring.constant_report import constant_reports
from modules.scoring.meteor import Meteor
from modules.scoring.metrics import METRICS, REFERENCE_COLUMNS, check_ids, checked_rows
from modules.scoring.optional_metrics import check_extra
from modules.scoring.other_files import Split, read_any
from modules.scoring.predictions import R2GenReferences, read_reports, unit_columns, write_predictions
from modules.scoring.published import published_rows
from modules.scoring.resampling import Units, paired_differences, units_of
from modules.scoring.rexrank import export_rows, is_rexrank, read_rexrank, rows_with_references
from modules.scoring.score_all import Scores, make_labelers, measure_all, score_all, study_columns, write_scores
from modules.scoring.score_table import drawn, format_table, markdown
from modules.scoring.tables import read_run, render, table_rows

ORACLE = "ORACLE: the diagnoses of the scored studies were made from their reports"


def print_marks(facts: dict, name: str = "") -> None:
    """What a reader of a run's scores must know: an oracle's labels, a system's own marks."""
    for mark in ([ORACLE] if facts.get("oracle_labels") else []) + list(facts.get("marks", ())):
        print(f"{name}{mark}")


def print_scores(data_set: str | None, metrics: dict) -> None:
    """The tables of one run, with the published rows where they are of the same studies."""
    rows, note = published_rows(data_set, metrics)
    print(format_table(metrics, rows))
    if note:
        print(note)


def run_command(args, open_image: Callable, retrieve: Callable | None = None) -> bool:
    """Carry out --score, --compare or --table; False when none of them was given. InputError as everywhere.

    open_image: path -> PIL image, for the page of a scored file.
    retrieve: (ids of the split, references) -> {id: the reports of retrieval by column}, for --score with --baselines all.
    """
    chosen = [name for name in ("score", "compare", "table") if getattr(args, name)]
    retrieved = args.score and args.baselines == "all"
    chosen += ["load"] if chosen and "load" in args.typed and not retrieved else []
    if len(chosen) > 1:
        raise InputError(f"--{' and --'.join(chosen)}: one at a time")
    if args.compare and len(args.compare) != 2:
        raise InputError(f"--compare takes two files, not {len(args.compare)}")
    if args.export and not args.score and args.export != "rexrank_submission":
        raise InputError("--export goes with --score, rexrank_submission with --load")
    if not chosen:
        return False
    check_extra(args.extra_metrics)
    if args.score:
        score_file(args, open_image, retrieve if retrieved else None)
    else:
        {"compare": compare_files, "table": print_table}[chosen[0]](args)
    return True


def read_split(args) -> Split | None:
    """The split that a file is scored against: of --reference, or of the data set when its flags were typed."""
    typed = {"reference", "ann_path", "data_dir", "dataset_name"} & args.typed
    if not typed:
        return None
    path = args.reference or args.ann_path
    rows = read_reports(path, "--reference" if args.reference else "--ann_path")
    reports = {split: [row.text for row in rows if row.split == split] for split in ("train", "val")}
    chosen = [row for row in rows if row.split == args.split]
    if not chosen:
        raise InputError(f"{path} has no {args.split} studies")
    rule = {"rule": args.cleaning, "threshold": args.reference_threshold, "max_words": args.reference_words}
    references = R2GenReferences(reports["train"], **rule)
    print(f"{path}, {args.split}: {len(chosen)} studies, prepared as {args.dataset_name} (--dataset_name): {rule}")
    constants = constant_reports(reports["train"], reports["val"], references) if reports["val"] else {}
    units = dict(zip((row.id for row in chosen), unit_columns(chosen)))
    return Split(args.split, {row.id: row.text for row in chosen}, references, constants, units)


def with_retrieved(split: Split | None, retrieve: Callable) -> Split:
    """The split with the reports of retrieval as columns."""
    if split is None:
        raise InputError("--baselines all needs the training studies: give --reference annotation.json")
    found = retrieve(list(split.reports), split.references)
    return dataclasses.replace(split, columns={study: {**split.columns.get(study, {}), **found[study]} for study in found})


def scoring_settings(args) -> dict:
    """Keyword arguments of scoring.measure_all that come from flags."""
    labelers = make_labelers(args.chexbert_path, args.chexbert_vocab, choose_device(args.device))
    extra = {"extra": args.extra_metrics, "offline": args.offline, "radgraph_dir": args.radgraph_dir}
    return {"protocols": args.protocols, "labelers": labelers, **extra}


def score_file(args, open_image: Callable, retrieve: Callable | None = None) -> None:
    """Score one file; the results lie beside a predictions file of ours, of any other in --save_dir."""
    path, split, settings = Path(args.score), read_split(args), scoring_settings(args)
    if retrieve is not None:
        split = with_retrieved(split, retrieve)
    if split is None and is_rexrank(path):
        rows = rows_with_references(path, args.rexrank_section, args.cleaning)
        settings["protocols"] = [name for name in args.protocols if name != "r2gen"]
        print("protocol r2gen needs the training reports: give --reference; the others follow")
    else:
        rows = read_any(path, split)
    ours = path.name == f"predictions_{args.split}.csv"
    folder = Path(args.save_dir) if "save_dir" in args.typed else path.parent if ours else Path(f"results/{path.stem}")
    again = ours and folder.resolve() == path.parent.resolve()
    if not again and (folder / "run.json").is_file():
        raise InputError(f"--save_dir: {folder} holds a run of its own; choose another folder for the scores of {path}")
    first = read_facts(path, args.split) if again else {}  # a damaged one is told before the scoring
    scores = score_all(rows, resamples=args.bootstrap, resample_by=args.resample_by, **settings)
    if split is None:
        scores.metrics["notes"]["ids"] = "not checked against a split: give --reference annotation.json"
    record = folder / f"metrics_{args.split}.json"
    facts = {"name": folder.name, "split": args.split, "scored": {"path": str(path), "sha256": sha256(path)}}
    facts |= {"data_set": args.dataset_name if split is not None else None}
    facts["scoring"] = describe_run(args, choose_device(args.device))
    if again:  # a run of ours that is scored again stays the run that it was
        facts = {**first, "scored_again": facts} if first else facts
    else:
        write_predictions(folder / f"predictions_{args.split}.csv", rows)
    write_scores(folder, args.split, scores, facts)
    print_scores(facts["data_set"], scores.metrics)
    print_marks(facts)
    print(f"written: {record}, scores_{args.split}.csv and labels_{args.split}.csv")
    if args.page:
        if split is not None and not again:
            show_images(args, folder, open_image)
        print(f"results page: {write_page(folder, args.split)}")
    if args.export:
        ending = {"csv": ".csv", "res_gts": ""}.get(args.export, ".json")
        out = Path(args.out or folder / f"{args.export}_{args.split}{ending}")
        files = export_rows(args.export, out, rows, read_rexrank(args.rexrank) if args.rexrank else None)
        print(f"written: {', '.join(map(str, files))}, {len(rows)} studies")


def show_images(args, folder: Path, open_image: Callable) -> None:
    """Keep the annotation's images for the page where they lie in --image_dir."""
    images = annotation_images(args.reference or args.ann_path, args.split, args.image_dir)
    if images:
        write_images(folder / f"evidence_{args.split}.jsonl", images, args.image_dir, open_image)
        print(f"page: images of {len(images)} studies from {args.image_dir}")


def read_facts(predictions: str | Path, split: str) -> dict:
    """What metrics_<split>.json beside a predictions file says of its run; empty where there is none."""
    record = Path(predictions).with_name(f"metrics_{split}.json")
    if not record.is_file():
        return {}
    facts = read_json(record, "remove it and score again")
    if not isinstance(facts, dict):
        raise InputError(f"{record} does not describe a run; remove it and score again")
    return {k: v for k, v in facts.items() if k != "metrics"}


def compare_files(args) -> None:
    """Paired bootstrap of two files on the same studies."""
    if not args.bootstrap:
        raise InputError("--compare resamples the studies: --bootstrap must be 1 or more")
    split, settings = read_split(args), scoring_settings(args)
    both = [checked_rows(read_any(path, split)) for path in args.compare]
    check_ids([row["id"] for row in both[1]], [row["id"] for row in both[0]])
    for protocol in args.protocols:
        column = REFERENCE_COLUMNS[protocol]
        other = [a["id"] for a, b in zip(*both) if a[column] != b[column]]
        if other:
            raise InputError(f"--compare: {len(other)} studies have other {protocol} references, such as {other[:3]}")
    with Meteor() as meteor:
        a, b = (measure_all([without_baselines(row) for row in rows], meteor=meteor, **settings) for rows in both)
    # a file of another program may lack the columns that say which rows share a study
    units = max((units_of(rows, args.resample_by) for rows in both), key=lambda units: len(units.of_row) - units.count)
    ours, theirs = ({key: one for key, one in side[0].items() if one is not None} for side in (a, b))
    found = paired_differences(ours, theirs, args.bootstrap, units.of_row)
    print(comparison_table(found, args.compare, args.protocols, units))
    for path in args.compare:
        print_marks(read_facts(path, args.split), f"{path}: ")
    for name, reason in (a[2] | b[2]).items():
        print(f"{name}: {reason}")
    if args.out:
        files = [{"path": str(path), "sha256": sha256(path)} for path in args.compare]
        content = {"a": files[0], "b": files[1], "studies": len(both[0]), "resamples": args.bootstrap, "unit": units.name,
                   "units": units.count, "metrics": found}  # fmt: skip
        write_json(args.out, content)
        print(f"written: {args.out}, every key")
    if args.page:
        print(f"page: {comparison_page(args, both, (a[0], b[0]), found, units)}")


def comparison_page(args, both, statistics, found: Mapping[str, dict], units: Units) -> Path:
    """The page of --compare, in --save_dir where that was typed."""
    names = "_".join(run_name(path) for path in args.compare)
    facts = [
        {"path": str(path), "sha256": sha256(path), "marks": list(read_facts(path, args.split).get("marks", ()))}
        for path in args.compare
    ]
    return write_comparison(
        args.save_dir if "save_dir" in args.typed else f"results/compare_{names}",
        both,
        [study_columns(Scores([], side, {}, {})) for side in statistics],
        {key: found[key] for key in shown_keys(found, args.protocols)},
        paths=args.compare,
        facts=facts,
        note=f"Paired bootstrap, {drawn(units.name, units.count)}; not corrected for many metrics.",
        split=args.split,
    )


def shown_keys(found: Mapping[str, dict], protocols) -> list[str]:
    """The keys that people read: text metrics, F1 of findings, of 14 and of 5 labels."""
    keys = [f"{protocol}/{name}" for protocol in protocols for name in METRICS]
    keys += [key for key in found if key.endswith("/f1") and key.startswith("ce/")]  # those of 13 findings first
    keys += [key for key in found if key.split("/")[0] in ("radgraph", "radeval")]
    return [key for key in keys if key in found]


def comparison_table(found: Mapping[str, dict], names, protocols, units: Units) -> str:
    """The table of `shown_keys`. Every key is in the file of --out."""
    lines = [["metric", "a", "b", "b - a", "95% interval", "p", "verdict"]]
    for key in shown_keys(found, protocols):
        one = found[key]
        low, high = one["interval"]
        verdict = "not distinguished" if low <= 0 <= high else "b is higher" if low > 0 else "a is higher"
        numbers = [f"{one['a']:.4f}", f"{one['b']:.4f}", f"{one['difference']:+.4f}", f"{low:+.4f} .. {high:+.4f}"]
        lines.append([key, *numbers, f"{one['p']:.3f}", verdict])
    head = [f"a: {names[0]}", f"b: {names[1]}", ""]
    note = (
        "not distinguished: the interval of the difference holds 0, which does not make them equal (paired bootstrap, "
        f"{drawn(units.name, units.count)}; not corrected for many metrics)."
    )
    return "\n".join([*head, *markdown(lines, words=1), "", note])


def print_table(args) -> None:
    """--table: runs or metrics files in one table, under the first of --protocols."""
    runs = [read_run(path, args.split) for path in args.table]
    protocol = args.protocols[0]
    rows, note = published_rows(runs[0].data_set, runs[0].metrics)
    published = {name: values for name, values in rows.items() if values.get("protocol", "r2gen") == protocol}
    header, lines, notes = table_rows(runs, protocol, published, digits=3 if args.table_format == "latex" else 4)
    text = render(header, lines, notes + ([note] if note else []), args.table_format)
    print(text)
    if args.out:
        write_atomic(args.out, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
