"""Chest ImaGenome to scene graphs: the official layout, or the files that SGRRG's authors derived from it.

    python -m data.chest_imagenome --imagenome DIR --mimic DIR --out scene_graphs.jsonl.gz
    python -m data.chest_imagenome --authors DIR --out scene_graphs.jsonl.gz

--imagenome: the folder of silver_dataset (its scene_graph.zip may stay packed) of Chest ImaGenome 1.0.0 (PhysioNet,
credentialed). --mimic: the folder of the MIMIC-CXR annotation.json whose images are wanted; an image path ends in
<dicom_id>.jpg, as in MIMIC-CXR-JPG. --authors: their datasets/cxr_gnome. Neither was seen by us; the layouts are those of
public descriptions, and whatever does not fit them is told with file and field.
Attributes are ImaGenome's `category|yes or no|name`; a region is abnormal when a phrase of it has `nlp|yes|abnormal`.
"""

import argparse
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
from PIL import Image, UnidentifiedImageError

from data.scene_graphs import write_scene_graphs
from data.studies import SPLITS, Study, read_annotation
from modules.artefact import built_already, read_json, sha256
from modules.errors import InputError, entry
from modules.progress import tracked
from modules.text.regions import REGIONS, GraphLayout

FORMAT = 1  # raise it when the same files give another result
ABNORMAL = "nlp|yes|abnormal"
SUFFIX = "_SceneGraph.json"
CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
AUTHORS = {"train": "box_train.json", "val": "box_val_dino_th05.json", "test": "box_test_dino_th05.json"}


# ------------------------------------------------------------------------------------------- the official layout


def opener_of(folder: Path) -> tuple[Callable[[str], bytes], set[str]]:
    """(a function from dicom_id to the bytes of its graph, dicom_ids that have one) below an ImaGenome folder."""
    base = next((place for place in (folder / "silver_dataset", folder) if place.is_dir()), folder)
    graphs, packed = base / "scene_graph", base / "scene_graph.zip"
    if graphs.is_dir():
        names = {path.name.removesuffix(SUFFIX) for path in graphs.glob(f"*{SUFFIX}")}
        return lambda name: (graphs / f"{name}{SUFFIX}").read_bytes(), names
    if packed.is_file():
        archive = zipfile.ZipFile(packed)
        inside = {Path(name).name.removesuffix(SUFFIX): name for name in archive.namelist() if name.endswith(SUFFIX)}
        return lambda name: archive.read(inside[name]), set(inside)
    raise InputError(f"--imagenome {folder}: neither silver_dataset/scene_graph/ nor scene_graph.zip lies there")


def read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """{dicom_id: (columns, rows)} of MIMIC-CXR-JPG's metadata table."""
    try:
        table = pandas.read_csv(path, usecols=["dicom_id", "Rows", "Columns"])
    except (OSError, ValueError) as error:
        raise InputError(f"--metadata {path} cannot be read: {error}") from error
    return {name: (int(c), int(r)) for name, r, c in zip(table["dicom_id"], table["Rows"], table["Columns"])}


def official_regions(graph: dict, size: tuple[int, int], where: str) -> list[dict]:
    """Regions of one graph. size: (width, height) of the original image. InputError names the field that is missing."""
    try:
        said = {row["bbox_name"]: row for row in graph["attributes"]}
        objects = [row for row in graph["objects"] if row["bbox_name"] in REGIONS]
        boxes = {row["bbox_name"]: [float(row[corner]) for corner in CORNERS] for row in objects}
        regions = []
        for name in REGIONS:
            phrases = said.get(name, {}).get("attributes", [])
            names = list(dict.fromkeys(name for phrase in phrases for name in phrase))
            box = boxes.get(name)
            if box is not None:
                box = [value / size[at % 2] for at, value in enumerate(box)]
            if box is not None or name in said:
                regions.append({"name": name, "box": box, "score": 1.0, "spoken": name in said,
                                "abnormal": ABNORMAL in names, "attributes": names})  # fmt: skip
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where} is not a scene graph of Chest ImaGenome 1.0.0: {error!r}") from error
    return regions


def size_of(study: Study, images: Path, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of a study's first image: of the metadata, else of the image file. InputError: neither is there."""
    if (dicom := Path(study.images[0]).stem) in sizes:
        return sizes[dicom]
    try:
        with Image.open(images / study.images[0]) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"the size of image {study.images[0]} is not known ({error}): give MIMIC-CXR-JPG's table with "
                         "--metadata mimic-cxr-2.0.0-metadata.csv.gz") from error  # fmt: skip


def official_rows(args, studies: list[Study], left_out: Counter) -> Iterator[dict]:
    """A line per image that has a graph; the others are counted."""
    read, known = opener_of(Path(args.imagenome))
    sizes = read_sizes(Path(args.metadata)) if args.metadata else {}
    for study in tracked(studies, desc="Chest ImaGenome"):
        dicom = Path(study.images[0]).stem
        if dicom not in known:
            left_out[study.split] += 1
            continue
        where = f"{dicom}{SUFFIX}"
        try:
            graph = json.loads(read(dicom))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{where} cannot be read: {error}") from error
        if not isinstance(graph, dict):
            raise InputError(f"{where} is not a scene graph of Chest ImaGenome 1.0.0: no object at the top")
        regions = official_regions(graph, size_of(study, Path(args.mimic) / "images", sizes), where)
        yield {"study": study.id, "image": study.images[0], "split": study.split, "regions": regions}


# ---------------------------------------------------------------------------------------------- the authors' files


def read_object(path: Path) -> dict:
    """A JSON object of the authors' folder. InputError: missing or broken."""
    content = read_json(path, "--authors names its folder")
    if not isinstance(content, dict):
        raise InputError(f"--authors: {path} holds no object")
    return content


def authors_names(labels: dict) -> dict[str, list[str]]:
    """{region: names of its attributes in the order of the head} of their attribute_info; numbers where it has none."""
    info = labels.get("attribute_info")
    if not isinstance(info, dict) or not set(REGIONS) <= set(info):
        raise InputError("--authors: attribute_info of attribute_anns_id_mhead_ds.json does not name the attributes of the "
                         f"{len(REGIONS)} regions")  # fmt: skip
    return {region: list(info[region]) for region in REGIONS}


def authors_boxes(content: dict, path: Path) -> tuple[dict[str, list[tuple[str, list[float], float]]], dict[str, str]]:
    """({image id: (region, box in fractions, score)}, {image id: file name}) of one of their COCO files."""
    try:
        categories = [row["name"] for row in content["categories"]]
        if tuple(categories) != REGIONS:
            raise InputError(f"--authors: {path} has other categories, or in another order, than the {len(REGIONS)} regions")
        found: dict[str, list] = {}
        for image in content["images"]:
            rows = []
            for place in image["ann_ids"]:  # positions in `annotations`
                row = content["annotations"][place]
                x, y, w, h = row["bbox"]
                inside = x < image["width"] and y < image["height"] and x + w > 0 and y + h > 0
                if inside and w >= 1 and h >= 1:
                    wide, high = image["width"], image["height"]
                    box = [x / wide, y / high, (x + w) / wide, (y + h) / high]
                    rows.append((REGIONS[row["category_id"]], box, float(row.get("score", 1.0))))
            found[str(image["id"])] = rows
        return found, {str(image["id"]): image["file_name"] for image in content["images"]}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--authors: {path} is not the COCO file that is expected: {error!r}") from error


def authors_rows(folder: Path, labels: dict, names: dict[str, list[str]]) -> Iterator[dict]:
    """A line per image of their three splits; boxes as they lie there, attributes where the file has them."""
    for split in SPLITS:
        path = folder / "annotations" / AUTHORS[split]
        found, files = authors_boxes(read_object(path), path)
        said_of = labels["annotations"].get(split, {})
        for image, boxes in found.items():
            said = authors_said(said_of.get(image), names, f"{split} {image}")
            rows = [{"name": name, "box": box, "score": score, **said.get(name, SILENT)} for name, box, score in boxes]
            seen = {name for name, _, _ in boxes}
            rows += [{"name": name, "box": None, "score": 1.0, **said[name]} for name in said if name not in seen]
            yield {"study": image, "image": files[image], "split": split, "regions": rows}


SILENT = {"spoken": False, "abnormal": False, "attributes": []}


def authors_said(entry: dict | None, names: dict[str, list[str]], where: str) -> dict[str, dict]:
    """{region: spoken, abnormal, attributes} of an image; nothing where their file leaves it out."""
    if entry is None:
        return {}
    try:
        head = entry["region_label"]
        said = {}
        for number, abnormal in zip(head["region_label"], head["region_abnormal_labels"], strict=True):
            region = REGIONS[number]
            numbers = entry.get(region, {}).get("att_labels", [])
            attributes = [names[region][place] for place in numbers]
            said[region] = {"spoken": True, "abnormal": bool(abnormal), "attributes": attributes}
        return said
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"--authors: attribute_anns_id_mhead_ds.json, {where}: {error!r}") from error


# ------------------------------------------------------------------------------------------------------ the command


@entry
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.chest_imagenome", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--imagenome", help="folder of Chest ImaGenome 1.0.0")
    source.add_argument("--authors", help="SGRRG's datasets/cxr_gnome")
    parser.add_argument("--mimic", help="with --imagenome: folder of MIMIC-CXR's annotation.json and images/")
    parser.add_argument("--metadata", help="with --imagenome: mimic-cxr-2.0.0-metadata.csv.gz, so that no image is opened")
    parser.add_argument("--min_attribute_count", type=int, default=5, help="least count of an attribute in training reports")
    parser.add_argument("--out", required=True, help="file to write, compressed when it ends in .gz")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that was built from other inputs")
    args = parser.parse_args(argv)
    (build_official if args.imagenome else build_authors)(args)


def build_official(args) -> None:
    """--imagenome: the images of an annotation that have a graph."""
    if not args.mimic:
        raise InputError("--imagenome needs --mimic, the folder of MIMIC-CXR's annotation.json")
    annotation = Path(args.mimic) / "annotation.json"
    studies = [study for rows in read_annotation(annotation).values() for study in rows if study.images]
    inputs = {"format": FORMAT, "annotation_sha256": sha256(annotation), "imagenome": str(args.imagenome),
              "graphs": len(opener_of(Path(args.imagenome))[1]), "least": args.min_attribute_count}  # fmt: skip
    if not args.overwrite and built_already(Path(args.out), inputs):
        return
    left_out: Counter = Counter()
    manifest = write_scene_graphs(
        args.out, official_rows(args, studies, left_out), least=args.min_attribute_count, inputs=inputs,
        boxes_from={"kind": "imagenome"}, attributes_from={"kind": "imagenome"}, data_set="mimic_cxr",
        command=" ".join(sys.argv),
    )  # fmt: skip
    tell(args.out, manifest)
    print(f"  without a graph (lateral views, and what ImaGenome leaves out): {dict(left_out)}")


def build_authors(args) -> None:
    """--authors: their three splits, with the attribute lists of their file."""
    folder = Path(args.authors)
    path = folder / "annotations" / "attribute_anns_id_mhead_ds.json"
    labels = read_object(path)
    names = authors_names(labels)
    if not isinstance(labels.get("annotations"), dict):
        raise InputError(f"--authors: {path} has no annotations")
    inputs = {"format": FORMAT, "attributes_sha256": sha256(path)}
    inputs |= {split: sha256(folder / "annotations" / name) for split, name in AUTHORS.items()
               if (folder / "annotations" / name).is_file()}  # fmt: skip
    if not args.overwrite and built_already(Path(args.out), inputs):
        return
    layout = GraphLayout(REGIONS, tuple(tuple(names[region]) for region in REGIONS))
    manifest = write_scene_graphs(
        args.out, authors_rows(folder, labels, names), least=1, inputs=inputs, layout=layout, data_set="cxr_gnome",
        boxes_from={"kind": "imagenome", "val and test": "the authors' detector"}, attributes_from={"kind": "imagenome"},
        command=" ".join(sys.argv),
    )  # fmt: skip
    tell(args.out, manifest)


def tell(out, manifest: dict) -> None:
    """Counts of what was written."""
    heads = [len(names) for names in manifest["attributes"].values()]
    splits = ", ".join(f"{split} {row['images']:,}" for split, row in manifest["counted"]["splits"].items())
    counts = f"{manifest['counted']['boxes']:,} boxes, {sum(heads)} attributes, at most {max(heads)} in one region"
    print(f"{out}: {splits} images, {counts}")


if __name__ == "__main__":
    main()
