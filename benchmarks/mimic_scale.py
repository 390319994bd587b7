"""Start-up and memory at the size of MIMIC-CXR: 270,790 training studies, 2,130 for validation, 3,858 for testing.

    python -m benchmarks.mimic_scale --folder /tmp/mimic_scale [--out results/mimic_scale.json]

The annotation is generated: reports of the miniature data set's sentences, lengthened to MIMIC's mean of about 60 words and
salted with rare words, paths as MIMIC's, all to a few small images. Measured are the steps that main_train.py takes
before its first batch, the first time and the second, and what a worker process of the loader holds.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import report
from data.batches import make_loader
from data.miniature_set.text import sample
from data.prepare import make_dataset, open_data
from models import SYSTEMS
from modules.errors import Problems
from modules.flags import parse
from modules.scoring.predictions import R2GenReferences

SIZES = {"train": 270_790, "val": 2_130, "test": 3_858}
IMAGES = 1_000


def generate(folder: Path) -> None:
    """The annotation and its images, unless they are there."""
    if (folder / "annotation.json").is_file():
        return
    draw = random.Random(0)
    texts = [sample(7, number).report for number in range(2_000)]
    rare = [f"{a}{b}{c}" for a in ("peri", "sub", "para", "retro") for b in ("hil", "card", "pleur", "bronch", "vert") for c in
            ("ar", "iac", "al", "ic", "itis", "osis", "ation", "ated", "ally", "ous")]  # fmt: skip
    rare += [f"{word}{number}" for word in rare for number in range(40)]
    images = folder / "images" / "p10"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.jpg")
    content = {}
    for split, count in SIZES.items():
        content[split] = []
        for number in range(count):
            said = " ".join(draw.sample(texts, 2)) + f" {rare[int(len(rare) * draw.random() ** 3)]} is noted."
            name = f"{draw.getrandbits(160):040x}"
            path = f"p10/{number % IMAGES}.jpg"
            content[split].append({"id": name, "study_id": number, "subject_id": number, "report": said, "image_path": [path]})
    (folder / "annotation.json").write_text(json.dumps(content), encoding="utf-8")


def memory(pid: int | str = "self") -> dict[str, float]:
    """GiB of a process: resident, and its own alone (not shared with its parent)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    facts = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
    return {"resident": facts["Rss"], "own": facts["Private_Dirty"] + facts["Private_Clean"]}


def start_up(args) -> tuple[dict[str, float], object]:
    """Seconds of each step of main_train.py up to the datasets, and the training set."""
    taken, mark = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        taken[name] = time.perf_counter() - mark
        mark = time.perf_counter()

    kind, problems = SYSTEMS[args.model], Problems()
    data = open_data(args, {"train": set(), "val": set()}, problems, training=True)
    problems.stop_if_any()
    lap("annotation, checks, words of the reports")
    tokenizer = kind.make_tokenizer(data.corpora["train"], args)
    lap("vocabulary")
    training = make_dataset(args, data, "train", {"images", "tokens"}, tokenizer, training=True)
    make_dataset(args, data, "val", {"images"}, tokenizer, training=False)
    lap("tokens")
    R2GenReferences(data.corpora["train"], "mimic_cxr")
    lap("words of protocol r2gen")
    return taken, training


def worker_memory(training) -> tuple[float, float]:
    """Largest GiB (resident, own) of two loader workers after some hundreds of batches."""
    loader = make_loader(training, batch_size=32, num_workers=2, shuffle=True)
    batches = iter(loader)
    for _ in range(200):
        next(batches)
    found = [memory(worker.pid) for worker in batches._workers]
    return max(row["resident"] for row in found), max(row["own"] for row in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="where the generated data lie (350 MB)")
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args()
    folder = Path(args.folder)
    generate(folder)
    words = ["--dataset_name", "mimic_cxr", "--data_dir", str(folder), "--knowledge_dir", str(folder / "knowledge"),
             "--no-iek", "--no-adm", "--no-gid", "--image_size", "64"]  # fmt: skip
    flags = parse(words, "train", systems=SYSTEMS)
    rows = []
    for turn in ("first time", "again"):
        taken, training = start_up(flags)
        rows += [(f"{turn}: {name}", seconds, "s") for name, seconds in taken.items()]
        rows.append((f"{turn}: together", sum(taken.values()), "s"))
    rows.append(("main process, resident", memory(os.getpid())["resident"], "GiB"))
    resident, own = worker_memory(training)
    rows += [("a worker, resident (shared pages counted)", resident, "GiB"), ("a worker, its own", own, "GiB")]
    report("start-up at MIMIC-CXR's size", rows, args, torch.device("cpu"))


if __name__ == "__main__":
    main()
