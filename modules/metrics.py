"""Scores of report texts: BLEU-1..4, METEOR, ROUGE-L and CIDEr of pycocoevalcap, under named protocols.

A number means nothing without the preparation of both sides, so a protocol's name is part of every key:
`r2gen/BLEU_4`. The rows of a predictions file (modules/reports.py) are the only input, so anyone can score again.

| protocol | reference | prediction |
|---|---|---|
| r2gen | cleaned, rare words `<unk>`, cut (R2Gen's papers and most after it) | as generated |
| clean | cleaned | as generated |
| ptb | raw text, PTB tokenizer (the COCO standard) | PTB tokenizer |

In `r2gen` and `clean` a full stop is a word of its own on both sides, and runs of spaces are one.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from modules.errors import InputError
from modules.meteor import JavaFailure, Meteor, ptb_tokenize
from modules.reports import R2GenReferences, check_rows

METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")
PROTOCOLS = ("r2gen", "clean", "ptb")
_REFERENCE = {"r2gen": "reference_r2gen", "clean": "reference_clean", "ptb": "reference"}
_FEW_DISTINCT = 0.05
_SPACES = re.compile(r"\s+")


def metric_keys(protocols: Sequence[str] = PROTOCOLS, metrics: Sequence[str] = METRICS) -> list[str]:
    """The keys that score() gives for the system, such as `r2gen/BLEU_4`: what a flag that names a metric may be."""
    return [f"{protocol}/{metric}" for protocol in protocols for metric in metrics]


def prepare(text: str) -> str:
    """A text of protocol r2gen or clean as the metrics read it: ` .` for `.`, one space for any white space."""
    return _SPACES.sub(" ", text.replace(".", " .")).strip()


def score_texts(
    references: Sequence[str], hypotheses: Sequence[str], metrics: Sequence[str] = METRICS, meteor: Meteor | None = None
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, str]]:
    """The named metrics of prepared texts, one reference each: of the corpus, of each study, and notes.

    METEOR is the corpus value of its Java program, BLEU is corpus BLEU; neither is the mean of the studies' values.
    A metric that cannot be computed is absent from the first two and its reason is in the notes. metrics with METEOR
    need `meteor`.
    """
    gold = {number: [text] for number, text in enumerate(references)}
    told = {number: [text] for number, text in enumerate(hypotheses)}
    corpus, studies, notes = {}, {}, {}
    wanted_bleu = [name for name in METRICS[:4] if name in metrics]
    if wanted_bleu:
        values, lists = Bleu(4).compute_score(gold, told, verbose=0)
        for name in wanted_bleu:
            order = int(name[-1]) - 1
            corpus[name], studies[name] = values[order], lists[order]
    if "METEOR" in metrics:
        try:
            corpus["METEOR"], studies["METEOR"] = meteor.corpus_score(list(references), list(hypotheses))
        except JavaFailure as failure:
            notes["METEOR"] = str(failure)
    if "ROUGE_L" in metrics:
        some = {number: [text or "\0"] for number, text in enumerate(hypotheses)}  # two empty texts would give 1
        corpus["ROUGE_L"], studies["ROUGE_L"] = Rouge().compute_score(gold, some)
    if "CIDEr" in metrics:
        if any(text.split() for text in references):
            corpus["CIDEr"], studies["CIDEr"] = Cider().compute_score(gold, told)
        else:
            corpus["CIDEr"], studies["CIDEr"] = 0.0, [0.0] * len(gold)
        if len(gold) == 1:
            notes["CIDEr"] = "CIDEr of a single study is 0 by definition: its word weights come from the other studies"
    return (
        {name: float(corpus[name]) for name in METRICS if name in corpus},
        {name: [float(value) for value in studies[name]] for name in METRICS if name in studies},
        notes,
    )


def score(
    rows: Iterable[Mapping[str, str]],
    *,
    expected_ids: Iterable[str] | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    metrics: Sequence[str] | None = None,
    meteor: Meteor | None = None,
) -> dict:
    """Scores the rows of a predictions file; returns a dict that json can hold.

    rows: as read_predictions gives them; their order does not matter. expected_ids: the ids of the split; the rows must
    be these, none lost, none more. metrics: names of METRICS, all when None. meteor: a METEOR to use and keep;
    when None one is started (8 s) and ended here.

    The result holds `<protocol>/<metric>` (0..1, CIDEr 0..10) and, when the rows have a column `constant` (the constant
    report, the same in each row), `constant/<protocol>/<metric>`; None where it cannot be computed, the reason is in
    `notes`, a dict by metric, protocol or key. Also `studies`, `distinct_reports` (predictions that differ, as
    prepared), `commonest_share` (0..1, share of the commonest), `mean_words_prediction` and `mean_words_reference`
    (words of protocol clean, full stops count).
    Raises InputError for rows that are no predictions, for ids that are not those expected, and for unknown names.
    """
    rows = sorted(rows, key=lambda row: str(row.get("id")))
    metrics = METRICS if metrics is None else tuple(metrics)
    for given, known, what in ((metrics, METRICS, "metric"), (protocols, PROTOCOLS, "protocol")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"unknown {what} {', '.join(unknown)}; choose from {', '.join(known)}")
    check_rows(rows)
    if expected_ids is not None:
        check_ids([row["id"] for row in rows], expected_ids)
    constant = _constant(rows)
    own = meteor is None and "METEOR" in metrics
    if own:
        meteor = Meteor()
    try:
        if "METEOR" in metrics:
            meteor.start()
        result, notes = _facts(rows)
        for protocol in protocols:
            _score_protocol(protocol, rows, constant, metrics, meteor, result, notes)
    finally:
        if own:
            meteor.close()
    return {**result, "notes": notes}


def check_ids(scored: Iterable[str], expected: Iterable[str]) -> None:
    """Raises InputError that names ids missing or unexpected, unless the two are the same set."""
    scored, expected = set(scored), set(expected)
    missing, unexpected = sorted(expected - scored), sorted(scored - expected)
    if missing or unexpected:
        parts = [
            f"{len(ids)} {name} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
            for name, ids in (("missing", missing), ("unexpected", unexpected))
            if ids
        ]
        raise InputError(f"predictions hold {len(scored)} studies, the split {len(expected)}: {'; '.join(parts)}")


def _constant(rows: list[Mapping[str, str]]) -> str | None:
    found = {row.get("constant") for row in rows}
    if len(found) > 1:
        raise InputError(f"column constant: {len(found)} different texts; the constant report is one for all studies")
    return found.pop()


def _facts(rows: list[Mapping[str, str]]) -> tuple[dict, dict[str, str]]:
    """What is said of the texts themselves, and the warning that too few of them differ."""
    texts = [prepare(row["prediction"]) for row in rows]
    counts = Counter(texts)
    notes = {}
    if len(counts) / len(rows) < _FEW_DISTINCT:
        notes["distinct_reports"] = (
            f"warning: only {len(counts)} distinct reports for {len(rows)} studies; compare with the constant report"
        )
    empty = sum(not text for text in texts)
    if empty:
        notes["prediction"] = f"warning: {empty} of {len(rows)} predictions are empty (scored, as 0)"
    facts = {
        "studies": len(rows),
        "distinct_reports": len(counts),
        "commonest_share": max(counts.values()) / len(rows),
        "mean_words_prediction": sum(len(text.split()) for text in texts) / len(rows),
        "mean_words_reference": sum(len(prepare(row["reference_clean"]).split()) for row in rows) / len(rows),
    }
    return facts, notes


def _score_protocol(protocol, rows, constant, metrics, meteor, result, notes) -> None:
    """Adds the values of one protocol to `result`, and reasons to `notes`; the constant report beside the system."""
    systems = {"": [row["prediction"] for row in rows]}
    if constant is not None:
        systems["constant/"] = [constant] * len(rows)
    for system in systems:
        result.update({f"{system}{protocol}/{metric}": None for metric in METRICS if metric in metrics})
    references = [row[_REFERENCE[protocol]] for row in rows]
    if protocol == "ptb":
        try:
            told = ptb_tokenize([*references, *systems[""], *([constant] if constant is not None else [])])
        except JavaFailure as failure:
            notes["ptb"] = str(failure)
            return
        size = len(rows)
        references, systems[""] = told[:size], told[size : 2 * size]
        if constant is not None:
            systems["constant/"] = [told[-1]] * size
    else:
        references = [prepare(text) for text in references]
        systems = {system: [prepare(text) for text in texts] for system, texts in systems.items()}
    for system, texts in systems.items():
        values, _, reasons = score_texts(references, texts, metrics, meteor)
        result.update({f"{system}{protocol}/{metric}": value for metric, value in values.items()})
        notes.update(reasons)


def best_constant_report(
    training_reports: Iterable[str], validation_reports: Iterable[str], references: R2GenReferences
) -> str:
    """The training report, cleaned, that does best when given to every validation study: highest r2gen/BLEU_4.

    Both are raw texts; `references` prepares them (the words counted in training, as for the test references). The
    first wins among equals. BLEU is pycocoevalcap's corpus BLEU exactly. One text for all studies needs, per n-gram,
    only how many references hold it at least 1, 2, ... times, so a candidate costs its own length (270,000: half a
    minute).
    Raises InputError when either side is empty.
    """
    gold = [prepare(references.r2gen(text)) for text in validation_reports]
    candidates = {}
    for text in training_reports:
        cleaned = references.clean(text)
        candidates.setdefault(prepare(cleaned), cleaned)
    if not gold or not candidates:
        raise InputError("the constant report needs training reports and validation reports")
    scorer = _ConstantBleu(gold)
    return candidates[max(candidates, key=scorer.bleu_4)]


def _ngrams(words: list[str]) -> list[Counter]:
    """The n-grams of orders 1 to 4 with their counts."""
    return [Counter(zip(*(words[start:] for start in range(order)))) for order in range(1, 5)]


class _ConstantBleu:
    """Corpus BLEU-4 of one hypothesis against many references, one per study."""

    def __init__(self, references: list[str]) -> None:
        self.studies = len(references)
        self.words = 0
        # n-gram -> how many references hold it at least once, at least twice, ...
        self.holding: dict[tuple[str, ...], list[int]] = {}
        for reference in references:
            words = reference.split()
            self.words += len(words)
            for grams in _ngrams(words):
                for gram, count in grams.items():
                    held = self.holding.setdefault(gram, [])
                    held.extend([0] * (count - len(held)))
                    for times in range(count):
                        held[times] += 1

    def bleu_4(self, hypothesis: str) -> float:
        """pycocoevalcap's value, with its small constants (1e-15 and 1e-9) against division by nothing."""
        words = hypothesis.split()
        product = 1.0
        for order, grams in enumerate(_ngrams(words)):
            found = 0
            for gram, count in grams.items():
                held = self.holding.get(gram)
                if held is not None:
                    found += held[0] if count == 1 else sum(held[:count])
            product *= (found + 1e-15) / (self.studies * max(0, len(words) - order) + 1e-9)
        ratio = (self.studies * len(words) + 1e-15) / (self.words + 1e-9)
        return product**0.25 * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


_TITLES = {"BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "ROUGE_L": "ROUGE-L"}


def format_table(metrics: Mapping, published: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The result of score() as a Markdown table that reads well as plain text too.

    Rows: this system and the constant report (`*`) under each protocol, then `published`: name of a system -> its
    values by the names of METRICS (any may be absent), protocol as their papers used it. `n/a`: could not be computed
    (the reason follows below); `-`: not given. Below: distinct reports, lengths, notes.
    """
    lines = [["protocol", "system", *(_TITLES.get(name, name) for name in METRICS)]]
    for protocol in PROTOCOLS:
        for system, prefix in (("this system", ""), ("constant report *", "constant/")):
            keys = [f"{prefix}{protocol}/{name}" for name in METRICS]
            if any(key in metrics for key in keys):
                lines.append([protocol, system, *(_cell(metrics, key) for key in keys)])
    for name, values in (published or {}).items():
        lines.append(["published", name, *(_cell(values, metric) for metric in METRICS)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| "
        + " | ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    below = [
        f"{metrics['studies']} studies; {metrics['distinct_reports']} distinct reports, the commonest is "
        f"{metrics['commonest_share']:.1%} of all; mean words: prediction {metrics['mean_words_prediction']:.1f}, "
        f"reference {metrics['mean_words_reference']:.1f}."
    ]
    if any(line[1] == "constant report *" for line in lines):
        below.append("* one training report, the best on validation, given to every study.")
    below += [f"{key}: {text}" for key, text in metrics["notes"].items()]
    return "\n".join([texts[0], rule, *texts[1:], "", *below])


def _cell(values: Mapping[str, float | None], key: str) -> str:
    if key not in values:
        return "-"
    return "n/a" if values[key] is None else f"{values[key]:.4f}"
