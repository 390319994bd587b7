"""Everything that training needs beside images and reports, built in order: `main_train.py --from_scratch`.

Each step is a command of its own and may be run alone. What any step will need is checked, and a plan printed, before the
first one starts. A result that is there is kept, also one of other settings (a line says how they differ) unless --rebuild names
it; a killed step goes on where it was. All results lie in --knowledge_dir and serve every system and every --seed, which
is the training's alone.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.check.findings import FOUND, UNUSUAL, Findings
from data.check.weights import check_machine
from data.studies import SPLITS, Study, read_annotation
from knowledge import (
    build_base,
    build_prototypes,
    build_scene_graphs,
    generate_adm,
    label_reports,
    train_adm_classifier,
    train_diagnosisbot,
    train_region_detector,
)
from knowledge.classifier import flags as classifier_flags
from models import SYSTEMS
from modules.artefact import read_manifest, sha256
from modules.errors import InputError, Problems
from modules.flags import TRAIN, Flag
from modules.nets.pretrained import weights_problem
from modules.progress import duration
from modules.text.labels import read_label_table
from modules.trainer import monitor_parts

PLACES = ("dataset_name", "data_dir", "ann_path", "image_dir", "knowledge_dir", "limit")
CHECKS = ("image_check", "num_workers", "device", "dicom", "equalize", "skip_broken")
WEIGHTS = ("weights_dir", "offline")
PROTOTYPES = (
    "visual_extractor", "extractor_weights", "image_size", "resize_filter", "max_views", "num_prototypes", "d_txt_ebd",
    "cleaning", "batch_size", "labels_path",
)  # fmt: skip
MODEL = ("model", "max_seq_length", "d_model", "threshold", "cleaning")

# the steps' own rows that are settings, by the prefix they have here
TABLES = {
    "label": label_reports.OWN, "bot": train_diagnosisbot.JOB.flags, "adm": train_adm_classifier.JOB.flags,
    "mask": generate_adm.OWN, "base": build_base.OWN, "prototype": build_prototypes.OWN,
    "detector": train_region_detector.OWN, "graph": build_scene_graphs.OWN,
}  # fmt: skip
NO_SETTINGS = frozenset(
    "out overwrite keep show phrases agreement text texts text_column held_out overlay overlays overlay_count sample splits "
    "export_tree import_tree adm_classifier adm_rule scene_graphs detector boxes attributes".split()
)
NAMES = ("labels", "diagnosisbot", "adm_classifier", "masks", "base", "prototypes", "region_detector", "scene_graphs")
FLAGS = (
    Flag("knowledge", "rebuild", str, None, "with --from_scratch: make these anew, and what is made from them", of=TRAIN,
         choices=NAMES, nargs="+"),
    *(replace(row, group="steps of --from_scratch", name=f"{prefix}_{row.name}", default=None, file="", of=TRAIN, keep="",
              help=row.help + (f" [{row.default}]" if row.default not in (None, "") and row.kind is not bool else ""))
      for prefix, rows in TABLES.items() for row in rows if row.name not in NO_SETTINGS),
)  # fmt: skip
GFLOP = {  # of one image of 224 x 224 pixels, forward
    "resnet18": 1.8, "resnet34": 3.7, "resnet50": 4.1, "resnet101": 7.8, "resnet152": 11.5, "densenet121": 2.9,
    "efficientnet_lite0": 0.4, "cvt_21": 7.1, "cvt_small": 1.0, "swin_t": 4.5, "swin_b": 15.4,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command: name of --rebuild, what it makes, its main and words, its file, the prefix of its flags."""

    name: str
    what: str
    main: Callable
    words: list[str]
    out: Path
    prefix: str
    start: tuple[str, str] | None = None  # network and weights it starts from
    work: float = 0.0  # GFLOP

    def state(self, rebuild) -> str:
        """What will happen: made, made anew, kept."""
        if not self.out.exists():
            return "made"
        return "made anew" if self.name in rebuild else "kept"


def words(args, names: tuple[str, ...], **more) -> list[str]:
    """Flags as they would be typed; True is a bare flag, None, False and 0 are left out."""
    values = {name: getattr(args, name) for name in names} | more
    typed = []
    for name, value in values.items():
        if value is True:
            typed.append(f"--{name}")
        elif value not in (None, False):
            typed += [f"--{name}", str(value)]
    return typed


def settings(args, prefix: str) -> list[str]:
    """The typed settings of a step, without their prefix."""
    typed = []
    for row in TABLES[prefix]:
        value = getattr(args, f"{prefix}_{row.name}", None)
        if row.name in NO_SETTINGS or value is None:
            continue
        if row.kind is bool:
            typed.append(f"--{'' if value else 'no-'}{row.name}")
        else:
            typed += [f"--{row.name}", *map(str, value if row.nargs else [value])]
    return typed


def masks_of(args) -> str:
    """Where the masks of --adm_rule lie; SDAM's stand beside ADM's."""
    return str(Path(args.knowledge_dir) / ("sdam_masks" if args.adm_rule == "sdam" else "adm_masks"))


def steps(args, counts: dict[str, int] | None = None) -> list[Step]:
    """What the system reads with these flags, no more, in order. counts: studies by split, for the time expected."""
    kind, counts = SYSTEMS[args.model], counts or dict.fromkeys(SPLITS, 0)
    reads = kind.inputs(args, training=True) | kind.inputs(args, training=False)
    learnt, every = counts["train"], sum(counts.values())
    made = []

    def network(name, what, main, job, prefix, own):
        """A step that trains: its resolved flags tell network and cost."""
        start = [] if f"{prefix}_backbone_weights" in args.typed else words_of_bot_weights(args)
        typed = [*own, *start, *settings(args, prefix)]
        flags = job(typed)
        work = flags.epochs * (3 * learnt + counts["val"]) * gflop(flags.backbone, flags.image_size)
        made.append(
            Step(name, what, main, typed, Path(flags.out), prefix, (flags.backbone, flags.backbone_weights), work)
        )

    labels = args.labels_path
    learning = words(args, (*PLACES, *CHECKS, *WEIGHTS), labels_path=labels)
    if reads and "labels_path" not in args.typed:
        typed = [*words(args, ("dataset_name", "data_dir", "ann_path", "knowledge_dir"), out=labels), *settings(args, "label")]
        made.append(Step("labels", "labels of the reports, by rules", label_reports.main, typed, Path(labels), "label"))
    if "diagnosis" in reads and not args.diagnosis_path:
        network("diagnosisbot", "DiagnosisBot: image to diagnosis", train_diagnosisbot.main,
                lambda typed: classifier_flags.parse(typed, train_diagnosisbot.JOB), "bot",
                [*learning, "--out", args.diagnosisbot])  # fmt: skip
    if "masks" in reads:
        network("adm_classifier", "ADM classifier", train_adm_classifier.main,
                lambda typed: classifier_flags.parse(typed, train_adm_classifier.JOB), "adm",
                [*learning, "--out", args.adm_classifier])  # fmt: skip
        typed = words(args, (*PLACES, *CHECKS, "adm_classifier", "adm_rule", "max_views"), out=masks_of(args))
        what = "SDAM masks" if args.adm_rule == "sdam" else "ADM masks"
        work = 1.5 * every * args.max_views * gflop("resnet34", 300)
        made.append(
            Step(
                "masks",
                what,
                generate_adm.main,
                [*typed, *settings(args, "mask")],
                Path(masks_of(args)),
                "mask",
                work=work,
            )
        )
    if "knowledge" in reads:
        typed = [
            *words(args, (*PLACES, *MODEL, "skip_broken"), labels_path=labels, out=args.knowledge_path),
            *settings(args, "base"),
        ]
        made.append(
            Step(
                "base",
                "knowledge base: expert reports by diagnosis",
                build_base.main,
                typed,
                Path(args.knowledge_path),
                "base",
            )
        )
    if "prototypes" in reads:
        typed = [
            *words(args, (*PLACES, *CHECKS, *WEIGHTS, *PROTOTYPES), out=args.prototypes),
            *settings(args, "prototype"),
        ]
        work = 2 * learnt * args.max_views * gflop(args.visual_extractor, args.image_size)
        what = "prototypes: clusters of image and text features by label"
        made.append(
            Step("prototypes", what, build_prototypes.main, typed, Path(args.prototypes), "prototype", work=work)
        )
    if "scene_graphs" in reads and "scene_graphs" not in args.typed:
        made += scene_graph_steps(args, network)
    return made


def words_of_bot_weights(args) -> list[str]:
    """One --bot_backbone_weights serves every network that is trained here, unless that has its own."""
    return words(args, (), backbone_weights=getattr(args, "bot_backbone_weights", None))


def gflop(network: str, side: int) -> float:
    """Of one image forward."""
    return GFLOP.get(network, 5.0) * (side / 224) ** 2


def scene_graph_steps(args, network: Callable) -> list[Step]:
    """Scene graphs by atlas and rules; where the data set brings its own, what they say, and boxes of a detector trained on
    them, so that a new image is seen as those of training are."""
    out = Path(args.knowledge_dir) / "scene_graphs.jsonl"
    build = words(args, (*PLACES, "image_check", "device", "dicom", "equalize", "skip_broken"), out=out)
    own = Path(args.data_dir) / "scene_graphs.jsonl"
    what, how = "scene graphs: atlas and rules", ["--boxes", "atlas", "--attributes", "rules"]
    if own.is_file():
        file = out.with_name("region_detector.pt")
        detector = words(args, (*PLACES, *CHECKS, *WEIGHTS), scene_graphs=own, out=file)
        read, main = train_region_detector.read_flags, train_region_detector.main
        network("region_detector", "region detector: image to boxes", main, read, "detector", detector)
        what = "scene graphs: what the data set says, boxes of the detector"
        how = ["--boxes", "detector", "--detector", str(file), "--attributes", str(own)]
    return [Step("scene_graphs", what, build_scene_graphs.main, [*build, *how, *settings(args, "graph")], out, "graph")]


# --------------------------------------------------------------------------------------------- the plan and its checks


def rebuilt(args) -> set[str]:
    """--rebuild, and what is made from it."""
    names = set(args.rebuild or ())
    follow = {"adm_classifier": "masks", "region_detector": "scene_graphs"}
    return names | {follow[name] for name in names if name in follow}


def pointed(args, todo: list[Step]) -> argparse.Namespace:
    """The flags, which point at what the steps make."""
    args = argparse.Namespace(**vars(args))
    for step in todo:
        if step.name == "masks":
            args.adm_masks = str(step.out)
        if step.name == "scene_graphs":
            args.scene_graphs = str(step.out)
    return args


def plan(args) -> tuple[list[Step], str, Problems]:
    """The steps, their table for people, and everything that would stop one of them or the training."""
    problems, studies = Problems(), {}
    try:
        studies = read_annotation(args.ann_path, args.limit)
    except InputError as error:
        problems.add(str(error))
    todo = steps(args, {split: len(studies.get(split, ())) for split in SPLITS})
    args = pointed(args, todo)
    check_all(args, todo, studies, problems)
    rebuild = rebuilt(args)
    unread = sorted(set(args.rebuild or ()) - {step.name for step in todo})
    problems.check(not unread, f"--rebuild {' '.join(unread)}: no step of --model {args.model} with these flags")
    rows = [("step", "file", "", "minutes")]
    rows += [(step.what, str(step.out), step.state(rebuild), minutes(args, step.work) if step.state(rebuild) != "kept" else "-")
             for step in todo]  # fmt: skip
    passes = args.epochs * (1 + getattr(args, "gid_rounds", 0)) * args.max_views
    work = 4 * passes * len(studies.get("train", ())) * gflop(args.visual_extractor, args.image_size)
    rows.append((f"training {args.model}", f"{args.save_dir}/best.pt", "made", minutes(args, work)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = "\n".join(
        "  ".join([*(f"{cell:{width}s}" for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows
    )
    return todo, f"{table}\nminutes: roughly, computed from the networks' sizes for this machine", problems


def minutes(args, work: float) -> str:
    """Rough time for `work` GFLOP: about 25 a second and core, 3,000 on a GPU."""
    cuda = args.device != "cpu" and torch.cuda.is_available()
    return f"{max(1, round(work / (3000 if cuda else 25 * (os.cpu_count() or 1)) / 60))}"


def check_all(args, todo: list[Step], studies: dict[str, list[Study]], problems: Problems) -> None:
    """Weights of every network, labels, images, disk, Java, artefacts that cannot serve: noted before anything is made."""
    problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}")
    rebuild, where = (
        rebuilt(args),
        {"weights_dir": args.weights_dir, "offline": args.offline, "fetch": not args.dry_run},
    )
    for step in todo:
        if step.start and step.state(rebuild) != "kept":
            text = weights_problem(
                *step.start, **where, flags=(f"{step.prefix}_backbone", f"{step.prefix}_backbone_weights")
            )
            problems.check(text is None, text or "")
        if step.name == "base" and step.state(rebuild) == "kept":
            check_base(args, step, problems)
    if not args.load:
        text = weights_problem(args.visual_extractor, args.extractor_weights, **where)
        problems.check(text is None, text or "")
    later = Problems()
    SYSTEMS[args.model].check(args, later, training=True)
    for text in later.texts:
        problems.check(any(str(step.out) in text for step in todo), text)
    if "labels_path" in args.typed:
        try:
            table = read_label_table(args.labels_path)
            lacking = [study.id for study in studies.get("train", ()) if study.id not in table]
            problems.check(
                not lacking,
                f"--labels_path {args.labels_path} lacks {len(lacking)} training studies, such as {lacking[:3]}",
            )
        except InputError as error:
            problems.add(f"--labels_path: {error}")
    found = Findings()
    check_machine(
        found, args, {split: [{"image_path": list(s.images)} for s in rows] for split, rows in studies.items()}
    )
    needs_java = any(name.endswith("METEOR") for name in monitor_parts(args.monitor_metric))
    for item in found.items:
        if item.what == "METEOR" and item.status != FOUND and not needs_java:
            print(f"note: METEOR will be n/a: {item.facts}; {item.todo}")
        elif item.status not in (FOUND, UNUSUAL) or (item.what == "disk" and item.status == UNUSUAL):
            problems.add(f"{item.what}: {item.facts}" + (f" ({item.note})" if item.note else "") + f"; {item.todo}")


def check_base(args, step: Step, problems: Problems) -> None:
    """A base of other reports or of another shape cannot serve."""
    theirs = (read_manifest(step.out) or {}).get("inputs")
    if theirs is None or not Path(args.ann_path).is_file():
        return
    ours = {
        "shape": [args.max_seq_length, args.d_model],
        "threshold": args.threshold,
        "annotation_sha256": sha256(args.ann_path),
    }
    for name, value in ours.items():
        text = f"{step.out} was built for another {name} ({theirs.get(name)}, here {value}): add --rebuild base"
        problems.check(theirs.get(name) == value, text)


def show(args) -> None:
    """--dry_run: the plan and what would stop it."""
    _, table, problems = plan(args)
    print(table)
    if problems.texts:
        print("this run would not start:\n" + "\n".join(f"  - {text}" for text in problems.texts))


def prepare(args):
    """Check everything, print the plan, run the steps and say what each does; returns the flags, which then point at the
    results. InputError lists all that would stop a step, before the first one starts."""
    todo, table, problems = plan(args)
    print(table, flush=True)
    problems.stop_if_any()
    rebuild = rebuilt(args)
    for number, step in enumerate(todo, 1):
        print(f"\n== {number}/{len(todo)} {step.what}", flush=True)
        start = time.perf_counter()
        step.main([*step.words, "--overwrite" if step.name in rebuild else "--keep"])
        print(f"   {duration(time.perf_counter() - start)}", flush=True)
    print(f"\n== training {args.model}", flush=True)
    return pointed(args, todo)


def check_flags(args) -> None:
    """InputError for settings of steps that are not run."""
    typed = sorted(args.typed & {flag.name for flag in FLAGS})
    if typed and not args.from_scratch:
        raise InputError(f"--{', --'.join(typed)}: settings of the steps of --from_scratch, which is not given")
