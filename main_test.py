"""Test a system: `bash test_iu.sh`, or `python main_test.py --load best.pt`; with --image, write one new report.

Without weights: --score FILE, --compare A B, --table RUNS (modules/scoring/commands.py).
"""

import functools
import sys
from pathlib import Path

from data.batches import make_loader
from data.feature_cache import serve_features
from data.images import Reading, open_image, reading_of
from data.prepare import make_dataset, open_data, say_only
from data.studies import card_text, limit_marks, read_annotation
from knowledge.diagnose import diagnose_studies
from knowledge.new_study import generator, report_new_study
from knowledge.retrieve import retrieved_reports
from knowledge.rexrank import report_rexrank, write_submission
from models import SYSTEMS
from models.system import model_of, use_released
from modules import processes
from modules.artefact import sha256
from modules.checkpoint import is_ours, load_checkpoint
from modules.decoding import DecodingSettings
from modules.errors import InputError, Problems, entry
from modules.flags import HELP, parse, read_typed
from modules.generation import write_split
from modules.precision import Precision, choose_device, seed_everything
from modules.progress import working
from modules.results_page.build import write_page
from modules.results_page.diagnoses import write_diagnoses
from modules.results_page.evidence import Attention, write_evidence
from modules.results_page.model_card import write_model_card
from modules.run_folder import describe_run
from modules.scoring.commands import print_marks, print_scores, run_command, scoring_settings
from modules.scoring.constant_report import constant_reports
from modules.scoring.optional_metrics import check_extra
from modules.scoring.predictions import R2GenReferences, unit_columns, write_predictions
from modules.scoring.score_all import score_all, write_scores


def read_flags(argv) -> tuple:
    """Flags and the loaded weights, None where nothing is loaded. The weights decide --model where it is not typed, and a
    checkpoint of ours brings the flags it was trained with."""
    load = vars(read_typed(argv, "test", systems=SYSTEMS)).get("load")
    content = load_checkpoint(load) if load and not HELP & set(argv) else None
    if content is None or is_ours(content):
        return parse(argv, "test", systems=SYSTEMS, carried=content and content["flags"]), content
    args = parse(argv, "test", systems=SYSTEMS, fallback=model_of(content, SYSTEMS))
    use_released(args, content, SYSTEMS)
    return args, content


@entry
def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args, content = read_flags(argv)
    opener = functools.partial(open_image, reading=Reading(args.dicom))
    if run_command(args, opener, functools.partial(retrieve_for_file, args, content)):
        return
    if content is None:
        raise InputError("--load: give a checkpoint of ours (results/<run>/best.pt) or the authors' weights")
    device = processes.start(choose_device(args.device))
    seed_everything(args.seed, args.deterministic)
    kind, problems = SYSTEMS[args.model], Problems()
    kind.check(args, problems, training=False, carried=is_ours(content))
    how = (kind, DecodingSettings.from_flags(args), Precision(args.precision, device), device)
    if args.export == "rexrank_submission" or args.rexrank or args.image:
        problems.stop_if_any()
    if args.export == "rexrank_submission":
        write_submission(args, Path(args.out or f"{args.save_dir}_submission"))
    elif args.rexrank:
        report_rexrank(args, generator(args, content, *how))
    elif args.image:
        report_new_study(args, content, *how)
    else:
        test_split(args, content, problems, *how)


def test_split(args, content: dict, problems: Problems, kind, decoding, precision, device) -> None:
    """A report for every study of --split; then, in the first process, scores, files and page in the results folder."""
    ours = is_ours(content)
    parts = content["parts"] if ours else None
    check_extra(args.extra_metrics)
    scoring = scoring_settings(args)  # a labeler that does not load is told now, not when the reports are written
    # training and validation reports are read for the protocol's word counts and the constant report, not for images
    inputs = kind.inputs(args, training=False)
    brought = {"diagnosis"} if parts and "diagnosisbot" in parts and "diagnosisbot" not in args.typed else set()
    more = {"views": kind.views(args), "trained": trained_equalized(content)}
    if args.dry_run:
        say_only(args, {args.split: inputs - brought}, problems, texts=True, **more)
        return
    data = open_data(args, {args.split: inputs - brought}, problems, texts=True, **more)
    problems.stop_if_any()
    print(card_text(data.card))
    if args.cache_dir is None:
        print(f"the checkpoint names {args.knowledge_dir}: read, not written to; --knowledge_dir keeps decoded images there")

    diagnosed = diagnose_studies(args, data, [args.split], device, parts) if "diagnosis" in inputs else None
    words = data.corpora["train"]
    tokenizer = kind.tokenizer_kind.from_state_dict(content["tokenizer"]) if ours else kind.make_tokenizer(words, args)
    system = kind.build(args, tokenizer, parts)
    system.load_start(content, args.load)
    system = system.to(device).eval()
    dataset = make_dataset(args, data, args.split, system.needs(training=False), tokenizer, training=False)
    if args.feature_cache != "off" and args.cache_dir is not None:
        serve_features(args, system.extractors(), {args.split: dataset}, device=device, precision=precision)
    loading = {"num_workers": args.num_workers, "pin": device.type == "cuda"}
    loader = make_loader(dataset, batch_size=args.batch_size, shuffle=False, **loading)
    watch = Attention(system, tokenizer, studies=len(dataset), views=args.max_views) if args.page else None
    written = write_split(system, loader, tokenizer, decoding, precision=precision, device=device, watch=watch)
    seen = processes.gather(watch.rows) if watch else {}
    rule = {"rule": args.cleaning, "threshold": args.reference_threshold, "max_words": args.reference_words}
    references = R2GenReferences(words, **rule)
    where = {"device": device, "precision": precision}
    found = retrieved_reports(args, system.extractor, data.training, data.studies[args.split], references, **where)
    if processes.rank() > 0:
        return  # the first process has every report and scores them once

    folder = results_folder(args, ours)
    score_split(args, content, data, folder, written=written, found=found, references=references, scoring=scoring, device=device)
    if args.page:
        opener = functools.partial(open_image, reading=reading_of(args))
        write_evidence(folder / f"evidence_{args.split}.jsonl", dataset, seen, opener)
        write_diagnoses(folder, args.split, diagnosed)
        print(f"results page: {write_page(folder, args.split)}")


def score_split(args, content: dict, data, folder: Path, *, written, found, references, scoring: dict, device) -> None:
    """Write the predictions file, score it, and write and print the scores.

    written, found: {study id: columns of the predictions file}, of the system and of the baselines that look at the images.
    """
    kind, ours = SYSTEMS[args.model], is_ours(content)
    trained_limit = content["flags"].get("limit", 0) if ours else 0
    with working("the best constant reports"):
        constants = constant_reports(data.texts["train"], data.texts["val"], references)
    studies = data.studies[args.split]
    rows = [
        references.row(study.id, study.report, **written[study.id], **constants, **found.get(study.id, {}), **units)
        for study, units in zip(studies, unit_columns(studies))
    ]
    predictions = folder / f"predictions_{args.split}.csv"
    write_predictions(predictions, rows)
    with working("scoring, with intervals"):
        resampling = {"resamples": args.bootstrap, "resample_by": args.resample_by}
        scores = score_all(rows, expected_ids=[study.id for study in studies], **resampling, **scoring)
    facts = {
        "split": args.split,
        "data_set": args.dataset_name,
        "weights": {"path": args.load, "sha256": sha256(args.load)},
        "studies_listed": data.listed[args.split],
        "skipped": data.card["skipped"],
        "oracle_labels": data.oracle or bool(ours and content.get("oracle")),
        "marks": (*kind.marks(args), *limit_marks(args.limit, trained=trained_limit)),
        "knowledge_fallbacks": sum(row.get("knowledge_distance", "0") != "0" for row in rows),
        "run": describe_run(args, device, data=data.card, **kind.facts(args, device)),
    }
    write_scores(folder, args.split, scores, facts)
    write_model_card(folder)
    print_scores(args.dataset_name, scores.metrics)
    print_marks(facts)
    if any("knowledge_distance" in row for row in rows):
        print(
            f"knowledge: {facts['knowledge_fallbacks']} of {len(rows)} studies have a diagnosis without an entry of its own"
        )
    print(f"written: {predictions}, metrics_{args.split}.json, scores_{args.split}.csv and labels_{args.split}.csv")


def retrieve_for_file(args, content: dict | None, studies: list, references: R2GenReferences) -> dict[str, dict[str, str]]:
    """The baselines of --score that look at the images: `studies` by the extractor of --load, see retrieved_reports."""
    if content is None or not is_ours(content):
        raise InputError("--baselines all: the nearest studies are found by the extractor of a checkpoint of ours: give --load")
    kind, device = SYSTEMS[args.model], choose_device(args.device)
    system = kind.build(args, kind.tokenizer_kind.from_state_dict(content["tokenizer"]), content["parts"])
    system.load_start(content, args.load)
    everything = read_annotation(args.reference or args.ann_path)
    scored = {study.id: study for study in everything[args.split]}
    how = {"device": device, "precision": Precision(args.precision, device)}
    chosen = [scored[study] for study in studies]
    return retrieved_reports(args, system.extractor, everything["train"], chosen, references, **how)


def trained_equalized(content: dict) -> float | None:
    """Which share of the images a checkpoint was trained on was equalised; None where it is not known."""
    return content["data"].get("equalized") if is_ours(content) else None


def results_folder(args, ours: bool) -> Path:
    """Beside a checkpoint of ours unless --save_dir is typed; released weights get a folder of their own."""
    if ours and "save_dir" not in args.typed:
        return Path(args.load).parent
    return Path(args.save_dir if "save_dir" in args.typed else f"{args.save_dir}_released")


if __name__ == "__main__":
    main(sys.argv[1:])
