"""What a report says of each anatomical region, by rules: the attributes of a scene graph where nobody annotated one.

A report is read clause by clause with the labeler's statements (label and state, modules/text/labeler.py). The region of a
statement is named by words of place in its part of the clause, else it is the label's home. Attributes:

    yes|label, no|label   a finding, uncertain ones counted as yes; the label in lower case
    degree|word           mild, moderate, severe, small, large or minimal, of a finding that is there
    normal                the region is called normal, clear or intact

The tables below are meant to be read and edited. Differs from the labeler: words of place that do not suit a label (the
heart for an effusion) are not its place. A device keeps its home beside the places named.
`python -m knowledge.build_scene_graphs --show STUDY` prints what each clause gave; `--agreement` measures the rules.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from modules.text.labeler import find_clauses, find_cues, find_statements, lower_case, one_line
from modules.text.regions import REGIONS

VERSION = "region-rules-1"

# Words of place. A place that has two sides stands here without one.
PLACES = (
    (("cardiac silhouette",), r"\bhearts?\b(?! failure)|\bcardiac\b(?! failure)|cardiomediastin\w+|cardiopulmonary"),
    (("mediastinum",), r"mediastin(?!\w* drain)"),
    (("upper mediastinum",), r"(?:upper|superior) mediastin"),
    (("aortic arch",), r"\baort(?:a|ic)\b(?! valve)|aortic (?:arch|knob)|\bknob\b"),
    (("hilar structures",), r"\b(?:peri|bi)?hil(?:ar|um|a)\b|(?:pulmonary )?vascul(?:arity|ature)|pulmonary vessels"),
    (("costophrenic angle",), r"costophrenic|\bsulc(?:us|i)\b"),
    (("hemidiaphragm",), r"\b(?:hemi-?)?diaphragm"),
    (("clavicle",), r"\bclavic"),
    (("spine",), r"\bspine\b|\bspinal\b|vertebra|\bthoracic\b(?! aort| inlet| cage| cavity)"),
    (("trachea",), r"\btrachea"),
    (("carina",), r"\bcarina\b"),
    (("svc",), r"\bsvc\b|vena cava"),
    (("cavoatrial junction",), r"cavo-?atrial"),
    (("right atrium",), r"\batri(?:um|al)\b"),
    (("abdomen",), r"\babdom|\bbowel|\bstomach|subdiaphragm"),
    (("apical zone",), r"\b(?:bi)?apic|\bapex\b|\bapices\b"),
    (("upper lung zone",), r"\bupper\b(?! mediastin| abdom| thoracic| limits| extremit| lumbar)"),
    (("mid lung zone",), r"\bmid\b(?! thoracic| clavic|line)|\bmiddle\b(?! mediastin)|\blingula|\bmidlung"),
    (("lower lung zone",), r"\blower\b(?! thoracic| lumbar| limits| cervical| extremit)|\b(?:bi)?bas(?:e|es|al|ilar)\b"),
    (("lung",), r"\blungs?\b|cardiopulmonary"),
)
# names of one side alone, and words that stand for a place and a side
SIDED_PLACES = (
    (("right upper lung zone",), r"\brul\b"),
    (("right mid lung zone",), r"\brml\b|\bmiddle lobe"),
    (("right lower lung zone",), r"\brll\b"),
    (("left upper lung zone",), r"\blul\b"),
    (("left mid lung zone",), r"\blingula"),
    (("left lower lung zone",), r"\blll\b|retrocardiac"),
)
BONES = re.compile(r"\bbon(?:e|es|y)\b|osseous|skelet|\bthoracic cage|\bbony thorax")
RIGHT, LEFT, BOTH = re.compile(r"\bright\b"), re.compile(r"\bleft\b"), re.compile(r"\bbilateral|\bboth\b")

LUNGS = ("lung", "upper lung zone", "mid lung zone", "lower lung zone", "apical zone")
CHEST = (*LUNGS, "hilar structures", "costophrenic angle", "hemidiaphragm")
# label -> (home: where it is when no place is named, places that suit it; None: all)
HOMES: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "Cardiomegaly": (("cardiac silhouette",), ("cardiac silhouette", "right atrium")),
    "Enlarged Cardiomediastinum": (
        ("mediastinum",), ("mediastinum", "upper mediastinum", "hilar structures", "aortic arch"),
    ),
    "Pleural Effusion": (("costophrenic angle", "lower lung zone"), CHEST),
    "Pneumothorax": (("apical zone", "lung"), CHEST),
    "Edema": (("lung", "hilar structures"), CHEST),
    "Atelectasis": (("lung",), CHEST),
    "Consolidation": (("lung",), CHEST),
    "Pneumonia": (("lung",), CHEST),
    "Lung Opacity": (("lung",), CHEST),
    "Lung Lesion": (("lung",), (*CHEST, "mediastinum")),
    "Pleural Other": (("lung",), CHEST),
    "Fracture": ((), (*LUNGS, "clavicle", "spine")),
    "Support Devices": ((), None),
}  # fmt: skip
DEVICE = "Support Devices"
DEVICE_HOMES = (
    (("trachea", "carina"), r"\btubes?\b(?<!chest tube)(?<!feeding tube)(?<!enteric tube)|intubat|tracheostomy"),
    (("svc", "cavoatrial junction"), r"catheter|picc|\blines?\b|port-?a-?cath|mediport|\bports?\b"),
    (("cardiac silhouette", "right atrium"), r"pace ?maker|pacer|pacing|\b(?:aicd|icd)\b|defibrillator|\bleads?\b"),
)
DEGREES = {"mild": "mild", "mildly": "mild", "moderate": "moderate", "moderately": "moderate", "severe": "severe",
           "severely": "severe", "small": "small", "large": "large", "minimal": "minimal", "minimally": "minimal"}  # fmt: skip
CALLED_NORMAL = re.compile(
    r"(?<!not )\b(?:normal|unremarkable|clear|intact|sharp|midline|wnl)\b"
    r"|\bno (?:\w+[ ,/]+){0,4}?(?:abnormalit\w+|process|disease|findings?)\b"
)
NORMAL_PHRASE = re.compile(r"normal|unremarkable|limits|wnl")

ENDS = {"wall", "opening", "comma"}  # kinds of the labeler's cues
SIDED = frozenset(name.split(" ", 1)[1] for name in REGIONS if name.startswith("left "))


class Gain(NamedTuple):
    """One attribute that a clause gives a region, and the words that it was read from."""

    region: str
    attribute: str
    words: str
    clause: str


def sided(places: tuple[str, ...] | list[str], text: str) -> list[str]:
    """Names of regions: places with two sides on the side that `text` names, on both where it names none."""
    sides = [side for side, pattern in (("right", RIGHT), ("left", LEFT)) if pattern.search(text)]
    sides = ["right", "left"] if BOTH.search(text) or not sides else sides
    names = []
    for place in places:
        names += [f"{side} {place}" for side in sides] if place in SIDED else [place]
    return names


def with_lungs(names: list[str]) -> list[str]:
    """A zone speaks of its lung too; each name once."""
    lungs = [f"{name.split()[0]} lung" for name in names if name.endswith(" zone")]
    return list(dict.fromkeys(names + lungs))


@lru_cache(maxsize=50_000)
def places_of(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(places, regions) that words of place name; places still want a side."""
    regions = tuple(name for names, pattern in SIDED_PLACES if re.search(pattern, text) for name in names)
    taken = {name.split(" ", 1)[1] for name in regions}
    places = tuple(
        name for names, pattern in PLACES if re.search(pattern, text) for name in names if name not in taken
    )
    return places, regions


def home_of(label: str, text: str) -> tuple[str, ...]:
    """Places of a label whose place is not named; a device's by its kind."""
    if label != DEVICE:
        return HOMES[label][0]
    return next((places for places, pattern in DEVICE_HOMES if re.search(pattern, text)), ())


def regions_of(label: str, part: str, words: str) -> list[str]:
    """Regions of a statement of `label` whose `words` stand in a `part` of a clause."""
    places, regions = places_of(part)
    fits = HOMES[label][1]
    if fits is not None:
        places = tuple(place for place in places if place in fits)
        regions = tuple(name for name in regions if name.split(" ", 1)[1] in fits)
    # "lung" beside a zone says nothing more: "right upper lung zone", "left lung base"
    zones = [place for place in places if place.endswith("zone")]
    places = tuple(place for place in places if place != "lung") if zones or regions else places
    if label == DEVICE:
        places = (*places, *home_of(label, words))
    elif not places and not regions:
        places = home_of(label, words)
    return with_lungs([*regions, *sided(places, part)])


def parts_of(clause: str) -> list[tuple[int, int]]:
    """(start, end) of the parts of a clause in lower case, which end where the labeler's cues end a statement."""
    cues = [(start, clause[start:end]) for start, end, kinds in find_cues(clause) if ENDS & set(kinds)]
    ends = [start for start, words in cues if start and words != "otherwise"]  # "the lungs are otherwise clear"
    return list(zip([0, *ends], [*ends, len(clause)]))


def read_gains(report: str) -> list[Gain]:
    """All that a report says of regions, clause by clause; `read_regions` sums it up."""
    plain = one_line(report)
    lower = lower_case(plain)
    statements = list(find_statements(plain))
    gains = []
    for start, stop in find_clauses(lower):
        clause = lower[start:stop]
        inside = [(label, state, a - start, b - start) for label, state, a, b in statements if start <= a < stop]
        for first, last in parts_of(clause):
            part = clause[first:last]
            here = [statement for statement in inside if first <= statement[2] < last]
            gains += [gain._replace(clause=clause.strip()) for gain in _read_part(part, clause, here)]
    return gains


def _read_part(part: str, clause: str, statements: list) -> list[Gain]:
    """Gains of one part of a clause. statements: (label, state, start, end) within the clause."""
    gains = []
    for label, state, start, end in statements:
        words = clause[start:end]
        answer = "no" if state == "negative" else "yes"
        names = [f"{answer}|{label.lower()}"]
        if answer == "yes" and label != DEVICE:
            names += [f"degree|{DEGREES[word]}" for word in re.findall(r"[a-z]+", part) if word in DEGREES]
        elif NORMAL_PHRASE.search(words):
            names.append("normal")
        # a tube's or lead's place often stands behind "with its tip in ..."
        regions = regions_of(label, clause if label == DEVICE else part, words)
        gains += [Gain(region, name, words, "") for region in regions for name in dict.fromkeys(names)]
    called = CALLED_NORMAL.search(part)
    if called and not any(state != "negative" for _, state, _, _ in statements):
        every, sides = places_of(part)
        bones = ["spine", "right clavicle", "left clavicle"] if BONES.search(part) else []
        zones = [place for place in every if place.endswith("zone")]
        places = tuple(place for place in every if not (place == "lung" and (zones or sides)))
        for region in dict.fromkeys(with_lungs([*sides, *sided(places, part)]) + bones):
            gains.append(Gain(region, "normal", called.group(), ""))
    return gains


def read_regions(report: str) -> dict[str, dict]:
    """{region: {"abnormal": bool, "attributes": [names]}} of the regions that a report speaks of, in the order of REGIONS.

    abnormal: some finding other than a device is there. A finding that is there outdoes its denial elsewhere in the report,
    and an abnormal region is not `normal` ("the lungs are otherwise clear").
    """
    found: dict[str, list[str]] = {}
    for region, attribute, _, _ in read_gains(report):
        found.setdefault(region, []).append(attribute)
    return {region: summed_up(found[region]) for region in REGIONS if region in found}


def summed_up(names: list[str]) -> dict:
    """{"abnormal", "attributes"} of all attributes that a region got."""
    there = {name.removeprefix("yes|") for name in names if name.startswith("yes|")}
    abnormal = bool(there - {DEVICE.lower()})
    kept = [name for name in dict.fromkeys(names) if not (name.startswith("no|") and name.removeprefix("no|") in there)]
    return {"abnormal": abnormal, "attributes": [name for name in kept if not (abnormal and name == "normal")]}
