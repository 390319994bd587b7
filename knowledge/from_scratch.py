"""Everything that training needs beside images and reports, built in order: `main_train.py --from_scratch`.

Each step is a command of its own and may be run alone; a step whose result is there and was made from the same inputs is
kept, a killed one goes on where it was. All results lie in --knowledge_dir and serve every system and every --seed, which
is the training's alone.
"""

import time
from pathlib import Path

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
from models import SYSTEMS

PLACES = ("dataset_name", "data_dir", "ann_path", "image_dir", "knowledge_dir")
CHECKS = ("image_check", "num_workers", "device", "dicom", "equalize")
PROTOTYPES = (
    "visual_extractor", "extractor_weights", "image_size", "resize_filter", "max_views", "num_prototypes", "d_txt_ebd",
    "cleaning", "batch_size", "labels_path",
)  # fmt: skip
MODEL = ("model", "max_seq_length", "d_model", "threshold", "cleaning")


def words(args, names: tuple[str, ...], **more) -> list[str]:
    """Flags as they would be typed; True is a bare flag, None and False are left out."""
    values = {name: getattr(args, name) for name in names} | more
    typed = []
    for name, value in values.items():
        if value is True:
            typed.append(f"--{name}")
        elif value not in (None, False):
            typed += [f"--{name}", str(value)]
    return typed


def masks_of(args) -> str:
    """Where the masks of --adm_rule lie; SDAM's stand beside ADM's."""
    return str(Path(args.knowledge_dir) / ("sdam_masks" if args.adm_rule == "sdam" else "adm_masks"))


def steps(args) -> list[tuple[str, object, list[str]]]:
    """(what it makes, the command's main, its words), in order: what the system reads with these flags, no more."""
    labels = args.labels_path
    kind = SYSTEMS[args.model]
    reads = kind.inputs(args, training=True) | kind.inputs(args, training=False)
    weights = {
        "weights_dir": args.weights_dir,
        "offline": args.offline,
        "skip_broken": args.skip_broken,
    }
    made = []
    if reads and "labels_path" not in args.typed:
        made.append(
            ("labels of the reports, by rules", label_reports.main, ["--ann_path", args.ann_path, "--out", labels])
        )
    if "diagnosis" in reads and not args.diagnosis_path:
        bot = words(args, (*PLACES, *CHECKS), labels=labels, out=args.diagnosisbot, backbone=args.bot_backbone,
                    backbone_weights=args.bot_weights, **weights)  # fmt: skip
        made.append(("DiagnosisBot: image to diagnosis", train_diagnosisbot.main, bot))
    if "masks" in reads:
        seen = words(args, (*PLACES, *CHECKS), labels=labels, out=args.adm_classifier, backbone=args.adm_backbone,
                     backbone_weights=args.bot_weights, **weights)  # fmt: skip
        masks = words(args, (*PLACES, *CHECKS), classifier=args.adm_classifier, rule=args.adm_rule,
                      max_views=args.max_views, skip_broken=args.skip_broken)  # fmt: skip
        made.append(("ADM classifier", train_adm_classifier.main, seen))
        what = "SDAM masks" if args.adm_rule == "sdam" else "ADM masks"
        made.append((what, generate_adm.main, [*masks, "--out", masks_of(args)]))
    if "knowledge" in reads:
        base = words(args, (*PLACES, *MODEL), labels=labels, out=args.knowledge_path)
        made.append(("knowledge base: expert reports by diagnosis", build_base.main, base))
    if "prototypes" in reads:
        rows = words(args, (*PLACES, *CHECKS, *PROTOTYPES), out=args.prototypes, **weights)
        made.append(("prototypes: clusters of image and text features by label", build_prototypes.main, rows))
    if "scene_graphs" in reads and "scene_graphs" not in args.typed:
        made += scene_graph_steps(args, weights)
    return made


def scene_graph_steps(args, weights: dict) -> list[tuple[str, object, list[str]]]:
    """Scene graphs by atlas and rules; where the data set brings its own, what they say, and boxes of a detector trained on
    them, so that a new image is seen as those of training are."""
    out = Path(args.knowledge_dir) / "scene_graphs.jsonl"
    build = words(args, (*PLACES, "image_check", "device", "dicom", "equalize"), out=out, skip_broken=args.skip_broken)
    own = Path(args.data_dir) / "scene_graphs.jsonl"
    if not own.is_file():
        return [("scene graphs: atlas and rules", build_scene_graphs.main, [*build, "--boxes", "atlas", "--attributes", "rules"])]
    file = out.with_name("region_detector.pt")
    detector = words(args, (*PLACES, *CHECKS), scene_graphs=own, out=file, backbone_weights=args.bot_weights, **weights)
    build += ["--boxes", "detector", "--detector", str(file), "--attributes", str(own)]
    return [
        ("region detector: image to boxes", train_region_detector.main, detector),
        ("scene graphs: what the data set says, boxes of the detector", build_scene_graphs.main, build),
    ]


def prepare(args):
    """Run the steps and say what each does; returns the flags, which then point at the results."""
    todo = steps(args)
    for number, (what, main, typed) in enumerate(todo, 1):
        print(f"\n== {number}/{len(todo)} {what}", flush=True)
        start = time.perf_counter()
        main(typed)
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
    if any(main is generate_adm.main for _, main, _ in todo):
        args.adm_masks = masks_of(args)
    if any(main is build_scene_graphs.main for _, main, _ in todo):
        args.scene_graphs = str(Path(args.knowledge_dir) / "scene_graphs.jsonl")
    print(f"\n== training {args.model}", flush=True)
    return args
