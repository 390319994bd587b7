"""Where a stated finding is, on which side, and how large it is: what two reports that agree on the finding may differ in.

By rules, from the part of the clause that speaks of the finding. The table below is meant to be read and edited.
"""

import re
from collections.abc import Iterable

from modules.text.labeler import find_clauses, find_statements, lower_case, one_line
from modules.text.region_rules import parts_of

STATED = ("positive", "uncertain")
# kind -> value -> words
DETAILS = {
    "side": {
        "left": r"\bleft\b|\bl[ul]l\b|lingula|\bbilateral|\bboth\b|\bbi(?:basilar|basal|apical|hilar)",
        "right": r"\bright\b|\br[uml]l\b|\bbilateral|\bboth\b|\bbi(?:basilar|basal|apical|hilar)",
    },
    "place": {
        "upper": r"\bupper\b(?! limits| abdom| extrem)|\b(?:bi)?apic|\bapex\b|\b[rl]ul\b",
        "mid": r"\bmid\b|\bmidlung|\bmiddle\b|lingula|\brml\b",
        "lower": r"\blower\b(?! limits| extrem)|\b(?:bi)?bas(?:e|es|al|ilar)\b|costophrenic|retrocardiac|\b[rl]ll\b",
        "hilar": r"\b(?:peri|bi)?hil(?:ar|um|a)\b",
    },
    "size": {
        "small or mild": r"\b(?:small|tiny|trace|minute|minor|minimal(?:ly)?|mild(?:ly)?|slight(?:ly)?)\b",
        "moderate": r"\bmoderate(?:ly)?\b",
        "large or severe": r"\b(?:large|severe(?:ly)?|massive(?:ly)?|marked(?:ly)?|extensive)\b",
    },
}
PATTERNS = {kind: {value: re.compile(words) for value, words in rows.items()} for kind, rows in DETAILS.items()}
JOINT = re.compile(r",| and | or | with ")
VERB = re.compile(r"\b(?:is|are|was|were|has|have|appears?|remains?|seen|noted)\b")


def read_details(text: str) -> dict[str, dict[str, set[str]]]:
    """{label: {"side", "place", "size": values of DETAILS}} of every finding that a report states, perhaps as uncertain."""
    plain = one_line(text)
    lower = lower_case(plain)
    statements = sorted(find_statements(plain), key=lambda row: row[2])
    found: dict[str, dict[str, set[str]]] = {}
    for start, stop in find_clauses(lower):
        clause = lower[start:stop]
        inside = [(label, state, a - start, b - start) for label, state, a, b in statements if start <= a < stop]
        for first, last in _parts(clause, [row[2] for row in inside]) if inside else ():
            here = [statement for statement in inside if first <= statement[2] < last]
            for (label, state, _, _), words in zip(here, _shares(clause, first, last, [row[2:] for row in here])):
                if state in STATED:
                    held = found.setdefault(label, {kind: set() for kind in DETAILS})
                    for kind, rows in PATTERNS.items():
                        held[kind] |= {value for value, pattern in rows.items() if pattern.search(words)}
    return found


def _parts(clause: str, places: list[int]) -> Iterable[tuple[int, int]]:
    """The parts of a clause; "small left and" goes with "large right effusion", since it names no finding and has no verb."""
    opened = None
    for first, last in parts_of(clause):
        begin = first if opened is None else opened
        unfinished = not any(first <= place < last for place in places) and not VERB.search(clause, first, last)
        opened = begin if unfinished else None
        yield begin, last


def _shares(clause: str, first: int, last: int, spans: list[tuple[int, int]]) -> Iterable[str]:
    """The words of a part of a clause that belong to each of the findings named in it, which stand at `spans`.

    Between two findings the words after the first joint ("and", a comma) belong to the second.
    """
    cuts = [first]
    for (_, end), (start, _) in zip(spans, spans[1:]):
        joint = JOINT.search(clause, end, max(start, end))
        cuts.append(joint.start() if joint else min(end, start))
    ends = [*cuts[1:], max(last, spans[-1][1] if spans else last)]  # a phrase may reach over a comma
    return [clause[a:b] for a, b in zip(cuts, ends)]


def differing(reference: dict[str, set[str]], prediction: dict[str, set[str]]) -> list[str]:
    """Kinds of detail that both name and that cannot both be right: another side, or no place or size in common."""
    return [
        kind
        for kind in DETAILS
        if (a := reference[kind])
        and (b := prediction[kind])
        and (a != b if kind == "side" else not a & b)
    ]
