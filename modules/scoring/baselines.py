"""What every system is held against: reports that no generator wrote. Each is a column of the predictions file.

Chosen from the training reports alone: modules/scoring/constant_report.py, modules/scoring/retrieval.py. Their scores stand
under `<column>/<key>`, such as `consensus/r2gen/CIDEr`.
"""

from collections.abc import Mapping, Sequence

from modules.errors import InputError

# column -> (name in tables, what it is)
BASELINES = {
    "constant": (
        "constant report, BLEU-4 *",
        "one training report, the best by BLEU-4 on validation, given to every study",
    ),
    "constant_cider": ("constant report, CIDEr *", "the same, the best by CIDEr on validation"),
    "nearest": ("nearest report *", "the report of the training study whose images are most alike"),
    "consensus": (
        "consensus report *",
        "of the reports of the 100 training studies most alike, the one that agrees best with the others",
    ),
}
CONSTANT = ("constant", "constant_cider")  # the same text for every study


def of_baseline(key: str) -> tuple[str, str]:
    """("", key) of the system, (column, key without it) of a baseline."""
    name, _, rest = key.partition("/")
    return (name, rest) if name in BASELINES else ("", key)


def prefixes(keys) -> list[str]:
    """"" for the system, then `<column>/` of each baseline that `keys` hold anything of, in the order of tables."""
    there = {of_baseline(key)[0] for key in keys if "/" in key}
    return ["", *(f"{name}/" for name in BASELINES if name in there)]


def title(prefix: str) -> str:
    """The name in tables of a prefix of `prefixes`."""
    return BASELINES[prefix[:-1]][0] if prefix else "this system"


def footnotes(names: Sequence[str]) -> list[str]:
    """One line on each of the baselines named in a table."""
    return [f"* {BASELINES[name][0].removesuffix(' *')}: {BASELINES[name][1]}." for name in BASELINES if name in names]


def baselines_of(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """{column: its text in each row} of the baselines that a predictions file holds. InputError for a constant that is none."""
    found = {name: [row[name] for row in rows] for name in BASELINES if name in rows[0]}
    for name in CONSTANT:
        different = len(set(found.get(name, ())))
        if different > 1:
            raise InputError(f"column {name}: {different} different texts; the constant report is one for all studies")
    return found


def without_baselines(row: Mapping[str, str]) -> dict[str, str]:
    return {column: text for column, text in row.items() if column not in BASELINES}
