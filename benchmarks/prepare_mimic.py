"""data.prepare_mimic on a made PhysioNet tree of MIMIC-CXR's size: 227,835 reports in a zip, tables of 377,110 images.

    python -m benchmarks.prepare_mimic --folder /tmp/physionet [--studies 227835] [--workers 2] [--out FILE]

Reports are drawn: headers and line breaks as in MIMIC-CXR, about 1.3 kB each, every tenth without findings. Measured are
seconds and memory of the command with one process and with --workers, and that both write the same file.
"""

import argparse
import json
import random
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pandas
import torch

from benchmarks.measure import report
from modules.artefact import ROOT, sha256
from modules.errors import InputError

STUDIES, ALL_IMAGES = 227_835, 377_110
SHARES = (("train", 222_758), ("validate", 1_808), ("test", 3_269))
IMAGES = ((1, 1130), (2, 952), (3, 237), (4, 27), (5, 1))  # (images, studies with as many) of the official test split
VIEWS = ("PA", "LATERAL", "AP", "LL", "")
_SENTENCES = tuple(
    f"{part} {state}." for part in ("The lungs", "The heart", "The mediastinum", "The pleural spaces", "The bones",
                                    "Both hila", "The upper abdomen", "A left-sided catheter")
    for state in ("appear as on the study before", "are of usual size and shape for ___ years", "show no acute change",
                  "were seen in two views and compared with ___", "have sharp and even borders")
)  # fmt: skip


def made_report(draw: random.Random, with_findings: bool) -> str:
    """A report with MIMIC-CXR's headers and line breaks."""
    parts = [("EXAMINATION", "CHEST (PA AND LAT)"), ("INDICATION", "History: ___ with cough."),
             ("COMPARISON", "___"), ("IMPRESSION", " ".join(draw.sample(_SENTENCES, 3)))]  # fmt: skip
    if with_findings:
        parts.insert(3, ("FINDINGS", " ".join(draw.sample(_SENTENCES, 14))))
    wrap = textwrap.TextWrapper(79, initial_indent=" ", subsequent_indent=" ")
    wrapped = ["\n".join(wrap.wrap(f"{name}:  {text}")) for name, text in parts]
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(wrapped) + "\n"


def make_tree(folder: Path, studies: int) -> dict[str, int]:
    """The reports' zip and the two tables, unless they are there; returns the rows that r2gen must have, by split."""
    known = folder / f"made_{studies}.json"
    if known.is_file():
        return json.loads(known.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    weights = [weight for _, weight in IMAGES]
    rows, metadata, expected = [], [], dict.fromkeys(("train", "val", "test"), 0)
    splits = [name for name, count in SHARES for _ in range(max(1, round(count * studies / STUDIES)))][:studies]
    counts = draw.choices([count for count, _ in IMAGES], weights, k=len(splits))
    while sum(counts) < round(ALL_IMAGES * len(splits) / STUDIES):
        counts[draw.randrange(len(counts))] += 1
    subject, left = 10_000_000, 0
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, split in enumerate(splits):
            if not left or split != splits[number - 1]:  # a patient's studies are of one split
                subject, left = subject + draw.randint(1, 20), draw.choice((1, 2, 3, 8))
            left -= 1
            study, with_findings = 60_000_000 + 37 * number, number % 10 != 0
            path = f"files/p{str(subject)[:2]}/p{subject}/s{study}.txt"
            archive.writestr(path, made_report(draw, with_findings))
            expected["val" if split == "validate" else split] += counts[number] * with_findings
            for place in range(counts[number]):
                dicom = "-".join(f"{draw.getrandbits(32):08x}" for _ in range(5))
                rows.append((dicom, study, subject, split))
                metadata.append(
                    (dicom, subject, study, VIEWS[place % len(VIEWS)], 21_000_101 + number // 1000, 80_556.875)
                )
    names = ["dicom_id", "study_id", "subject_id", "split"]
    pandas.DataFrame(rows, columns=names).to_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    names = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    pandas.DataFrame(metadata, columns=names).to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    known.write_text(json.dumps(expected))
    return expected


def processes_below(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for child in task.read_text().split() for one in processes_below(int(child))]
    return found


def run_measured(words: list[str]) -> tuple[float, float]:
    """(seconds, largest GiB of the command and its workers, shared pages counted once) of `python *words`."""
    start, peak, done = time.perf_counter(), 0.0, threading.Event()
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.2):
                together = 0
                try:
                    for pid in processes_below(command.pid):
                        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                        together += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                except (FileNotFoundError, ProcessLookupError):
                    continue  # one ended meanwhile
                peak = max(peak, together / 2**20)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, errors = command.communicate()
        done.set()
        watcher.join()
    if command.returncode:
        raise InputError(f"{' '.join(words)} ended with {command.returncode}:\n{errors.decode()[-2000:]}")
    return time.perf_counter() - start, peak


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, type=Path, help="where the made tree lies (150 MB)")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args(argv)
    expected = make_tree(args.folder, args.studies)
    rows, digests = [], set()
    for workers in sorted({1, args.workers}):
        out = args.folder / f"out_{args.studies}_{workers}"
        seconds, peak = run_measured(["-m", "data.prepare_mimic", "--cxr", str(args.folder), "--no_images", "--out", str(out),
                                      "--workers", str(workers), "--overwrite"])  # fmt: skip
        manifest = json.loads((out / "annotation.manifest.json").read_text())
        found = {split: facts["rows"] for split, facts in manifest["counts"].items()}
        if found != expected:
            raise InputError(f"{out}: {found} rows, {expected} were made")
        digests.add(sha256(out / "annotation.json"))
        rows += [(f"{workers} processes", seconds, "s"), (f"{workers} processes, memory together", peak, "GiB")]
    rows += [("rows", sum(expected.values()), ""), ("different annotations", len(digests), "")]
    report(f"prepare_mimic, {args.studies:,d} studies", rows, args, torch.device("cpu"))


if __name__ == "__main__":
    main()
