"""The flags of the knowledge commands: rows of the one table (modules/flags.py) and rows of their own, of the same kind."""

import argparse
from collections.abc import Mapping, Sequence

from modules import flags
from modules.flags import Flag

DATA = ("dataset_name", "data_dir", "ann_path", "image_dir", "limit", "skip_broken", "image_check", "dicom", "equalize")
OVERWRITE = Flag("output", "overwrite", bool, False, "make it anew where one of other inputs stands already")
KEEP = Flag("output", "keep", bool, False, "keep one that was made with other settings, and say how they differ")
BACKBONE_WEIGHTS = Flag("network", "backbone_weights", str, "imagenet",
                        "start: imagenet, none (random, said in a warning), or a weight file")  # fmt: skip


def out(file: str, what: str = "file") -> tuple[Flag, Flag, Flag]:
    """The rows of a command that writes <knowledge_dir>/`file`."""
    return Flag("output", "out", str, None, f"{what} to write [<knowledge_dir>/{file}]", file=file), OVERWRITE, KEEP


def read(
    argv: Sequence[str] | None,
    command: str,
    description: str | None,
    shared: Sequence[str],
    own: Sequence[Flag],
    presets: Mapping[str, Mapping] | None = None,
) -> argparse.Namespace:
    """Typed flags over the data set's preset over the defaults, and `typed`, the names on the command line.

    shared: names of rows of modules/flags.py; own: further rows. Unknown flags are answered with the nearest names (exit
    code 2).
    """
    table = {flag.name: flag for flag in flags.FLAGS}
    rows = [*(table[name] for name in shared), *own]
    parser = flags.Parser(prog=f"python -m knowledge.{command}", argument_default=argparse.SUPPRESS, description=description)
    groups: dict = {}
    for flag in rows:
        groups[flag.group] = groups.get(flag.group) or parser.add_argument_group(flag.group)
        flags.add_flag(groups[flag.group], flag)
    typed = vars(parser.parse_args(argv))
    values = {flag.name: flag.default for flag in rows}
    dataset = typed.get("dataset_name", values["dataset_name"])
    values |= (presets or {}).get(dataset, {}) | typed
    flags.fill_paths(rows, values)
    return argparse.Namespace(**values, typed=frozenset(typed))


def read_beside_training(
    argv: Sequence[str] | None, command: str, description: str | None, own: Sequence[Flag], systems: Mapping, *first: str
) -> tuple[argparse.Namespace, argparse.Namespace]:
    """(the rows of this command, the flags of training), for a command that reads these too; `first`: words before them."""
    parser = flags.Parser(prog=f"python -m knowledge.{command}", description=description, argument_default=argparse.SUPPRESS,
                          epilog="Other flags are those of main_train.py.")  # fmt: skip
    for flag in own:
        flags.add_flag(parser, flag)
    typed, rest = parser.parse_known_args(argv)
    args = flags.parse([*first, *rest], "train", systems=systems)
    values = {flag.name: flag.default for flag in own} | vars(typed)
    flags.fill_files(own, values, args.knowledge_dir)
    return argparse.Namespace(**values), args


def report_cleaning(dataset: str) -> str:
    """The cleaning rule that tells an empty report of a data set."""
    return "mimic_cxr" if dataset == "mimic_cxr" else "iu_xray"
