"""Build the scene graphs of a data set: boxes by an atlas or a detector, attributes by rules over the reports or of a file.

    python -m knowledge.build_scene_graphs --dataset_name iu_xray                                   atlas and rules
    python -m knowledge.build_scene_graphs --dataset_name iu_xray --boxes detector --detector F.pt
    python -m knowledge.build_scene_graphs --dataset_name mimic_cxr --attributes imagenome.jsonl --boxes detector \\
        --detector F.pt --boxes_for val test                        the file's own boxes in training, found ones elsewhere
    python -m knowledge.build_scene_graphs --dataset_name iu_xray --show CXR1000_IM-0003
    python -m knowledge.build_scene_graphs --out rules.jsonl --agreement truth.jsonl

Writes <knowledge_dir>/scene_graphs.jsonl and its manifest: the first image of every study of all splits. The list of
attributes is counted in training reports alone. `--agreement` compares --out with another file and notes the figures in
its manifest.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.images import open_image, reading_of
from data.scene_graphs import layout_of, manifest_of, read_rows, read_scene_graphs, write_scene_graphs
from data.studies import SPLITS, Study, check_studies, read_annotation, without_broken
from knowledge.classifier.data import image_hash
from knowledge.command import DATA, out, read, report_cleaning
from knowledge.region_boxes import BoxFinder, boxes_of, drawn, source_of
from modules.artefact import built_already, manifest_path, sha256, write_json
from modules.errors import InputError, Problems, entry
from modules.flags import Flag, natural, positive_int
from modules.precision import choose_device
from modules.progress import tracked
from modules.text.region_rules import VERSION, read_gains, read_regions
from modules.text.regions import REGIONS

FORMAT = 1  # raise it when the same inputs give another file
SHARED = (*DATA, "knowledge_dir", "device")
# fmt: off
OWN = (
    Flag("scene graphs", "boxes", str, "atlas", "by an atlas, by a detector, or those of the file --attributes", choices=("atlas", "detector", "keep")),
    Flag("scene graphs", "boxes_for", str, SPLITS, "splits whose boxes are found anew; the others keep those of the file --attributes", choices=SPLITS, nargs="+"),
    Flag("scene graphs", "atlas", str, None, "atlas of `knowledge.region_boxes fit` [the shipped one, set by hand]"),
    Flag("scene graphs", "detector", str, None, "detector of knowledge.train_region_detector [<knowledge_dir>/region_detector.pt]", file="region_detector.pt"),
    Flag("scene graphs", "attributes", str, "rules", "rules, none (boxes alone) or a file of scene graphs; miniature: its truth"),
    Flag("scene graphs", "layout", str, None, "take this file's lists of attributes instead of counting: for another data set's model"),
    Flag("scene graphs", "min_attribute_count", positive_int, 5, "an attribute of a region counts when training reports have it this often"),
    Flag("scene graphs", "overlay", natural, 0, "also draw the boxes of this many images, into <out>.overlay/"),
    Flag("scene graphs", "show", str, None, "study: print what the rules read in its report, and leave"),
    Flag("scene graphs", "agreement", str, None, "compare --out with this file of scene graphs, and leave"),
    *out("scene_graphs.jsonl", "file (.gz: compressed)"),
)
# fmt: on
PRESETS = {"miniature": {"boxes": "detector"}, "mimic_cxr": {"image_check": "quick"}}


def read_flags(argv) -> argparse.Namespace:
    """Typed flags over the data set's preset over the defaults; the miniature set's attributes are its own truth."""
    args = read(argv, "build_scene_graphs", __doc__, SHARED, OWN, PRESETS)
    if args.dataset_name == "miniature" and "attributes" not in args.typed:
        args.attributes = str(Path(args.data_dir) / "scene_graphs.jsonl")
    return args


# ----------------------------------------------------------------------------------------------------- building


def open_studies(args) -> list[Study]:
    """All usable studies of the annotation. InputError lists the broken ones."""
    problems = Problems()
    listed = read_annotation(args.ann_path, args.limit)
    settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": 1, "depth": args.image_check}
    broken = check_studies(listed, args.image_dir, **settings)
    studies = without_broken(listed, broken, skip=args.skip_broken, problems=problems)
    problems.stop_if_any()
    return [study for rows in studies.values() for study in rows]


def said_by(args, studies: list[Study]) -> tuple[dict[str, list[dict]] | None, dict]:
    """({image: regions of a file of scene graphs} or None, what the manifest says of it) of --attributes."""
    if args.attributes in ("rules", "none"):
        return None, {"kind": args.attributes} | ({"version": VERSION} if args.attributes == "rules" else {})
    manifest = manifest_of(args.attributes)
    read_scene_graphs(args.attributes)  # says what is wrong with it
    images = {study.images[0] for study in studies}
    rows = {row["image"]: row["regions"] for row in read_rows(args.attributes) if row["image"] in images}
    missing = [study.images[0] for study in studies if study.images[0] not in rows]
    if missing:
        raise InputError(f"--attributes {args.attributes} has no graph of {len(missing)} images, such as {missing[:3]}")
    kind = manifest["attributes_from"]
    return rows, {"kind": kind, "path": str(args.attributes), "sha256": sha256(args.attributes)}


def merged(found: dict[str, dict], names: list[str], boxes: list[list[float]], scores: list[float], *, read: bool) -> list[dict]:
    """Regions of a line: boxes that were found, beside what is said of their regions ({region: abnormal, attributes})."""
    nothing = {"abnormal": False, "attributes": []}
    pairs = [*zip(names, boxes, scores), *((name, None, 1.0) for name in found if name not in names)]
    rows = []
    for name, box, score in pairs:
        said = {"spoken": name in found, **found.get(name, nothing)} if read else {}
        rows.append({"name": name, "box": box, "score": score, **said})
    return rows


def said_in(regions: list[dict]) -> dict[str, dict]:
    """{region: abnormal, attributes} of the regions of a line that the report speaks of."""
    return {row["name"]: {"abnormal": row["abnormal"], "attributes": row["attributes"]} for row in regions if row.get("spoken")}


def make_rows(args, studies: list[Study], file: dict[str, list[dict]] | None, finder: BoxFinder | None) -> Iterator[dict]:
    """A line per study, in the annotation's order."""
    anew = [study for study in studies if finder is not None and study.split in args.boxes_for]
    paths = [f"{args.image_dir}/{study.images[0]}" for study in anew]
    found = boxes_of(paths, finder, reading_of(args)) if finder else iter(())
    renewed = {study.images[0] for study in anew}
    for study in tracked(studies, desc="scene graphs"):
        image = study.images[0]
        if image in renewed or file is None:
            names, boxes, scores = next(found)
            said = said_in(file[image]) if file else read_regions(study.report) if args.attributes == "rules" else {}
            regions = merged(said, names, boxes, scores, read=args.attributes != "none")
        else:
            regions = file[image]
        yield {"study": study.id, "image": image, "split": study.split, "regions": regions}


def build(args) -> None:
    """Write --out, or keep it where it was made from the same inputs."""
    path = Path(args.out)
    studies = open_studies(args)
    file, attributes_from = said_by(args, studies)
    if file is None and (args.boxes == "keep" or set(args.boxes_for) != set(SPLITS)):
        raise InputError("--boxes keep and --boxes_for take boxes from a file of scene graphs: name it with --attributes FILE")
    finder = None
    boxes_from: dict
    if args.boxes == "keep":
        boxes_from = {"kind": manifest_of(args.attributes)["boxes_from"], "path": str(args.attributes)}
    else:
        source, boxes_from = source_of(args.boxes, args.atlas, args.detector)
        finder = BoxFinder(source, choose_device(args.device))
        if set(args.boxes_for) != set(SPLITS):
            boxes_from = {**boxes_from, "splits": list(args.boxes_for)}
    layout = layout_of(args.layout) if args.layout else None
    splits = {split: [study for study in studies if study.split == split] for split in SPLITS}
    inputs = {
        "format": FORMAT, "annotation_sha256": sha256(args.ann_path), "attributes": attributes_from, "boxes": boxes_from,
        "least": args.min_attribute_count, "layout": layout.state() if layout else None,
        "images_sha256": {split: image_hash(rows, args.image_dir) + reading_of(args).name for split, rows in splits.items()},
    }  # fmt: skip
    if not args.overwrite and built_already(path, inputs, keep=args.keep, fixed=("format", "annotation_sha256", "images_sha256")):
        return
    start = time.perf_counter()
    manifest = write_scene_graphs(
        path, make_rows(args, studies, file, finder), least=args.min_attribute_count, inputs=inputs, boxes_from=boxes_from,
        attributes_from=attributes_from, layout=layout, data_set=args.dataset_name, command=" ".join(sys.argv),
    )  # fmt: skip
    print(summary(path, manifest))
    if finder and finder.atlas:
        print(f"  thorax not found in {finder.thorax_missed} of {len(studies)} images: the usual one was taken there")
    print(f"  {time.perf_counter() - start:.1f} s")


def summary(out: Path, manifest: dict) -> str:
    """Counts of a file for people: images, share without any region, attributes, the commonest of them."""
    counted, lines = manifest["counted"], []
    images = sum(row["images"] for row in counted["splits"].values())
    silent = sum(row["without_region"] for row in counted["splits"].values())
    heads = [len(names) for names in manifest["attributes"].values()]
    lines.append(f"{out}: {images:,} images, boxes from {manifest['boxes_from']}, attributes from {manifest['attributes_from']}")
    lines.append(f"  no region spoken of: {silent:,} images ({silent / max(images, 1):.1%})")
    lines.append(f"  attributes: {sum(heads)} in {sum(map(bool, heads))} regions, at most {max(heads)} in one; "
                 f"{counted['attributes_written']:,} written, {counted['rare_attributes_left_out']:,} rarer ones not")
    lines += [f"  {count:7,d}  {name}" for name, count in list(manifest["commonest"].items())[:15]]
    return "\n".join(lines)


def write_overlays(args) -> None:
    """Draw the boxes of --overlay images of --out, spread over the file."""
    rows = list(read_rows(args.out))
    folder = Path(f"{args.out}.overlay")
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows[:: max(1, len(rows) // args.overlay)][: args.overlay]:
        boxes = {region["name"]: region["box"] for region in row["regions"] if region["box"]}
        drawn(open_image(f"{args.image_dir}/{row['image']}", reading_of(args)), boxes).save(folder / f"{row['study']}.png")
    print(f"{folder}: images with their boxes; they show the data set and fall under its licence")


# ------------------------------------------------------------------------------------------- looking and comparing


def show(args) -> str:
    """The clauses of a report and what the rules gave for each."""
    studies = [study for rows in read_annotation(args.ann_path).values() for study in rows if study.id == args.show]
    if not studies:
        raise InputError(f"--show {args.show}: no such study in {args.ann_path}")
    gains: dict[str, list] = {}
    for gain in read_gains(studies[0].report):
        gains.setdefault(gain.clause, []).append(gain)
    lines = [f"{studies[0].id} ({studies[0].split}): {studies[0].report}"]
    for clause, found in gains.items():
        lines.append(f"\n{clause}")
        by_name: dict[tuple, list[str]] = {}
        for gain in found:
            by_name.setdefault((gain.attribute, gain.words), []).append(gain.region)
        lines += [f"  {name:32s} {', '.join(regions)}   <- {words}" for (name, words), regions in by_name.items()]
    lines.append("\nsummed up:")
    lines += [f"  {name:24s} {'abnormal' if row['abnormal'] else '        '} {', '.join(row['attributes'])}"
              for name, row in read_regions(studies[0].report).items()]  # fmt: skip
    return "\n".join(lines)


def compare(ours: Iterable[dict], theirs: Iterable[dict]) -> dict:
    """Precision and recall of `ours` against `theirs`, over images that both have.

    Out: {"images", "regions": {region: [precision, recall, count]}, "attributes": {name: ...}, "in_region": {region: ...
    its attributes}, "all_regions", "all_attributes", "abnormal"}; count is theirs. InputError: no common image.
    """
    truth = {row["image"]: said_in(row["regions"]) for row in theirs}
    counts: dict[str, Counter] = {part: Counter() for part in ("regions", "attributes", "in_region", "all")}
    images = 0
    for row in ours:
        if row["image"] not in truth:
            continue
        images += 1
        mine, wanted = said_in(row["regions"]), truth[row["image"]]
        _count(counts["regions"], set(mine), set(wanted), str)
        _count(counts["all"], set(mine), set(wanted), lambda _: "all_regions")
        a, b = ({(name, a) for name, found in side.items() for a in found["attributes"]} for side in (mine, wanted))
        _count(counts["attributes"], a, b, lambda pair: pair[1])
        _count(counts["in_region"], a, b, lambda pair: pair[0])
        _count(counts["all"], a, b, lambda _: "all_attributes")
        x, y = ({name for name, found in side.items() if found["abnormal"]} for side in (mine, wanted))
        _count(counts["all"], x, y, lambda _: "abnormal")
    if not images:
        raise InputError("--agreement: the two files have no image in common")
    parts = {part: _rates(counts[part]) for part in ("regions", "attributes", "in_region")}
    return {"images": images, **parts, **_rates(counts["all"])}


def _count(counter: Counter, mine: set, wanted: set, key) -> None:
    """Add hits, false ones and missed ones of two sets, by `key` of their members."""
    counter.update((key(one), "hit") for one in mine & wanted)
    counter.update((key(one), "false") for one in mine - wanted)
    counter.update((key(one), "missed") for one in wanted - mine)


def _rates(counter: Counter) -> dict[str, list]:
    """{name: [precision or None, recall or None, count]} from the counts of `_count`."""
    rates = {}
    for name in sorted({name for name, _ in counter}):
        hit, false, missed = (counter[name, what] for what in ("hit", "false", "missed"))
        found, there = hit + false, hit + missed
        rates[name] = [round(hit / found, 4) if found else None, round(hit / there, 4) if there else None, there]
    return rates


def agreement(args) -> None:
    """Print how --out agrees with --agreement, and note it in the manifest of --out."""
    manifest = manifest_of(args.out)
    manifest_of(args.agreement)
    result = compare(read_rows(args.out), read_rows(args.agreement))
    number = lambda value: "    -" if value is None else f"{value:5.3f}"  # noqa: E731
    print(f"{args.out} against {args.agreement}, {result['images']:,} images: precision, recall, count there")
    names = [name for name in REGIONS if name in result["regions"]]
    for name in names:
        rates = [*result["regions"][name], *result["in_region"].get(name, [None, None, 0])]
        print(f"  {name:24s} {number(rates[0])} {number(rates[1])} {rates[2]:6d}   its attributes "
              f"{number(rates[3])} {number(rates[4])} {rates[5]:6d}")  # fmt: skip
    for name, (precision, recall, count) in result["attributes"].items():
        print(f"  {name:32s} {number(precision)} {number(recall)} {count:6d}")
    for name in ("all_regions", "all_attributes", "abnormal"):
        if name in result:
            precision, recall, count = result[name]
            print(f"  {name.replace('_', ' '):24s} precision {number(precision)}, recall {number(recall)} of {count}")
    with_what = {"file": str(args.agreement), "sha256": sha256(args.agreement)}
    write_json(manifest_path(args.out), manifest | {"agreement": with_what | result})


@entry
def main(argv: list[str] | None = None) -> None:
    args = read_flags(argv)
    if args.show:
        print(show(args))
        return
    if args.agreement:
        agreement(args)
        return
    build(args)
    if args.overlay:
        write_overlays(args)


if __name__ == "__main__":
    main()
