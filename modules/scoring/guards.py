"""What a reward does not see: numbers that tell whether reports still are reports, and warnings where they have moved.

Of N reports and their references, for greedy reports and for samples apart; docs/self_critical.md says what each is for.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from modules.scoring.clinical import STATES, label_by_rules
from modules.scoring.metrics import prepare
from modules.scoring.rewards import FINDINGS
from modules.text.details import DETAILS, read_details
from modules.text.earlier import sentences

# name, what it is held against, when that is worth a warning, and how it is said
RULES = (
    ("distinct_reports", "start", lambda now, then: now < 0.8 * then, "under 80% of"),
    ("distinct_sentences", "start", lambda now, then: now < 0.8 * then, "under 80% of"),
    ("distinct_per_study", "start", lambda now, then: now < 0.8 * then, "under 80% of"),
    ("entropy", "start", lambda now, then: now < 0.6 * then, "under 60% of"),
    ("entropy", "start", lambda now, then: now > 1.5 * then, "over 150% of"),
    ("repeated_trigrams", "references", lambda now, then: now > 2 * max(then, 0.005), "over twice"),
    ("words", "start", lambda now, then: abs(now - then) > 0.15 * then, "more than 15% away from"),
    ("findings", "start", lambda now, then: abs(now - then) > 0.2 * then, "more than 20% away from"),
    ("cider", "start", lambda now, then: now < 0.95 * then, "more than 5% below"),
)
MOST_CUT = 0.02


def text_facts(texts: Sequence[str]) -> dict[str, float]:
    """Of texts alone, each a mean or share over N.

    `words`; `findings` (of 13, by rules, uncertain ones too) and `uncertain`, their share that is uncertain; `distinct_reports`,
    `distinct_sentences` (different ones per report); `repeated_trigrams`, the share of trigrams that stand earlier in their
    report; `empty`.
    """
    prepared = [prepare(text) for text in texts]
    states = label_by_rules(list(texts))[:, FINDINGS]
    uncertain, positive = (int((states == STATES.index(state)).sum()) for state in ("uncertain", "positive"))
    count, trigrams, repeated = len(texts), 0, 0
    for text in prepared:
        words = text.split()
        three = list(zip(words, words[1:], words[2:]))
        trigrams, repeated = trigrams + len(three), repeated + len(three) - len(set(three))
    return {
        "words": sum(len(text.split()) for text in prepared) / count,
        "findings": (positive + uncertain) / count,
        "uncertain": uncertain / max(positive + uncertain, 1),
        "distinct_reports": len(set(prepared)) / count,
        "distinct_sentences": len({sentence for text in texts for sentence in sentences(text)}) / count,
        "repeated_trigrams": repeated / max(trigrams, 1),
        "empty": sum(not text for text in prepared) / count,
    }


def detail_f1(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """`place_f1`, `side_f1`, `size_f1`: micro-F1 of what both sides say of the same finding; 1 where neither says anything."""
    counts = {kind: [0, 0] for kind in DETAILS}  # hits, those of both sides
    for reference, text in zip(references, texts):
        theirs, ours = read_details(reference), read_details(text)
        for kind, row in counts.items():
            a, b = ({(label, value) for label, held in side.items() for value in held[kind]} for side in (theirs, ours))
            row[0], row[1] = row[0] + len(a & b), row[1] + len(a) + len(b)
    return {f"{kind}_f1": 2 * hits / both if both else 1.0 for kind, (hits, both) in counts.items()}


def report_facts(references: Sequence[str], texts: Sequence[str], ended: Sequence[bool], entropy: Sequence[float],
                 cider: Sequence[float] | np.ndarray) -> dict[str, float]:  # fmt: skip
    """text_facts and detail_f1 beside `cut` (share that EOS did not end), `entropy` (nats per word) and `cider`."""
    count = len(texts)
    means = {"cut": 1 - sum(ended) / count, "entropy": sum(entropy) / count, "cider": sum(cider) / count}
    return text_facts(texts) | detail_f1(references, texts) | means


def warnings(now: Mapping[str, Mapping[str, float]], start: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each number of "greedy" and "samples" that has left its bounds; `now` also holds the "references"."""
    found = []
    for kind in ("greedy", "samples"):
        for name, beside, out, how in RULES:
            if name not in now[kind]:
                continue
            value, then = now[kind][name], (start[kind] if beside == "start" else now["references"])[name]
            if out(value, then):
                whose = "the start's" if beside == "start" else "the references'"
                found.append(f"{kind}: {name} {value:.3g} is {how} {whose} {then:.3g}")
        if now[kind]["cut"] > MOST_CUT:
            found.append(f"{kind}: {now[kind]['cut']:.1%} of the reports are cut at --max_gen_length, more than {MOST_CUT:.0%}")
    return found
