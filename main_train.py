"""Train a system: `bash train_iu.sh`, or `python main_train.py --help` for every flag."""

import copy
import dataclasses
import json
import shutil
import sys
from pathlib import Path

from data.batches import make_loader
from data.check.run import stop_unless_ready
from data.feature_cache import check_features, serve_features
from data.prepare import make_dataset, open_data, say_only
from data.studies import card_text, limit_marks
from knowledge import from_scratch
from knowledge.diagnose import diagnose_studies, optional_parts
from models import SYSTEMS
from models.system import model_of, use_released
from modules import processes
from modules.artefact import read_json, write_atomic
from modules.checkpoint import is_ours, load_checkpoint
from modules.decoding import DecodingSettings
from modules.errors import InputError, Problems, entry
from modules.flags import HELP, all_flags, kept_flags, parse, read_typed
from modules.generation import write_split
from modules.image_use import ImageUse
from modules.precision import Precision, choose_device, seed_everything
from modules.progress import working
from modules.results_page.model_card import write_model_card
from modules.run_folder import RunLog, check_inputs, describe_run, open_run, write_run
from modules.scoring.meteor import Meteor
from modules.scoring.metrics import metric_keys, score
from modules.scoring.predictions import R2GenReferences
from modules.self_critical import PROBE, check_flags, objective_of, stage_flags
from modules.trainer import SUMS, Trainer, monitor_parts


def read_flags(argv) -> tuple:
    """The flags of this run and the weights of --load, which decide --model where it is not typed; with --resume the flags of
    the run that goes on, typed ones win."""
    load = vars(read_typed(argv, "train", systems=SYSTEMS, extra=from_scratch.FLAGS)).get("load")
    start = load_checkpoint(load) if load and not HELP & set(argv) else None
    args = parse(argv, "train", systems=SYSTEMS, extra=from_scratch.FLAGS, fallback=start and model_of(start, SYSTEMS))
    if args.resume is None:
        if args.rl_epochs and args.load and "epochs" not in args.typed:
            args.epochs = 0
        return args, start
    record = Path(args.resume or args.save_dir)
    record = (record.parent if record.is_file() else record) / "run.json"
    if not record.is_file():
        raise InputError(f"--resume: no run in {record.parent}; the folder is chosen by --save_dir")
    run = read_json(record, "the run cannot be continued without it")
    try:
        latest = [run, *run.get("resumed", [])][-1]["flags"]
        carried = {name: value for name, value in latest.items() if name != "resume"}
    except (AttributeError, LookupError, TypeError) as error:
        raise InputError(f"--resume: {record} does not say the run's flags: it is damaged") from error
    resumed = parse(argv, "train", systems=SYSTEMS, carried=carried, extra=from_scratch.FLAGS)
    fixed = sorted({"optimizer", "amsgrad"} & resumed.typed)
    if any(getattr(resumed, name) != latest.get(name) for name in fixed):
        raise InputError(f"--{', --'.join(fixed)}: the optimiser's state is of the kind that the run began with; leave it out")
    resumed.save_dir = str(record.parent)
    return resumed, start


@entry
def main(argv=None) -> None:
    args, start = read_flags(sys.argv[1:] if argv is None else argv)
    device = processes.start(choose_device(args.device))
    seed_everything(args.seed, args.deterministic)
    Precision(args.precision, device)  # refuses what the device cannot do, before anything is built
    from_scratch.check_flags(args)
    if args.from_scratch and args.dry_run:
        from_scratch.show(args)
        print(json.dumps(all_flags(args), indent=1))
        return
    if args.from_scratch and args.resume is None:
        args = processes.from_first(lambda: from_scratch.prepare(args))
    if start is not None and not is_ours(start):
        use_released(args, start, SYSTEMS)
    kind, problems = SYSTEMS[args.model], Problems()
    if args.check_data:
        processes.from_first(lambda: stop_unless_ready(args, kind))
    inputs = {"train": kind.inputs(args, training=True), "val": kind.inputs(args, training=False)}
    if args.rl_epochs:  # samples are drawn from what evaluation reads
        inputs["train"] |= inputs["val"]
    check_run(args, kind, inputs, problems)
    if args.dry_run:
        say_only(args, inputs, problems, training=True, views=kind.views(args))
        return
    data = open_data(args, inputs, problems, training=True, views=kind.views(args))
    problems.stop_if_any()
    print(card_text(data.card))

    folder = processes.from_first(lambda: open_run(args, resume=args.resume is not None))
    log = RunLog(folder)
    marked = {"oracle_labels": data.oracle, "marks": (*kind.marks(args), *limit_marks(args.limit))}
    facts = describe_run(args, device, data=data.card, **marked, **kind.facts(args, device))
    if args.resume is not None:
        processes.from_first(lambda: check_inputs(folder, facts, args.typed))
    processes.from_first(lambda: write_run(folder, facts, resume=args.resume is not None))
    diagnosed = [split for split, names in inputs.items() if "diagnosis" in names]
    if diagnosed:
        diagnose_studies(args, data, diagnosed, device)
    tokenizer = kind.make_tokenizer(data.corpora["train"], args)
    shared = {"start": start, "data": data, "tokenizer": tokenizer, "kind": kind, "device": device}
    with Meteor() as meteor:
        reason = processes.from_first(meteor.check)
        if reason:
            log.write("meteor", say=f"METEOR is n/a in this run: {reason}", reason=reason)
            if any(name.endswith("METEOR") for name in monitor_parts(args.monitor_metric)):
                raise InputError(f"--monitor_metric {args.monitor_metric} cannot be computed: {reason}")
        best, value = train_rounds(args, folder, log, meteor=meteor, **shared)
    log.say(last_line(args, best, value))
    processes.from_first(lambda: write_model_card(folder))


def check_run(args, kind, inputs: dict[str, set[str]], problems: Problems) -> None:
    """Note everything about a training with these flags that would fail later."""
    check_flags(args, inputs, problems)
    kind.check(args, problems, training=True)
    check_features(args, problems, training=True)
    DecodingSettings.from_flags(args)  # refuses what does not go together
    problems.check(
        not (args.resume is not None and "load" in args.typed), "--resume continues, --load starts anew: give one of the two"
    )
    part = processes.count() * args.accumulate
    problems.check(
        args.batch_size >= part,
        f"--batch_size {args.batch_size} is below {processes.count()} process(es) x --accumulate {args.accumulate}: "
        f"some would never see a study; take at least {part}",
    )
    monitors = [*metric_keys(("r2gen", "cvt2")), *SUMS]
    if f"r2gen/{args.monitor_metric}" in monitors:  # as R2Gen's code names them
        args.monitor_metric = f"r2gen/{args.monitor_metric}"
    problems.check(
        args.monitor_metric in monitors, f"--monitor_metric {args.monitor_metric}: choose from {', '.join(monitors)}"
    )


def last_line(args, best: Path, value: float | None) -> str:
    """Best value, its file, and what to type next."""
    if value is None:
        return f"no epoch had a value of {args.monitor_metric}: no best.pt; {best.with_name('last.pt')} holds the last epoch"
    return f"best {args.monitor_metric} {value:.4f}: {best}\nnext: python main_test.py --load {best}"


def train_rounds(args, folder: Path, log, **shared) -> tuple[Path, float | None]:
    """One training, or of a system that distils a teacher and N students, the best so far teaching the next; then, with
    --rl_epochs, self-critical training from the best. Returns the best checkpoint and its monitored value."""
    rounds, teacher = shared["kind"].rounds(args)
    best, value = Path(args.load or ""), None
    if args.epochs and rounds:
        best, value = train_students(args, folder, log, rounds=rounds, **shared)
    elif args.epochs:
        best, value = train_round(args, folder, log, teacher=teacher, **shared)
    if not args.rl_epochs:
        return best, value
    rl_args = stage_flags(args)
    rl_args.load, rl_args.resume = str(best), "" if (folder / "rl" / "last.pt").is_file() else None
    log.write("rl", say=f"self-critical training from {best}", start=str(best), reward=args.rl_reward,
              baseline=args.rl_baseline, samples=args.rl_samples)  # fmt: skip
    return train_round(rl_args, folder / "rl", log, teacher=teacher, rl=True, **{**shared, "start": load_checkpoint(best)})


def train_students(args, folder: Path, log, *, rounds: int, **shared) -> tuple[Path, float | None]:
    """A teacher-to-be and its students; best.pt of the best of them."""
    best, best_value = None, None
    for number in range(rounds + 1):  # round 0 has no teacher: it becomes one
        what = f"a student of {best}" if best else "the teacher-to-be"
        log.write("round", say=f"round {number} of {rounds}: {what}", round=number, teacher=best and str(best))
        round_args = shared["kind"].teacher_flags(args) if number == 0 else copy.copy(args)
        round_args.resume = "" if (folder / f"round_{number}" / "last.pt").is_file() else None
        path, value = train_round(round_args, folder / f"round_{number}", log, teacher=best, **shared)
        if best_value is None or (value is not None and value > best_value):
            best, best_value = path, value
    processes.from_first(lambda: write_atomic(folder / "best.pt", lambda temporary: shutil.copyfile(best, temporary)))
    log.write("rounds", best=str(best), value=best_value)
    return folder / "best.pt", best_value


def train_round(args, folder: Path, log, *, teacher, start, data, tokenizer, kind, device, meteor, rl=False):
    """One training into `folder`, from the weights `start` (--load) or pretrained ones; returns its best checkpoint and the
    monitored value. rl: self-critical."""
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(args.seed, args.deterministic)
    system = kind.build(args, tokenizer)
    if start is None:
        system.load_pretrained(args)
    if teacher:
        system.attach_teacher(args, tokenizer, teacher)
    trained = sum(p.numel() for group in system.parameter_groups().values() for p in group)
    words = tokenizer.vocab_size
    log.write("system", say=f"{kind.title}: {words:,} words, {trained / 1e6:.2f} M trained parameters; the rest is in {folder}",
              model=args.model, words=words, trained_parameters=trained, teacher=teacher and str(teacher))  # fmt: skip

    settings = {"num_workers": args.num_workers, "pin": device.type == "cuda"}
    part = max(1, args.batch_size // (processes.count() * args.accumulate))  # what one process holds at a time
    precision = Precision(args.precision, device)
    texts = R2GenReferences(
        data.corpora["train"],
        rule=args.cleaning,
        threshold=args.reference_threshold,
        max_words=args.reference_words,
    )
    objective = None
    if rl:
        reports = {study.id: study.report for split in ("train", "val") for study in data.studies[split]}
        facts = {"corpus": data.corpora["train"], "reports": reports, "texts": texts, "device": device}
        objective = objective_of(args, system, tokenizer, precision, **facts)
    needs = objective.needs() if rl else system.needs(training=True)
    training = make_dataset(args, data, "train", needs, tokenizer, training=True)
    validation = make_dataset(args, data, "val", system.needs(training=False) | {"tokens"}, tokenizer, training=False)
    val_loader = make_loader(validation, batch_size=part, shuffle=False, **settings)
    decoding = DecodingSettings.from_flags(args)
    decoding = dataclasses.replace(decoding, beam_size=args.val_beam_size or args.beam_size)
    protocols = sorted({"r2gen", *(name.split("/")[0] for name in monitor_parts(args.monitor_metric))})
    probe = {study.id for study in data.studies["val"][:PROBE]}

    def validate(system) -> dict:
        if rl:
            objective.watch(objective.survey(val_loader, probe, device), log)
        use = ImageUse(system)
        written = write_split(system, val_loader, tokenizer, decoding, precision=precision, device=device, watch=use)
        rows = [texts.row(study.id, study.report, **written[study.id]) for study in data.studies["val"]]
        with working("scoring the validation reports"):
            scores = processes.from_first(lambda: score(rows, expected_ids=list(written), protocols=protocols, meteor=meteor))
        return {name: value for name, value in scores.items() if not isinstance(value, dict)} | {"image_use": use.value()}

    carried = {
        "flags": kept_flags(args),
        "tokenizer": tokenizer.state_dict(),
        "data": data.card,
        "oracle": data.oracle,
        "parts": {**system.parts(), **optional_parts(args, kind.inputs(args, training=False))},
    }
    trainer = Trainer(
        system,
        make_loader(
            training,
            batch_size=args.batch_size,
            accumulate=args.accumulate,
            shuffle=True,
            drop_last=args.drop_last,
            **settings,
        ),
        validate,
        args=args,
        device=device,
        folder=folder,
        log=log,
        carried=carried,
        objective=objective,
    )
    if start is not None:
        system.load_start(start, args.load)
    if rl:
        objective.freeze_start()
    if args.resume is not None:
        path = Path(args.resume) if args.resume.endswith(".pt") else folder / "last.pt"
        if path.is_file():
            trainer.resume(path)
    if args.feature_cache != "off":  # the extractor has its weights now
        datasets = {"train": training, "val": validation}
        made = serve_features(args, system.extractors(), datasets, device=device, precision=precision)
        log.write("features", **made)
    return trainer.fit(), trainer.best


if __name__ == "__main__":
    main(sys.argv[1:])
