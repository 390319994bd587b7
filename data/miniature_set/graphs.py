"""The scene graph of a miniature study: 29 boxes from the anatomy that is drawn, attributes from findings and sentences.

The truth that rules and detectors are measured against. A finding speaks of its home and of the regions of the lungs in
whose box at least MEETS of its mask lies; a normal sentence speaks of what it names.
"""

import numpy as np

from data.miniature_set.drawing import SIGN, Frontal, patient_of
from data.miniature_set.text import DrawnStudy, Finding
from modules.text.regions import REGIONS

MEETS = 0.3  # share of a finding's mask inside a region's box
SIDES = tuple(SIGN)


def both(*places: str) -> tuple[str, ...]:
    """The regions of both sides."""
    return tuple(f"{side} {place}" for place in places for side in SIDES)


LUNG_REGIONS = both("lung", "upper lung zone", "mid lung zone", "lower lung zone", "apical zone", "costophrenic angle")
# regions that a finding has whatever its mask meets; those of its side where it has one
HOMES = {
    "Cardiomegaly": ("cardiac silhouette",),
    "Pleural Effusion": both("costophrenic angle", "lower lung zone", "lung"),
    "Pneumothorax": both("apical zone", "lung"),
    "Edema": both("lung", "hilar structures"),
    "Consolidation": both("lung"), "Lung Opacity": both("lung"), "Lung Lesion": both("lung"),
    "Atelectasis": both("lung"), "Fracture": (),
}  # fmt: skip
DEVICE_HOMES = {
    "tube": ("trachea", "carina"), "catheter": ("svc", "cavoatrial junction"),
    "pacemaker": ("cardiac silhouette", "right atrium"),
}  # fmt: skip
NORMAL_HEART = (("cardiac silhouette",), ("no|cardiomegaly", "normal"))
NORMAL_MEDIASTINUM = (("mediastinum",), ("no|enlarged cardiomediastinum", "normal"))
NO_EFFUSION = (both("costophrenic angle", "lower lung zone", "lung"), ("no|pleural effusion",))
NO_PNEUMOTHORAX = (both("apical zone", "lung"), ("no|pneumothorax",))
# key of text.NORMAL -> (regions, attributes) that the sentence gives; "lungs" depends on its wording
NORMAL_SAYS = {
    "heart": (NORMAL_HEART,),
    "mediastinum": (NORMAL_MEDIASTINUM,),
    "heart and mediastinum": (NORMAL_HEART, NORMAL_MEDIASTINUM),
    "rest of the lungs": ((both("lung"), ("normal",)),),
    "vessels": ((both("hilar structures"), ("normal",)),),
    "no effusion or pneumothorax": (NO_EFFUSION, NO_PNEUMOTHORAX),
    "no effusion": (NO_EFFUSION,),
    "no pneumothorax": (NO_PNEUMOTHORAX,),
    "bones": ((("spine", *both("clavicle")), ("normal",)),),
}


def box_of(mask, threshold: float = 0.3) -> list[float] | None:
    """[x0, y0, x1, y1] in fractions of the image around mask > threshold; None where nothing is."""
    if mask is None or not (mask > threshold).any():
        return None
    rows, columns = np.flatnonzero((mask > threshold).any(1)), np.flatnonzero((mask > threshold).any(0))
    high, wide = mask.shape
    corners = columns[0] / wide, rows[0] / high, (columns[-1] + 1) / wide, (rows[-1] + 1) / high
    return [round(float(corner), 4) for corner in corners]


def _box_of_region(mask: np.ndarray) -> list[float]:
    box = box_of(mask)
    assert box is not None, "every region lies in the frontal image"
    return box


def region_boxes(study: DrawnStudy, image_size: int) -> dict[str, list[float]]:
    """{region: x0 y0 x1 y1 in fractions of the frontal image} of all 29 regions."""
    measures, heart_scale = patient_of(study, study.findings)
    body = Frontal(measures, image_size, heart_scale)
    x, y = body.x, body.y
    masks = {"cardiac silhouette": body.heart, "aortic arch": body.knob(), "svc": body.veins(), "spine": body.column(),
             "trachea": body.windpipe()}  # fmt: skip
    for side in SIDES:
        lung = body.lung[side]
        x0, top, x1, bottom = _box_of_region(lung)
        third = (bottom - top) / 3
        for number, zone in enumerate(("upper", "mid", "lower")):
            masks[f"{side} {zone} lung zone"] = lung * (y >= top + number * third) * (y < top + (number + 1) * third)
        masks[f"{side} lung"], masks[f"{side} apical zone"] = lung, lung * (y < top + third / 2)
        masks[f"{side} hilar structures"] = body.hilum(side)
        masks[f"{side} clavicle"] = body.collar_bones() * (SIGN[side] * (x - body.cx) > 0)
        across = (body.depth[side] > body.inner[side]) & (body.depth[side] < body.outer[side])
        masks[f"{side} hemidiaphragm"] = across * (np.abs(y - body.floor[side]) < 0.03)
    boxes = {region: _box_of_region(mask) for region, mask in masks.items()}
    for side, sign in SIGN.items():
        x0, top, x1, bottom = boxes[f"{side} lung"]
        corner = (x0, x0 + 0.10) if sign < 0 else (x1 - 0.10, x1)
        boxes[f"{side} costophrenic angle"] = [corner[0], bottom - 0.10, corner[1], bottom]
    heart, knob, cava, windpipe = (boxes[name] for name in ("cardiac silhouette", "aortic arch", "svc", "trachea"))
    boxes["right atrium"] = [heart[0], (heart[1] + heart[3]) / 2, body.cx, heart[3]]
    domes = sorted(body.dome.values())
    middle = [min(boxes["right hilar structures"][2], heart[0]), knob[1], max(knob[2], heart[2]), domes[1]]
    boxes["mediastinum"] = middle
    boxes["upper mediastinum"] = [cava[0], knob[1], knob[2], knob[1] + (middle[3] - middle[1]) / 3]
    boxes["cavoatrial junction"] = [cava[0], cava[3] - 0.08, cava[2], cava[3]]
    end = (windpipe[0] + windpipe[2]) / 2
    boxes["carina"] = [end - 0.04, windpipe[3] - 0.03, end + 0.04, windpipe[3] + 0.04]
    boxes["abdomen"] = [boxes["right lung"][0], domes[0], boxes["left lung"][2], 1.0]
    return {region: [round(float(min(max(corner, 0), 1)), 4) for corner in boxes[region]] for region in REGIONS}


def share_inside(mask: np.ndarray, box: list[float]) -> float:
    """Share of mask > 0.3 [S, S] that lies inside a box in fractions."""
    there = mask > 0.3
    x0, y0, x1, y1 = (round(corner * mask.shape[0]) for corner in box)
    return float(there[y0:y1, x0:x1].sum() / max(there.sum(), 1))


def regions_of(finding: Finding, mask: np.ndarray | None, boxes: dict[str, list[float]]) -> list[str]:
    """Regions that a finding is seen in: its home, and regions of the lungs that its mask meets."""
    if finding.label == "Support Devices":
        return list(DEVICE_HOMES[finding.kind])
    home = HOMES[finding.label]
    if finding.side in SIDES:
        home = tuple(region for region in home if region.startswith(finding.side))
    met = [] if finding.label == "Cardiomegaly" or mask is None else \
        [region for region in LUNG_REGIONS if share_inside(mask, boxes[region]) >= MEETS]
    return list(dict.fromkeys([*home, *met]))


def graph_of(study: DrawnStudy, masks: list, image_size: int) -> dict:
    """The line of a study in scene_graphs.jsonl. masks: those of its findings in the frontal image."""
    boxes = region_boxes(study, image_size)
    found: dict[str, list[str]] = {}
    abnormal = set()
    for finding, mask in zip(study.findings, masks):
        names = [f"yes|{finding.label.lower()}"]
        degree = finding.severity or finding.size
        names += [f"degree|{degree}"] if degree else []
        for region in regions_of(finding, mask, boxes):
            found.setdefault(region, []).extend(names)
            if finding.label != "Support Devices":
                abnormal.add(region)
    for key, sentence in study.sentences:
        for regions, names in normal_says(key, sentence):
            for region in regions:
                # "the rest of the lungs is clear" does not call an abnormal lung normal
                found.setdefault(region, []).extend(n for n in names if n != "normal" or region not in abnormal)
    rows = [
        {"name": region, "box": boxes[region], "score": 1.0, "spoken": bool(found.get(region)),
         "abnormal": region in abnormal, "attributes": list(dict.fromkeys(found.get(region, [])))}
        for region in REGIONS
    ]  # fmt: skip
    return {"study": study.id, "image": f"{study.id}/0.png", "split": study.split, "regions": rows}


def normal_says(key: str, sentence: str) -> tuple:
    """((regions, attributes), ...) of a normal sentence; nothing for a finding's."""
    if key != "lungs":
        return NORMAL_SAYS.get(key, ())
    names = ["normal"] * ("clear" in sentence) + ["no|consolidation"] * ("consolidation" in sentence)
    return ((both("lung"), tuple(names)),)
