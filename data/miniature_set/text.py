"""What a miniature study says: which findings it has (sampled), and the report that names them.

Rule of the labels: one drawn finding gives exactly one label, nothing is implied. A consolidation is never called an
opacity, so `Lung Opacity` means a hazy opacity only; an ordinary rule-based labeler finds the same labels in the text.
Devices are no finding in CheXpert's sense: a study with nothing but a device is also `No Finding`.
"""

from dataclasses import dataclass

import numpy as np

from modules.text.labels import CHEXPERT_14, NO_FINDING

NORMAL_SHARE = 0.52

# Label sets of the abnormal studies and their weights: findings that come together in life often do here, and each set
# is frequent enough that a few hundred studies teach it.
PATTERNS = {
    ("Cardiomegaly",): 5,
    ("Pleural Effusion",): 5,
    ("Lung Opacity",): 5,
    ("Atelectasis",): 5,
    ("Consolidation",): 5,
    ("Edema",): 4,
    ("Pneumothorax",): 4,
    ("Fracture",): 4,
    ("Lung Lesion",): 5,
    ("Support Devices",): 4,
    ("Cardiomegaly", "Pleural Effusion"): 4,
    ("Cardiomegaly", "Edema"): 4,
    ("Cardiomegaly", "Atelectasis"): 4,
    ("Cardiomegaly", "Lung Opacity"): 3,
    ("Cardiomegaly", "Support Devices"): 4,
    ("Edema", "Pleural Effusion"): 4,
    ("Edema", "Support Devices"): 3,
    ("Atelectasis", "Pleural Effusion"): 4,
    ("Consolidation", "Pleural Effusion"): 4,
    ("Consolidation", "Support Devices"): 3,
    ("Lung Lesion", "Pleural Effusion"): 4,
    ("Atelectasis", "Lung Opacity"): 3,
    ("Fracture", "Pneumothorax"): 4,
    ("Fracture", "Lung Opacity"): 3,
    ("Pneumothorax", "Support Devices"): 4,
    ("Lung Opacity", "Support Devices"): 3,
    ("Cardiomegaly", "Edema", "Pleural Effusion"): 4,
    ("Cardiomegaly", "Edema", "Support Devices"): 3,
    ("Cardiomegaly", "Pleural Effusion", "Support Devices"): 3,
    ("Fracture", "Pleural Effusion", "Pneumothorax"): 3,
    ("Atelectasis", "Pleural Effusion", "Support Devices"): 3,
}
FOCAL = ("Atelectasis", "Consolidation", "Lung Lesion", "Lung Opacity")
SIDES = ("right", "left")


@dataclass(frozen=True)
class Finding:
    """One drawn thing. `side` is the patient's (right lies left in the frontal image). None: does not apply.

    kind: what it is within its label (nodule or mass, pacemaker, catheter or tube ...).
    place: upper, mid, lower (zone), base, apex ... ; size: small, moderate, large; severity: mild, moderate, severe.
    """

    label: str
    kind: str
    side: str | None = None
    place: str | None = None
    size: str | None = None
    severity: str | None = None


@dataclass(frozen=True)
class DrawnStudy:
    """Study number `index` of the sets of one seed; a larger set begins with the studies of a smaller one."""

    seed: int
    index: int
    findings: tuple[Finding, ...]

    @property
    def id(self) -> str:
        return study_id(self.index)

    @property
    def split(self) -> str:
        """By index alone, 75/10/15 %, so that a growing set never moves a study."""
        return {3: "val", 13: "val", 6: "test", 11: "test", 18: "test"}.get(self.index % 20, "train")

    @property
    def sentences(self) -> list[tuple[str, str]]:
        """[(what it says, sentence)], see write_sentences."""
        return write_sentences(stream(self.seed, self.index, WORDS), list(self.findings))

    @property
    def report(self) -> str:
        return " ".join(sentence for _, sentence in self.sentences)


# Parts of the chance of one study, kept separate so that leaving a finding out shifts nothing else.
WHAT, WORDS, BODY, TEXTURE, FIRST_FINDING = 1, 2, 3, 4, 10


def stream(seed: int, index: int, part: int) -> np.random.Generator:
    """Random numbers of one part of one study, independent of every other study."""
    return np.random.Generator(np.random.PCG64([seed, index, part]))


def study_id(index: int) -> str:
    return f"MINI{index:06d}"


def sample(seed: int, index: int) -> DrawnStudy:
    """Study `index`: normal in NORMAL_SHARE of the studies, else a pattern of 1-3 labels.

    Patterns follow a golden-ratio sequence rather than dice, so that each takes its share of even a small set.
    """
    start = np.random.Generator(np.random.PCG64([seed])).random()
    at = (start + index * (5 ** 0.5 - 1) / 2) % 1
    if at < NORMAL_SHARE:
        return DrawnStudy(seed, index, ())
    pattern = pick_at((at - NORMAL_SHARE) / (1 - NORMAL_SHARE), PATTERNS)
    return DrawnStudy(seed, index, tuple(sample_findings(stream(seed, index, WHAT), pattern)))


def pick_at(share: float, weights: dict):
    """The key that lies at `share` (0..1) of the summed weights."""
    at = share * sum(weights.values())
    for key, weight in weights.items():
        at -= weight
        if at < 0:
            return key
    return list(weights)[-1]


def pick(rng, weights: dict):
    """One key of `weights`, with probability proportional to its value."""
    return pick_at(rng.random(), weights)


def sample_findings(rng, pattern: tuple[str, ...]) -> list[Finding]:
    """Findings with the labels of `pattern`.

    Places are chosen so that no finding hides another (nothing focal under an effusion of the same side).
    """
    focal = [label for label in pattern if label in FOCAL]
    side = pick(rng, {"right": 1, "left": 1})
    opposite = SIDES[1 - SIDES.index(side)]
    wet_sides, found = [], []

    if "Cardiomegaly" in pattern:
        weights = {"mild": 4, "moderate": 4, "severe": 0 if focal else 3}
        found.append(Finding("Cardiomegaly", "enlarged heart", severity=pick(rng, weights)))
    if "Edema" in pattern:
        severity = pick(rng, {"mild": 3, "moderate": 4, "severe": 3})
        found.append(Finding("Edema", "edema", "bilateral", "perihilar", severity=severity))
    if "Pneumothorax" in pattern:
        size = pick(rng, {"small": 4, "moderate": 4, "large": 3})
        found.append(Finding("Pneumothorax", "pneumothorax", side, None if size == "large" else "apex", size))
    if "Pleural Effusion" in pattern:
        both = 0.5 if "Edema" in pattern or "Cardiomegaly" in pattern else 0.2
        both = 0.0 if focal or "Pneumothorax" in pattern else both
        crowded = focal or "Pneumothorax" in pattern
        size = pick(rng, {"small": 4, "moderate": 4, "large": 0 if crowded else 3})
        wet_sides = list(SIDES) if rng.random() < both else [side]
        found += [Finding("Pleural Effusion", "effusion", wet, "base", size) for wet in wet_sides]
    for label, at in zip(focal, (side, opposite)):
        if wet_sides and rng.random() < 0.6:
            at = opposite
        found.append(_focal(rng, label, at, under_fluid=at in wet_sides))
    if "Fracture" in pattern:
        severity = pick(rng, {"mild": 1, "severe": 1})
        found.append(Finding("Fracture", "rib", side, pick(rng, {"upper": 1, "lower": 1}), severity=severity))
    if "Support Devices" in pattern:
        found.append(_device(rng, pattern, side))
    return found


def _focal(rng, label: str, side: str, under_fluid: bool) -> Finding:
    if label == "Atelectasis":
        place = pick(rng, {"mid": 3, "base": 0 if under_fluid else 6})
        return Finding(label, "band", side, place, severity=pick(rng, {"mild": 5, "moderate": 5}))
    place = pick(rng, {"upper": 3, "mid": 3, "lower": 0 if under_fluid else 4})
    size = pick(rng, {"small": 1, "large": 1})
    kind = {"Consolidation": "consolidation", "Lung Opacity": "haze"}.get(label) or \
        {"small": "nodule", "large": "mass"}[size]
    return Finding(label, kind, side, place, size)


def _device(rng, pattern, side: str) -> Finding:
    heart = "Cardiomegaly" in pattern
    kind = pick(rng, {"pacemaker": 6 if heart else 1, "catheter": 2 if heart else 5, "tube": 2 if heart else 4})
    if kind == "tube":
        return Finding("Support Devices", kind, place="trachea")
    if kind == "pacemaker":
        return Finding("Support Devices", kind, pick(rng, {"left": 4, "right": 1}), "chest wall")
    side = side if "Pneumothorax" in pattern else pick(rng, {"right": 3, "left": 1})
    return Finding("Support Devices", kind, side, "superior vena cava")


def label_vector(findings: list[Finding]) -> dict[str, int]:
    """0/1 for each of the 14 labels by name; No Finding is 1 when there is nothing but devices, as CheXpert has it."""
    names = {finding.label for finding in findings}
    healthy = not names - {"Support Devices"}
    return {label: int(label in names or (label == NO_FINDING and healthy)) for label in CHEXPERT_14}


# The wordings of each statement, the first the commonest: variety that a few hundred reports can teach.
COMMONNESS = (12, 3, 2, 1)

POSITIVE = {
    "enlarged heart": (
        "The heart is {adverb} enlarged.",
        "There is {degree} cardiomegaly.",
        "The cardiac silhouette is {adverb} enlarged.",
        "{Degree} cardiomegaly is present.",
    ),
    "effusion": (
        "There is a {degree} {side} pleural effusion.",
        "A {degree} {side} pleural effusion is present.",
        "{Degree} {side} pleural effusion is seen.",
        "There is a {degree} pleural effusion on the {side}.",
    ),
    "effusions": (
        "There are {degree} bilateral pleural effusions.",
        "{Degree} bilateral pleural effusions are present.",
        "{Degree} pleural effusions are seen on both sides.",
    ),
    "haze": (
        "There is a {degree} hazy opacity in the {side} {place} lung zone.",
        "A {degree} hazy opacity is present in the {side} {place} lung.",
        "{Degree} opacity is seen in the {side} {place} lung zone.",
    ),
    "consolidation": (
        "There is a {degree} consolidation in the {side} {place} lung zone.",
        "A {degree} area of consolidation is present in the {side} {place} lung.",
        "{Degree} focal consolidation is seen in the {side} {place} lung zone.",
    ),
    "band": (
        "There is {degree} bandlike atelectasis in the {side} {place}.",
        "{Degree} atelectasis is present in the {side} {place}.",
        "{Degree} linear atelectasis is seen in the {side} {place}.",
    ),
    "edema": (
        "There is {degree} pulmonary edema.",
        "{Degree} pulmonary edema is present in both lungs.",
        "There is {degree} bilateral perihilar edema.",
    ),
    "pneumothorax": (
        "There is a {degree} {side} {place}pneumothorax.",
        "A {degree} {side} {place}pneumothorax is present.",
        "{Degree} {side} {place}pneumothorax is seen.",
    ),
    "rib": (
        "There is a {adverb} displaced fracture of a {side} {place} rib.",
        "A {adverb} displaced {side} {place} rib fracture is seen.",
        "{Adverb} displaced fracture of a {side} {place} rib is present.",
    ),
    "nodule": (
        "There is a {degree} nodule in the {side} {place} lung zone.",
        "A {degree} nodule is present in the {side} {place} lung.",
        "{Degree} pulmonary nodule is seen in the {side} {place} lung zone.",
    ),
    "mass": (
        "There is a {degree} mass in the {side} {place} lung zone.",
        "A {degree} mass is present in the {side} {place} lung.",
        "{Degree} pulmonary mass is seen in the {side} {place} lung zone.",
    ),
    "pacemaker": (
        "A {side} chest pacemaker is in place.",
        "There is a {side} pacemaker with its lead in the heart.",
        "{Side} chest wall pacemaker is present.",
    ),
    "catheter": (
        "A {side} central venous catheter ends in the superior vena cava.",
        "There is a {side} central venous catheter with its tip in the superior vena cava.",
        "{Side} central venous catheter is in place.",
    ),
    "tube": (
        "An endotracheal tube ends above the carina.",
        "There is an endotracheal tube in place.",
        "Endotracheal tube is in good position above the carina.",
    ),
}

NORMAL = {
    "heart": (
        "The heart is normal in size.",
        "Heart size is normal.",
        "The heart size is within normal limits.",
    ),
    "mediastinum": (
        "The mediastinum is unremarkable.",
        "The mediastinal contours are normal.",
        "Mediastinal contours are within normal limits.",
    ),
    "heart and mediastinum": (
        "The heart size and mediastinal contours are normal.",
        "The cardiomediastinal silhouette is within normal limits.",
        "Heart and mediastinum are normal in appearance.",
    ),
    "lungs": (
        "The lungs are clear.",
        "Lungs are clear bilaterally.",
        "The lungs are clear without focal consolidation.",
        "There is no focal consolidation.",
    ),
    "rest of the lungs": (
        "The lungs are otherwise clear.",
        "The rest of the lungs is clear.",
    ),
    "vessels": (
        "The pulmonary vascularity is normal.",
        "Pulmonary vessels are within normal limits.",
    ),
    "no effusion or pneumothorax": (
        "There is no pleural effusion or pneumothorax.",
        "No pleural effusion or pneumothorax is seen.",
        "No pneumothorax or pleural effusion.",
    ),
    "no effusion": ("There is no pleural effusion.", "No pleural effusion is seen."),
    "no pneumothorax": ("There is no pneumothorax.", "No pneumothorax is seen."),
    "bones": (
        "The bony structures are intact.",
        "The visualized bones are unremarkable.",
        "No acute bony abnormality.",
        "Bony thorax is intact.",
    ),
}

ADVERBS = {"mild": "mildly", "moderate": "moderately", "severe": "severely"}


def write_sentences(rng, findings: list[Finding]) -> list[tuple[str, str]]:
    """[(what it says: a label or a key of NORMAL, sentence)] of a report: 3-7 sentences.

    They name every finding and the usual normal structures. A normal statement is made only where nothing drawn contradicts it.
    """
    by_label: dict[str, list[Finding]] = {}
    for finding in findings:
        by_label.setdefault(finding.label, []).append(finding)
    said = {label: (label, _positive(rng, group)) for label, group in by_label.items()}

    short = len(said) > 1                                  # much to tell: fewer optional sentences
    whole_heart = rng.random() < 0.25
    optional = {name: rng.random() for name in ("mediastinum", "vessels", "rest", "no others", "bones")}

    if "Cardiomegaly" in said:
        heart = [said["Cardiomegaly"]]
        heart += [_normal(rng, "mediastinum")] * (optional["mediastinum"] < 0.2)
    elif whole_heart:
        heart = [_normal(rng, "heart and mediastinum")]
    else:
        heart = [_normal(rng, "heart")] + [_normal(rng, "mediastinum")] * (optional["mediastinum"] < 0.2)

    lungs = [said[label] for label in ("Edema", "Consolidation", "Lung Opacity", "Lung Lesion", "Atelectasis")
             if label in said]
    if not lungs:
        lungs = [_normal(rng, "lungs")]
    elif "Edema" not in said and optional["rest"] < 0.3:
        lungs.append(_normal(rng, "rest of the lungs"))
    if not said and optional["vessels"] < 0.15:
        lungs.insert(0, _normal(rng, "vessels"))

    pleura = [said[label] for label in ("Pleural Effusion", "Pneumothorax") if label in said]
    if not pleura:
        pleura = [_normal(rng, "no effusion or pneumothorax")]
    elif len(pleura) == 1 and optional["no others"] < 0.8:
        pleura.append(_normal(rng, "no pneumothorax" if "Pleural Effusion" in said else "no effusion"))

    bones = [said["Fracture"]] if "Fracture" in said else \
        [_normal(rng, "bones")] * (optional["bones"] < (0.3 if short else 0.75))
    devices = [said["Support Devices"]] if "Support Devices" in said else []
    order = [heart, lungs, pleura] if rng.random() < 0.8 else [lungs, pleura, heart]
    return [sentence for part in [devices, *order, bones] for sentence in part]


def _normal(rng, name: str) -> tuple[str, str]:
    return name, pick(rng, dict(zip(NORMAL[name], COMMONNESS)))


def _positive(rng, group: list[Finding]) -> str:
    """One sentence for the findings of one label (two only for the effusions of both sides)."""
    finding = group[0]
    kind = "effusions" if len(group) == 2 else finding.kind
    place = finding.place or ""
    if kind == "band":
        place = {"mid": "mid lung", "base": "lung base"}[place]
    if kind == "pneumothorax":
        place = "apical " if place == "apex" else ""
    degree = finding.severity or finding.size or ""
    words = {"degree": degree, "adverb": ADVERBS.get(degree, ""), "side": finding.side or "", "place": place}
    words |= {name.capitalize(): text.capitalize() for name, text in words.items()}
    return pick(rng, dict(zip(POSITIVE[kind], COMMONNESS))).format(**words)
