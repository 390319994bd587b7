"""Scene graphs of a data set: one file, one image per line, whatever they were made from.

    {"study": "CXR1_1", "image": "CXR1_1/0.png", "split": "train", "regions": [
       {"name": "left lung", "box": [0.52, 0.10, 0.90, 0.80], "score": 1.0, "spoken": true, "abnormal": true,
        "attributes": ["yes|pleural effusion", "no|pneumothorax"]}, ...]}

box: x0 y0 x1 y1 in fractions of the image, null = the report speaks of the region but there is no box. spoken: the report
speaks of the region; it, abnormal and attributes are absent where no report was read. score: a detector's, else 1. A
region may stand twice. The manifest beside the file holds the layout (modules/text/regions.py), `boxes_from`,
`attributes_from`, counts and hashes. A name that ends in .gz is compressed.

Letters: R regions, N boxes of an image, M attributes of the longest head.
"""

import gzip
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.region_atlas import fit_atlas
from data.studies import SPLITS
from modules.artefact import read_manifest, sha256, write_built
from modules.errors import InputError, Problems
from modules.safe_pickle import load_pickle
from modules.text.regions import REGIONS, GraphLayout

FORMAT = 1
WHAT = "scene graphs"
HOW = "make it with python -m knowledge.build_scene_graphs (main_train.py: --from_scratch)"


@dataclass(frozen=True)
class ImageGraph:
    """The graph of one image. N rows = entries with a box, in the file's order; R and M as in the layout.

    regions: int64 [N], numbers of the layout. boxes: float32 [N, 4], x0 y0 x1 y1 in fractions of the image. scores:
    float32 [N]. spoken, abnormal: bool [N]. attributes: bool [N, M], numbers within the region's own head. region_labels:
    bool [R], spoken of, with or without a box.
    """

    regions: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    spoken: np.ndarray
    abnormal: np.ndarray
    attributes: np.ndarray
    region_labels: np.ndarray


class SceneGraphs:
    """All graphs of a file in flat tensors: about 30 bytes a box, shared by all workers, nothing parsed per item.

    layout, manifest: what the file says of itself. `of(image)` is the ImageGraph of an image path, `image in graphs` and
    `split_of(image)` say whether and as what it stands there.
    """

    def __init__(self, layout: GraphLayout, manifest: dict, rows: "_Rows") -> None:
        self.layout, self.manifest, self._number = layout, manifest, rows.images
        # tensors, not arrays: PyTorch hands them to workers by shared memory however these are started
        self._splits = _tensor(rows.splits, torch.uint8)
        self._first, self._first_attribute = (_tensor(values, torch.int64) for values in (rows.first, rows.start))
        self._regions, self._states = (_tensor(values, torch.uint8) for values in (rows.regions, rows.states))
        self._boxes, self._scores = _tensor(rows.boxes, torch.float32).view(-1, 4), _tensor(rows.scores, torch.float32)
        self._attributes = _tensor(rows.attributes, torch.int16)
        self._labels = _tensor(rows.labels, torch.uint8).view(-1, len(layout.regions))
        self._longest = max(layout.heads, default=0)

    def __len__(self) -> int:
        return len(self._number)

    def __contains__(self, image: str) -> bool:
        return image in self._number

    @property
    def with_attributes(self) -> bool:
        """Whether the file says what the reports speak of; False: it has boxes alone."""
        return self.manifest["attributes_from"] != "none"

    def split_of(self, image: str) -> str:
        """Split under which an image was written; KeyError for one that is not in the file."""
        return SPLITS[int(self._splits[self._number[image]])]

    def of(self, image: str) -> ImageGraph:
        """The graph of an image; KeyError for one that is not in the file."""
        number = self._number[image]
        first, last = self._first[number : number + 2].tolist()
        regions = self._regions[first:last].numpy()
        states = self._states[first:last].numpy()
        attributes = np.zeros((last - first, self._longest), bool)
        starts = self._first_attribute[first : last + 1].numpy()
        rows = np.repeat(np.arange(last - first), np.diff(starts))
        attributes[rows, self._attributes[starts[0] : starts[-1]].numpy()] = True
        return ImageGraph(
            regions=regions.astype(np.int64),
            boxes=self._boxes[first:last].numpy(),
            scores=self._scores[first:last].numpy(),
            spoken=states & 1 > 0,
            abnormal=states & 2 > 0,
            attributes=attributes,
            region_labels=self._labels[number].numpy() > 0,
        )


def _tensor(values: array, dtype) -> torch.Tensor:
    """A tensor over the memory of `values`; torch has none for an empty buffer."""
    return torch.frombuffer(values, dtype=dtype) if len(values) else torch.zeros(0, dtype=dtype)


# ------------------------------------------------------------------------------------------------------ reading


def manifest_of(path: str | Path) -> dict:
    """The manifest beside a file of scene graphs. Raises InputError where there is none, or another one."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file of scene graphs {path}; {HOW}")
    manifest = read_manifest(path)
    if not manifest or manifest.get("what") != WHAT:
        raise InputError(f"{path} has no manifest of scene graphs beside it; {HOW}")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path} has format {manifest.get('format')}, this program reads {FORMAT}; {HOW}")
    return manifest


def layout_of(path: str | Path) -> GraphLayout:
    """Names of regions and attributes of a file, from its manifest alone. InputError: none, or not readable."""
    try:
        return GraphLayout.from_state(manifest_of(path))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the manifest of {path} does not name regions and attributes ({error}); {HOW}") from error


def open_text(path: str | Path, mode: str = "r", name: str | Path | None = None):
    """A text file, compressed where `name` (default: path) ends in .gz."""
    if str(name or path).endswith(".gz"):
        return gzip.open(path, mode + "t", encoding="utf-8", compresslevel=4)
    return open(path, mode, encoding="utf-8")


def read_rows(path: str | Path) -> Iterator[dict]:
    """The lines of a file as they stand, one dict an image; for tools that need the names. InputError: no JSON."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path} line {number} is not JSON ({error}); {HOW}") from error


class _Rows:
    """What is read so far: growing arrays of plain numbers."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.splits, self.labels, self.regions, self.states = (array("B") for _ in range(4))
        self.first, self.start = array("q", [0]), array("q", [0])
        self.boxes, self.scores, self.attributes = array("f"), array("f"), array("H")


def read_scene_graphs(path: str | Path) -> SceneGraphs:
    """Read and check a file. InputError lists, one message each: lines that are no graph, unknown regions and attributes,
    boxes outside the image, images that stand twice, a file that is not the one its manifest was written for."""
    manifest, layout = manifest_of(path), layout_of(path)
    if manifest.get("sha256") != sha256(path):
        raise InputError(f"{path} is not the file that its manifest was written for: changed or cut off; {HOW}")
    rows, faults = _Rows(), _Faults()
    numbers = {name: number for number, name in enumerate(layout.regions)}
    heads = [{name: number for number, name in enumerate(names)} for names in layout.attributes]
    nothing = bytes(len(layout.regions))
    with open_text(path) as file:
        for line_number, line in enumerate(file, 1):
            try:
                _add_line(rows, json.loads(line), numbers, heads, nothing)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                faults.add(*_what_is_wrong(line, error, rows.images, layout), line_number)
                _drop_line(rows)
    boxes = np.frombuffer(rows.boxes, np.float32).reshape(-1, 4)
    good = (boxes >= 0).all(1) & (boxes <= 1).all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1)
    for row in np.flatnonzero(~good).tolist():
        line = int(np.searchsorted(np.frombuffer(rows.first, np.int64), row, "right"))
        name = layout.regions[rows.regions[row]]
        text = "boxes lie outside the image or have no area (x0 < x1 and y0 < y1, fractions in 0..1)"
        faults.add(text, f"{name} {[round(x, 4) for x in boxes[row].tolist()]}", line)
    faults.stop_if_any(path)
    return SceneGraphs(layout, manifest, rows)


def _add_line(rows: _Rows, line: dict, numbers: dict, heads: list[dict], nothing: bytes) -> None:
    """Append one line. Raises KeyError, TypeError, ValueError or AttributeError where it is no graph of this layout."""
    image = line["image"]
    if image in rows.images:
        raise ValueError("twice")
    split = SPLITS.index(line["split"])
    spoken_of = bytearray(nothing)
    for region in line["regions"]:
        number = numbers[region["name"]]
        spoken = region.get("spoken", False)
        if spoken:
            spoken_of[number] = 1
        known = heads[number]
        found = [known[name] for name in region.get("attributes", ())]
        if region["box"] is None:
            continue
        x0, y0, x1, y1 = region["box"]
        rows.boxes.extend((x0, y0, x1, y1))
        rows.scores.append(region.get("score", 1.0))
        rows.regions.append(number)
        rows.states.append(spoken + 2 * region.get("abnormal", False))
        rows.attributes.extend(found)
        rows.start.append(len(rows.attributes))
    rows.images[image] = len(rows.images)
    rows.splits.append(split)
    rows.labels.extend(spoken_of)
    rows.first.append(len(rows.regions))


def _drop_line(rows: _Rows) -> None:
    """Take back the boxes of a line that turned out to be faulty; an empty image stands for it, so that lines count on."""
    kept = rows.first[-1]
    del rows.regions[kept:], rows.states[kept:], rows.scores[kept:], rows.boxes[4 * kept :], rows.start[kept + 1 :]
    del rows.attributes[rows.start[-1] :]
    rows.first.append(kept)


def _what_is_wrong(line: str, error: Exception, images: dict, layout: GraphLayout) -> tuple[str, str]:
    """(kind of fault, example) of a line that `_add_line` refused."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return "lines are not JSON", line.strip()[:60] or "an empty line"
    shape = "lines are no scene graph: they need study, image, split (train, val or test) and regions"
    if not isinstance(content, dict) or not isinstance(content.get("regions"), list) or "image" not in content:
        return shape, line.strip()[:60]
    if content["image"] in images:
        return "images stand twice", content["image"]
    if content.get("split") not in SPLITS:
        return shape, f"split {content.get('split')!r}"
    names = [region.get("name") if isinstance(region, dict) else region for region in content["regions"]]
    unknown = [name for name in names if name not in layout.regions]
    if unknown:
        return f"regions are unknown (known: the {len(layout.regions)} names of the manifest)", str(unknown[0])
    for region in content["regions"]:
        known = layout.attributes[layout.regions.index(region["name"])]
        for name in region.get("attributes") or ():
            if name not in known:
                return "attributes are not in the manifest's list of their region", f"{region['name']}: {name}"
    return "lines have a region without a box of four numbers (null: no box)", f"{content['image']} ({error})"


class _Faults:
    """Faults of a file by kind: how many, in which line the first stands, and an example."""

    def __init__(self) -> None:
        self.count: Counter = Counter()
        self.example: dict[str, str] = {}

    def add(self, kind: str, example: str, line: int) -> None:
        self.count[kind] += 1
        self.example.setdefault(kind, f"line {line}: {example}")

    def stop_if_any(self, path) -> None:
        problems = Problems()
        for kind, count in self.count.items():
            problems.add(f"{count:,} {kind}; first {self.example[kind]}")
        problems.stop_if_any(f"{path} cannot be used; {HOW}")


# ------------------------------------------------------------------------------------------------------ writing


def clean_box(box) -> list[float] | None:
    """[x0, y0, x1, y1] in fractions, clipped to the image and rounded; None where nothing of it lies inside."""
    if box is None:
        return None
    x0, y0, x1, y1 = (round(min(max(float(corner), 0.0), 1.0), 4) for corner in box)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def clean_row(row: dict) -> dict:
    """A line whose boxes lie in the image; a region without a box stays only where the report speaks of it."""
    regions = [region | {"box": clean_box(region["box"])} for region in row["regions"]]
    return row | {"regions": [region for region in regions if region["box"] or region.get("spoken")]}


def count_attributes(rows: Iterable[dict]) -> dict[str, Counter]:
    """{region: how often each attribute stands in rows of the training split}."""
    counts: dict[str, Counter] = {name: Counter() for name in REGIONS}
    for row in rows:
        if row["split"] == "train":
            for region in row["regions"]:
                counts[region["name"]].update(region.get("attributes", ()))
    return counts


def make_layout(counts: dict[str, Counter], least: int) -> GraphLayout:
    """The attributes seen at least `least` times, the commonest first, equal ones by name."""
    ranked = [sorted(counts[name].items(), key=lambda pair: (-pair[1], pair[0])) for name in REGIONS]
    return GraphLayout(REGIONS, tuple(tuple(name for name, count in rows if count >= least) for rows in ranked))


def write_rows(file, rows: Iterable[dict], layout: GraphLayout) -> dict:
    """Write lines to an open file, without the attributes that the layout has not; returns counts for the manifest."""
    known = dict(zip(layout.regions, map(frozenset, layout.attributes)))
    ids: dict[str, list[str]] = {split: [] for split in SPLITS}
    silent: Counter[str] = Counter()
    boxes = kept = left_out = 0
    for row in rows:
        regions = []
        for region in row["regions"]:
            if "attributes" in region:
                names = [name for name in region["attributes"] if name in known[region["name"]]]
                kept, left_out = kept + len(names), left_out + len(region["attributes"]) - len(names)
                region = region | {"attributes": names}
            boxes += region["box"] is not None
            regions.append(region)
        ids[row["split"]].append(row["study"])
        silent[row["split"]] += not any(region.get("spoken") for region in regions)
        line = {"study": row["study"], "image": row["image"], "split": row["split"], "regions": regions}
        file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    splits = {
        split: {
            "images": len(names),
            "without_region": silent[split],
            "ids_sha256": hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16],
        }
        for split, names in ids.items()
    }
    return {"splits": splits, "boxes": boxes, "attributes_written": kept, "rare_attributes_left_out": left_out}


def write_scene_graphs(
    out: str | Path, rows: Iterable[dict], *, least: int, inputs: dict, boxes_from: dict, attributes_from: dict,
    layout: GraphLayout | None = None, **facts,
) -> dict:  # fmt: skip
    """Write a file and its manifest, which is returned.

    rows: lines of the format above with all attributes, read once; boxes may reach beyond the image. least: an attribute
    of a region is kept when training rows have it this often. layout: take these lists instead of counting. boxes_from,
    attributes_from: {"kind": ..., and what it was made with}.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    raw = out.with_name(f".{out.name}.counted.tmp")
    counted: dict = {}

    def clean() -> Iterator[dict]:
        with open_text(raw, "w", out) as file:
            for row in map(clean_row, rows):
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
                yield row

    try:
        counts = count_attributes(clean())
        names = layout or make_layout(counts, least)

        def write(temporary: Path) -> None:
            with open_text(temporary, "w", out) as file, open_text(raw, "r", out) as source:
                counted.update(write_rows(file, map(json.loads, source), names))

        return write_built(
            out, write, WHAT, inputs=inputs, format=FORMAT, **names.state(), least=least,
            boxes_from=boxes_from["kind"], attributes_from=attributes_from["kind"],
            sources={"boxes": boxes_from, "attributes": attributes_from},
            counted=counted, commonest=commonest(counts), **facts,
        )  # fmt: skip
    finally:
        raw.unlink(missing_ok=True)


def commonest(counts: dict[str, Counter], most: int = 40) -> dict[str, int]:
    """{"region: attribute": how often in training}, the most frequent first."""
    pairs = Counter({f"{region}: {name}": n for region, found in counts.items() for name, n in found.items()})
    return dict(pairs.most_common(most))

def box_source(path: str | Path) -> dict | None:
    """What places boxes on a new image as in this file, plain values and tensors: an atlas, or a detector's state.

    Where boxes were annotated, an atlas fitted to those of the training split; None where that cannot be made.
    """
    manifest = manifest_of(path)
    source = manifest.get("sources", {}).get("boxes", {})
    if source.get("kind") == "atlas":
        return source
    if source.get("kind") == "detector":
        detector = Path(source["path"])
        if not detector.is_file() or sha256(detector) != source["sha256"]:
            raise InputError(f"{path}: its boxes are those of the detector {detector}, which is not there any more; {HOW}")
        return load_pickle(detector)
    try:
        return fit_atlas(row for row in read_rows(path) if row["split"] == "train")
    except InputError:  # too few boxes: a new image then needs a detector
        return None


# ---------------------------------------------------------------------------------------------------- in a batch


def pad_graphs(graphs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Fields of studies -> fields of a Batch; rows of boxes are padded to the batch's most, regions with -1."""
    most = max(len(graph["box_regions"]) for graph in graphs)
    fields = {}
    for name, first in graphs[0].items():
        values = [graph[name] for graph in graphs]
        if name == "region_labels":
            fields[name] = torch.stack(values)
            continue
        padded = first.new_full((len(graphs), most, *first.shape[1:]), -1 if name == "box_regions" else 0)
        for row, value in enumerate(values):
            padded[row, : len(value)] = value
        fields[name] = padded
    return fields


def graph_fields(graph: ImageGraph, boxes: np.ndarray, *, whole: bool) -> dict[str, torch.Tensor]:
    """Fields of one study: boxes float32 [N, 4] in pixels of its image tensor, and with `whole` what the report says."""
    fields = {"boxes": torch.tensor(boxes, dtype=torch.float32), "box_regions": torch.from_numpy(graph.regions)}
    if whole:
        names = {"box_chosen": "spoken", "box_abnormal": "abnormal", "region_labels": "region_labels"}
        fields |= {name: torch.from_numpy(getattr(graph, theirs)) for name, theirs in names.items()}
        fields["attributes"] = torch.from_numpy(graph.attributes)
    return fields
