"""Clinical efficacy (CE): do prediction and reference state the same findings?

Published CE figures differ by labeler, by what "uncertain" becomes, by averaging and by the label set, so a key carries
all of it: `ce/<labeler>/<13|14|5>/<micro|macro|example>/<u0|u1>/<precision|recall|f1>`.

- labeler: our rules (`rules-2`: name and version, modules/text/labeler.py), or `chexbert` with a user's file.
- 13: the CheXpert labels without No Finding, which leads wherever one figure stands for all: a system that writes one normal
  report gets nothing; 14: all of them; 5: Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion.
- u0: only what is stated counts as positive; u1: what is uncertain counts too. On both sides alike.
- micro: hits and misses of all labels and studies added up; macro: mean over the labels of each label's value; example: mean
  over the studies of each study's value. What has no denominator is 0, as in most published code: a study without a label on
  either side counts 0 under `example`, a label that never occurs counts 0 under `macro`.

References are the raw reports, predictions are taken as generated, whatever the protocol.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from modules.artefact import write_atomic
from modules.scoring.resampling import Statistic
from modules.text.labeler import NOT_A_DISEASE, VERSION, label_report
from modules.text.labels import CHEXPERT_14, NO_FINDING

STATES = ("absent", "positive", "negative", "uncertain")  # what a labeler says of a label, by number
CELLS = ("", "1", "0", "-1")  # the same in a file, as CheXpert writes it
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
LABEL_SETS = {
    "13": tuple(i for i, label in enumerate(CHEXPERT_14) if label != NO_FINDING),
    "14": tuple(range(len(CHEXPERT_14))),
    "5": tuple(CHEXPERT_14.index(label) for label in FIVE),
}
LEADING = "13/micro/u1/f1"  # of the clinical figures, where one leads: below ce/<labeler>/
AVERAGES = ("micro", "macro", "example")
RULES = {"u0": ("positive",), "u1": ("positive", "uncertain")}
VALUES = ("precision", "recall", "f1")

# A labeler: texts -> states [B, 14], int8, numbers of STATES, labels in CHEXPERT_14 order.
Labeler = Callable[[Sequence[str]], np.ndarray]


def label_by_rules(texts: Sequence[str]) -> np.ndarray:
    """States [B, 14] by modules/text/labeler.py; a text that occurs often is read once."""
    known: dict[str, list[int]] = {}
    for text in texts:
        if text not in known:
            known[text] = [STATES.index(mention.state) for mention in label_report(text).values()]
    return np.array([known[text] for text in texts], dtype=np.int8).reshape(len(texts), len(CHEXPERT_14))


RULE_LABELER = VERSION


def positive(states: np.ndarray, rule: str) -> np.ndarray:
    """Bool [B, 14]: what counts as positive under u0 or u1."""
    return np.isin(states, [STATES.index(state) for state in RULES[rule]])


def abnormal(states: np.ndarray) -> np.ndarray:
    """Bool [B]: studies with any finding, stated or uncertain; support devices alone are none."""
    diseases = [i for i, label in enumerate(CHEXPERT_14) if label not in (NO_FINDING, *NOT_A_DISEASE)]
    return np.asarray(positive(states, "u1")[:, diseases].any(1))


def clinical_statistics(labeler: str, reference: np.ndarray, prediction: np.ndarray) -> dict[str, Statistic]:
    """Every CE key of one labeler from the states of both sides, [B, 14] each."""
    found = {}
    for rule in RULES:
        expected, predicted = positive(reference, rule), positive(prediction, rule)
        # hits, predicted, expected: [B, 3 x 14]
        counts = np.concatenate([expected & predicted, predicted, expected], axis=1).astype(np.float64)
        for name, labels in LABEL_SETS.items():
            columns = list(labels)
            sums = (part[:, columns].sum(1) for part in (expected & predicted, predicted, expected))
            per_study = np.stack(_ratios(*sums), axis=1)
            examples = np.concatenate([per_study, np.ones((len(expected), 1))], axis=1)  # [B, 4]
            for number, value in enumerate(VALUES):
                key = f"ce/{labeler}/{name}/{{}}/{rule}/{value}".format
                found[key("micro")] = Statistic(counts, partial(_micro, labels=columns, number=number))
                macro = partial(_macro, labels=columns, number=number)
                found[key("macro")] = Statistic(counts, macro, partial(macro, held=expected[:, columns].any(0)))
                found[key("example")] = Statistic(examples, partial(_mean, number=number))
    order = [f"ce/{labeler}/{n}/{a}/{r}/{v}" for n in LABEL_SETS for a in AVERAGES for r in RULES for v in VALUES]
    return {key: found[key] for key in order}


def _ratios(hits: np.ndarray, said: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1; 0 without a denominator."""
    return (
        hits / np.maximum(said, 1),
        hits / np.maximum(there, 1),
        2 * hits / np.maximum(said + there, 1),
    )


def _split(sums: np.ndarray, labels: list[int]) -> list[np.ndarray]:
    """Hits, said and there [..., labels] from sums [..., 3 x 14]."""
    return [part[..., labels] for part in np.split(sums, 3, axis=-1)]


def _micro(sums: np.ndarray, labels: list[int], number: int) -> np.ndarray:
    return _ratios(*(part.sum(-1) for part in _split(sums, labels)))[number]


def _macro(sums: np.ndarray, labels: list[int], number: int, held: np.ndarray | None = None) -> np.ndarray:
    """Mean over the labels. held, bool [labels]: those that the split's references state; one that a resample did not draw
    is left out of its mean, since a value of 0 would say that the system missed it."""
    hits, predicted, expected = _split(sums, labels)
    values = _ratios(hits, predicted, expected)[number]
    if held is None:
        return values.mean(-1)
    drawn = ~held | (expected > 0)
    return (values * drawn).sum(-1) / np.maximum(drawn.sum(-1), 1)


def _mean(sums: np.ndarray, number: int) -> np.ndarray:
    return sums[..., number] / sums[..., -1]


def by_label(reference: np.ndarray, prediction: np.ndarray) -> dict[str, dict]:
    """{label: {"u0": {precision, recall, f1, reference, prediction}, "u1": ...}}; the last two count positive studies."""
    table: dict[str, dict] = {label: {} for label in CHEXPERT_14}
    for rule in RULES:
        expected, predicted = positive(reference, rule), positive(prediction, rule)
        values = _ratios((expected & predicted).sum(0), predicted.sum(0), expected.sum(0))
        for i, label in enumerate(CHEXPERT_14):
            numbers = {name: float(column[i]) for name, column in zip(VALUES, values)}
            table[label][rule] = {**numbers, "reference": int(expected[:, i].sum()), "prediction": int(predicted[:, i].sum())}
    return table


def write_states(path: str | Path, ids: Sequence[str], found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """The raw labels of both sides: `id, labeler, side, <14 labels>`; cells 1, 0, -1 (uncertain), blank (not mentioned).

    found: {labeler: {"reference": states [B, 14], "prediction": states}}.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "labeler", "side", *CHEXPERT_14])
            for labeler, sides in found.items():
                for side, states in sides.items():
                    for study, row in zip(ids, states):
                        writer.writerow([study, labeler, side, *(CELLS[state] for state in row)])

    write_atomic(path, write)
