"""Flags of the commands that train an image classifier, and of those that use one."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from data.studies import SPLITS
from modules import flags
from modules.text.labels import UNCERTAIN_VALUES


@dataclass(frozen=True)
class Job:
    """What differs between the two commands: name of the classifier, of the command, of the file; defaults.

    defaults: flag values. presets: flag values by --dataset_name, in place of the defaults.
    """

    what: str
    command: str
    file: str
    backbones: tuple[str, ...]
    defaults: dict
    presets: dict[str, dict]


def add_shared(parser, group: str, names: tuple[str, ...]) -> None:
    """Add flags of the project's one table (modules/flags.py) to a knowledge command, with their kind and help."""
    rows = {flag.name: flag for flag in flags.FLAGS}
    room = parser.add_argument_group(group)
    for name in names:
        flags.add_flag(room, rows[name])


def with_defaults(typed: dict, names: tuple[str, ...], own: dict, presets: dict[str, dict]) -> argparse.Namespace:
    """Typed flags over the data set's preset over own defaults over those of the table; paths are filled in."""
    table = {flag.name: flag.default for flag in flags.FLAGS if flag.name in names}
    values = {**table, **own}
    dataset = typed.get("dataset_name", values["dataset_name"])
    args = argparse.Namespace(**{**values, **presets.get(dataset, {}), **typed})
    args.data_dir = args.data_dir or f"data/{dataset}"
    args.ann_path = args.ann_path or str(Path(args.data_dir) / "annotation.json")
    args.image_dir = args.image_dir or str(Path(args.data_dir) / "images")
    args.knowledge_dir = args.knowledge_dir or f"knowledge/{dataset}"
    return args


def report_cleaning(dataset: str) -> str:
    """The cleaning rule that tells an empty report of a data set."""
    return "mimic_cxr" if dataset == "mimic_cxr" else "iu_xray"


SHARED = {
    "data": ("dataset_name", "data_dir", "ann_path", "image_dir", "skip_broken", "image_check", "dicom", "equalize"),
    "run": ("knowledge_dir", "seed", "device", "precision", "num_workers", "weights_dir", "offline", "dry_run"),
}


def parse(argv: list[str] | None, job: Job) -> argparse.Namespace:
    """The flags of a training command. Unknown ones are answered with the nearest names (exit code 2)."""
    parser = flags.Parser(
        prog=f"python -m {job.command}", argument_default=argparse.SUPPRESS, description=f"Train the {job.what}."
    )
    for group, names in SHARED.items():
        add_shared(parser, group, names)
    new = parser.add_argument_group(job.what)
    default = job.defaults
    rows = (
        ("labels", str, "CSV with the labels of the reports, by study id [<data_dir>/labels.csv]"),
        ("out", str, f"file to write [<knowledge_dir>/{job.file}]"),
        ("backbone_weights", str, "start: imagenet, none (random, said in a warning), or a weight file [imagenet]"),
        ("image_size", flags.positive_int, f"side of the image in pixels [{default['image_size']}]"),
        ("epochs", flags.positive_int, f"passes over the training studies [{default['epochs']}]"),
        ("batch_size", flags.positive_int, f"images per step [{default['batch_size']}]"),
        ("lr", flags.positive_float, f"highest learning rate: a tenth of the run warms up, a cosine falls [{default['lr']}]"),
        ("weight_decay", flags.not_negative, f"AdamW's decoupled weight decay [{default['weight_decay']}]"),
        ("pos_weight_cap", flags.positive_float, "positives weigh sqrt(negatives / positives), at most this; 1 = no weights [4]"),
        ("bootstrap", flags.natural, "rounds for the 95%% intervals, 0 = none [1000]"),
        ("cache_gb", flags.not_negative, "keep decoded images in memory up to this many GB, else read them each epoch [4]"),
    )
    for name, kind, text in rows:
        new.add_argument(f"--{name}", type=kind, help=text)
    choices = (
        ("backbone", job.backbones, f"network [{default['backbone']}]"),
        ("views", ("first", "all"), "images of a study that are learnt from, each with the study's labels [first]"),
        ("freeze", ("none", "stem"), "stem: the first blocks keep the weights they start from [none]"),
        ("augment", ("light", "none"), "training images: light = small turns, shifts and brightness, no flips [light]"),
        ("uncertain", tuple(UNCERTAIN_VALUES), "what -1 in --labels counts as; ignore: left out for that study [positive]"),
        ("eval_split", SPLITS, "split to measure at the end; never used for choosing [val]"),
    )
    for name, names, text in choices:
        new.add_argument(f"--{name}", choices=names, help=text)
    new.add_argument("--overwrite", action="store_true", help="train anew where --out already stands")
    typed = vars(parser.parse_args(argv))
    names = tuple(name for group in SHARED.values() for name in group)
    own = {"labels": None, "out": None, "overwrite": False, "uncertain": "positive", "backbone_weights": "imagenet",
           "augment": "light", "views": "first", "freeze": "none", "pos_weight_cap": 4.0, "eval_split": "val", "bootstrap": 1000,
           "cache_gb": 4.0}  # fmt: skip
    args = with_defaults(typed, names, own | default, job.presets)
    args.labels = args.labels or str(Path(args.data_dir) / "labels.csv")
    args.out = args.out or str(Path(args.knowledge_dir) / job.file)
    return args
