"""The diagnoses of a data set by a DiagnosisBot, made once and kept: a study's diagnosis depends on its image alone."""

import csv
import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from data.images import PLAIN, Reading, diagnosis_tensor, open_image, reading_of, square
from data.scene_graphs import box_source
from data.studies import Study
from modules import processes
from modules.artefact import checksum, write_atomic
from modules.nets.adm import SIDE
from modules.nets.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.progress import tracked


class FirstImages(Dataset):
    """The first image of each study as the DiagnosisBot sees it: [3, S, S]."""

    def __init__(self, studies: list[Study], image_dir, side: int, reading: Reading = PLAIN) -> None:
        self.studies, self.image_dir, self.side, self.reading = studies, image_dir, side, reading

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, place: int) -> torch.Tensor:
        image = open_image(f"{self.image_dir}/{self.studies[place].images[0]}", self.reading)
        return diagnosis_tensor(square(image, SIDE), self.side)


@torch.no_grad()
def probabilities(
    bot: DiagnosisBot,
    studies,
    image_dir,
    *,
    device,
    num_workers=0,
    batch_size=32,
    progress=True,
    reading: Reading = PLAIN,
):
    """{study id: K probabilities} of the first images, float."""
    bot = bot.to(device).eval()
    loader = DataLoader(
        FirstImages(studies, image_dir, bot.side, reading), batch_size=batch_size, num_workers=num_workers
    )
    rows = []
    for images in tracked(loader, desc="diagnosing", hidden=not progress):
        rows += bot(images.to(device)).float().cpu().tolist()
    return {study.id: row for study, row in zip(studies, rows)}


def diagnosis_table(bot: DiagnosisBot, studies, image_dir, **settings):
    """{study id: K bits} by the bot's thresholds; settings as in `kept_probabilities`."""
    found = kept_probabilities(bot, studies, image_dir, **settings)
    return {name: bits_of(row, bot.thresholds.tolist()) for name, row in found.items()}


def bits_of(probabilities: list[float], thresholds: list[float]) -> list[int]:
    """K probabilities -> K bits."""
    return [int(p > t) for p, t in zip(probabilities, thresholds)]


def kept_probabilities(
    bot: DiagnosisBot, studies, image_dir, *, folder, device, num_workers=0, progress=True, reading: Reading = PLAIN
):
    """{study id: K probabilities}, from the cache in `folder` where it has the study, the rest made and added; None: no cache.

    The cache belongs to the bot's weights; a row counts only for the same image file, of the same size and date, and
    where its checksum agrees.
    """
    path = folder and Path(folder) / f"diagnosis_{bot.fingerprint()}{reading.name}.csv"
    known = _read_cache(path, bot.labels) if path else {}
    marks = {study.id: _mark(study, image_dir) for study in studies}
    missing = [study for study in studies if known.get(study.id, (None,))[0] != marks[study.id]]
    if missing:
        settings = {"device": device, "num_workers": num_workers, "progress": progress, "reading": reading}
        made = probabilities(bot, missing, image_dir, **settings)
        known |= {name: (marks[name], row) for name, row in made.items()}
    if missing and path:
        write_atomic(path, lambda temporary: _write_cache(temporary, known, bot.labels))
    return {study.id: known[study.id][1] for study in studies}


def _mark(study: Study, image_dir) -> tuple[str, str, str]:
    """Which image a diagnosis was made of: path, bytes, date of change."""
    path = os.path.abspath(f"{image_dir}/{study.images[0]}")
    facts = os.stat(path)
    return path, str(facts.st_size), str(facts.st_mtime_ns)


def _header(labels) -> list[str]:
    return ["checksum", "id", "image", "bytes", "changed_ns", *(f"p({label})" for label in labels)]


def _write_cache(path: Path, known: dict, labels) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_header(labels))
        for name, (mark, values) in known.items():
            row = [name, *mark, *map(repr, values)]
            writer.writerow([checksum("\0".join(row)), *row])


def _read_cache(path: Path, labels) -> dict:
    """{study id: (mark, probabilities)} of the sound rows; damaged ones, and a file of another layout, are diagnosed anew."""
    known: dict = {}
    if not path.is_file():
        return known
    header, damaged = _header(labels), 0
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        try:
            for row in csv.reader(file):
                if len(row) == len(header) and row[0] == str(checksum("\0".join(row[1:]))):
                    known[row[1]] = tuple(row[2:5]), [float(value) for value in row[5:]]
                else:
                    damaged += row != header
        except csv.Error:
            damaged += 1
    if damaged:
        print(f"{path}: {damaged} rows are damaged, diagnosing their studies again")
    return known


def diagnose_studies(args, data, splits, device, parts: dict | None = None) -> dict | None:
    """Fill data.tables["diagnosis"] for the studies of `splits`: from --diagnosis_path, else by the DiagnosisBot of a
    checkpoint or of the flags. Returns {"labels", "thresholds", "probabilities": {id: K}} of the bot; None where it was not
    asked."""
    studies = [study for split in splits for study in data.studies[split]]
    if data.diagnosis is not None:
        data.tables["diagnosis"] = {study.id: data.diagnosis[study.id] for study in studies}
        return None
    bot = open_bot(args, parts)
    settings = {
        "folder": args.cache_dir,
        "device": device,
        "num_workers": args.num_workers,
        "reading": reading_of(args),
    }
    found = processes.from_first(lambda: kept_probabilities(bot, studies, args.image_dir, **settings))
    thresholds = bot.thresholds.tolist()
    data.tables["diagnosis"] = {name: bits_of(row, thresholds) for name, row in found.items()}
    return {"labels": list(bot.labels), "thresholds": thresholds, "probabilities": found}


def open_bot(args, parts: dict | None = None) -> DiagnosisBot:
    """The DiagnosisBot of a checkpoint's parts, or of --diagnosisbot where that was typed or there are no parts."""
    if parts and "diagnosisbot" in parts and "diagnosisbot" not in args.typed:
        return DiagnosisBot.from_state(parts["diagnosisbot"])
    return load_diagnosisbot(args.diagnosisbot)


def optional_parts(args, inputs: set[str]) -> dict:
    """What lets a checkpoint serve a new image, where the run has it: DiagnosisBot, ADM classifier, what finds its regions."""
    parts: dict[str, dict | None] = {}
    if "diagnosis" in inputs and not args.diagnosis_path:
        parts["diagnosisbot"] = load_diagnosisbot(args.diagnosisbot).state()
    if "masks" in inputs and Path(args.adm_classifier).is_file():
        parts["adm_classifier"] = load_diagnosisbot(args.adm_classifier, flag="--adm_classifier", side=SIDE).state()
    if "scene_graphs" in inputs:
        parts["region_boxes"] = box_source(args.scene_graphs)
    return parts
