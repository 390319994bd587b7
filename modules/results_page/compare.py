"""What two reports say of each of the 14 labels, where they say it, and how the two agree; by the rule-based labeler."""

from modules.text.details import DETAILS, differing, read_details
from modules.text.labeler import find_statements, label_report, one_line
from modules.text.labels import CHEXPERT_14, NO_FINDING

# one letter a label, so that a study's states and relations are two short texts
STATES = {"positive": "+", "uncertain": "?", "negative": "-", "absent": "."}
CONTRADICTED, MISSED, ADDED, HEDGED, AGREED, DENIED, ONE_DENIES, SILENT = "x", "m", "a", "h", "=", "d", "n", "."
ELSEWHERE = "q"  # stated by both, with another side, place or size


def relation(reference: str, prediction: str) -> str:
    """How a state in the reference meets one in the prediction (letters of STATES) -> a letter above.

    x: stated (perhaps as uncertain) by one, denied by the other; m, a: stated by the reference or the prediction alone;
    h: stated by both, by one as uncertain; =: stated alike; d: denied by both; n: denied by one, the other is silent.
    `compare` makes q of h and = where side, place or size differ.
    """
    if reference == prediction:
        return {"+": AGREED, "?": AGREED, "-": DENIED, ".": SILENT}[reference]
    pair = {reference, prediction}
    if "-" in pair:
        return ONE_DENIES if "." in pair else CONTRADICTED
    if pair == {"+", "?"}:
        return HEDGED
    return MISSED if prediction == "." else ADDED


def positions(plain: str, text: str) -> list[int]:
    """For each character of `plain` = one_line(text), and its end, where it stands in `text`."""
    places, at = [], 0
    for character in plain:
        if not character.isspace():
            while at < len(text) and text[at].isspace():
                at += 1
        places.append(at)
        if at < len(text) and (text[at] == character or (character == " " and text[at].isspace())):
            at += 1
    return [*places, at]


def utf16_positions(text: str) -> list[int]:
    """For each character of `text`, and its end, its place as JavaScript counts (an emoji is two)."""
    places = [0]
    for character in text:
        places.append(places[-1] + (2 if ord(character) > 0xFFFF else 1))
    return places


def statements(text: str) -> list[list]:
    """[[number of the label in CHEXPERT_14, letter of the state, start, end]] of a report, in JavaScript's places."""
    plain = one_line(text)
    found = list(find_statements(plain))
    if not found:
        return []
    place, wide = positions(plain, text), utf16_positions(text)
    return [
        [CHEXPERT_14.index(label), STATES[state], wide[place[start]], wide[place[end - 1] + 1]]
        for label, state, start, end in found
        if end > start
    ]


def states(text: str) -> str:
    """The letter of each label's state in a report, in CHEXPERT_14 order."""
    return "".join(STATES[mention.state] for mention in label_report(text).values())


def compare(reference: str, prediction: str) -> dict:
    """Everything the page says of one pair of reports; letters in CHEXPERT_14 order. No Finding is no statement.

    details: [number of the label, words of the reference, words of the prediction, kinds that differ] of each finding that
    both state and one at least describes. One that differs in side, place or size is not called agreed, but ELSEWHERE.
    """
    said = states(reference), states(prediction)
    relations = [SILENT if label == NO_FINDING else relation(*pair) for label, *pair in zip(CHEXPERT_14, *said)]
    details = []
    for number, kind in enumerate(relations):
        if kind in (AGREED, HEDGED):
            pair = [read_details(text)[CHEXPERT_14[number]] for text in (reference, prediction)]
            words = [detail_words(one) for one in pair]
            differ = differing(*pair)
            if any(words):
                details.append([number, *words, differ])
            if differ:
                relations[number] = ELSEWHERE
    return {
        "states": said,
        "relations": "".join(relations),
        "statements": (statements(reference), statements(prediction)),
        "details": details,
    }


def detail_words(found: dict[str, set[str]]) -> str:
    """The details of a finding for people: "left; lower; small or mild"."""
    order = {value: place for rows in DETAILS.values() for place, value in enumerate(rows)}
    both = {"left", "right"}
    named = (sorted(found[kind], key=lambda value: order.get(value, -1)) for kind in DETAILS)
    shown = ("both sides" if set(values) == both else " and ".join(values) for values in named)
    return "; ".join(filter(None, shown))
