"""What scoring costs, and whether its intervals hold: seconds, memory, coverage.

    python -m benchmarks.scoring [--studies 590 3858] [--words 33 55] [--simulations 1000] [--out results/logs/scoring.json]

Scored are made reports: sentences of a small grammar, of the length of IU X-Ray (33 words) and MIMIC-CXR (55), predictions that
share most of them, so that every study has another text and nothing can be remembered. Every embedded metric is computed: three
protocols with METEOR, the constant report, clinical metrics, 1,000 resamples, all parts of the split. Memory is the largest
resident size of this process and of Java (Linux).
"""

import argparse
import json
import os
import random
import resource
import threading
import time
from pathlib import Path

import numpy as np

from modules.artefact import write_json
from modules.scoring.clinical import clinical_statistics, label_by_rules
from modules.scoring.meteor import Meteor
from modules.scoring.metrics import text_statistics
from modules.scoring.predictions import R2GenReferences
from modules.scoring.resampling import Statistic, paired_differences
from modules.scoring.score_all import score_all

SUBJECTS = (
    "heart|lungs|mediastinum|left costophrenic angle|right hemidiaphragm|aorta|trachea|left upper lobe|right lower lobe|"
    "pulmonary vasculature|hila|left clavicle|thoracic spine|right apex|visualized osseous structures"
).split("|")
STATES = (
    "clear|normal in size|within normal limits|unremarkable|mildly enlarged|unchanged|tortuous|hyperexpanded|elevated|"
    "free of consolidation|partly obscured by atelectasis|blunted by a small pleural effusion|stable in appearance|calcified"
).split("|")
FINDINGS = "effusion|pneumothorax|consolidation|edema|nodule|fracture|atelectasis|cardiomegaly|pneumonia|mass".split(
    "|"
)


def sentence(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.6:
        return f"the {draw.choice(SUBJECTS)} {draw.choice(['is', 'appears', 'remains'])} {draw.choice(STATES)} ."
    if kind < 0.85:
        return f"no {draw.choice(['focal', 'large', 'acute', 'definite'])} {draw.choice(FINDINGS)} or {draw.choice(FINDINGS)} ."
    return f"there is a {draw.randrange(2, 40)} mm {draw.choice(FINDINGS)} in the {draw.choice(SUBJECTS)} ."


def made_rows(studies: int, words: int, noise: float = 0.5, seed: int = 0) -> list[dict]:
    """Rows of a predictions file; one seed gives the same references whatever the noise."""
    draw, rows = random.Random(seed), []
    expected = []
    for _ in range(studies):
        expected.append([])
        while sum(len(part.split()) for part in expected[-1]) < words * draw.uniform(0.6, 1.3):
            expected[-1].append(sentence(draw))
    references = R2GenReferences([" ".join(parts) for parts in expected], "iu_xray", threshold=1)
    for number, parts in enumerate(expected):
        predicted = [sentence(draw) if draw.random() < noise else part for part in parts]
        more = {"constant": "the heart is normal in size . the lungs are clear . no pleural effusion or pneumothorax ."}
        rows.append(references.row(f"s{number:05d}", " ".join(parts), " ".join(predicted), **more))
    return rows


def peak_mib(process: int) -> float:
    """Largest resident memory of a process so far."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def children() -> list[int]:
    """Ids of the Java processes below this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if (folder / "comm").read_text().strip() == "java":
                found.append((int(folder.name), int(fields[1])))
        except OSError:
            continue  # it has ended meanwhile
    return [process for process, parent in found if parent == os.getpid() or os.getpid() in _parents(parent)]


def _parents(process: int) -> list[int]:
    chain = []
    while process > 1:
        chain.append(process)
        try:
            process = int((Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
    return chain


def children_cpu() -> float:
    """Processor seconds of ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cost(studies: int, words: int) -> dict:
    """Seconds and peak memory of scoring made reports, Java's start included."""
    rows, java, done = made_rows(studies, words), {}, threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in children():
                try:
                    java[process] = max(java.get(process, 0.0), peak_mib(process))
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, busy, java_busy = time.perf_counter(), time.process_time(), children_cpu()
    with Meteor() as meteor:
        result = score_all(rows, meteor=meteor).metrics
    seconds, busy, java_busy = time.perf_counter() - start, time.process_time() - busy, children_cpu() - java_busy
    done.set()
    watcher.join()
    mean = result["mean_words_prediction"]
    return {
        "studies": studies,
        "words": round(mean, 1),
        "seconds": round(seconds, 1),
        "python_cpu_s": round(busy, 1),
        "java_cpu_s": round(java_busy, 1),
        "java_mib": round(max(java.values(), default=0)),
        "python_mib": round(peak_mib(os.getpid())),
    }


def statistics_of(rows: list[dict]) -> dict[str, Statistic]:
    references, predicted = ([row[name] for row in rows] for name in ("reference_clean", "prediction"))
    clinical = clinical_statistics("rules", label_by_rules(references), label_by_rules(predicted))
    chosen = ("ce/rules/14/micro/u1/f1", "ce/rules/14/macro/u1/f1", "ce/rules/14/example/u1/f1")
    return text_statistics(references, predicted, ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")) | {
        k: clinical[k] for k in chosen
    }


def coverage(simulations: int, studies: int, pool: int = 5000) -> dict[str, dict]:
    """How often the paired interval holds the truth, of two systems that differ and of two that do not.

    Test sets of `studies` are drawn from `pool` made ones, whose difference is the truth. The equal systems are the two with
    each study's outputs exchanged by the toss of a coin.
    """
    a, b = (statistics_of(made_rows(pool, 33, noise)) for noise in (0.5, 0.45))
    truth = {key: b[key].corpus() - a[key].corpus() for key in a}
    draw = np.random.default_rng(0)
    found = {
        key: {"truth": truth[key], "covered": 0, "called different": 0, "equal ones called different": 0} for key in a
    }
    for _ in range(simulations):
        chosen = draw.integers(pool, size=studies)
        coin = draw.random(studies)[:, None] < 0.5
        one, two = ({key: Statistic(side[key].rows[chosen], side[key].of_sums) for key in side} for side in (a, b))
        mixed = [
            {k: Statistic(np.where(coin == heads, one[k].rows, two[k].rows), one[k].of_sums) for k in one}
            for heads in (True, False)
        ]
        for key, value in paired_differences(one, two, 1000).items():
            low, high = value["interval"]
            found[key]["covered"] += low <= truth[key] <= high
            found[key]["called different"] += not low <= 0 <= high
        for key, value in paired_differences(*mixed, 1000).items():
            low, high = value["interval"]
            found[key]["equal ones called different"] += not low <= 0 <= high
    return {
        key: {name: value if name == "truth" else value / simulations for name, value in row.items()}
        for key, row in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, nargs="*", default=[590, 3858])
    parser.add_argument("--words", type=int, nargs="*", default=[33, 55])
    parser.add_argument("--simulations", type=int, default=1000, help="0 leaves the intervals out")
    parser.add_argument("--sample", type=int, default=300, help="studies of one simulated test set")
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    costs = [cost(studies, words) for studies, words in zip(args.studies, args.words)]
    print(f"{os.cpu_count()} cores, load before {load:.1f}")
    for row in costs:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    held = coverage(args.simulations, args.sample) if args.simulations else {}
    if held:
        print(
            f"\n{args.simulations} simulated test sets of {args.sample} studies, 95% intervals of differences, 1,000 resamples"
        )
        print(f"{'metric':30s} {'truth':>8s} {'covered':>8s} {'found':>8s} {'false':>8s}")
    for key, row in held.items():
        print(f"{key:30s} " + " ".join(f"{value:8.3f}" for value in row.values()))
    figures = {"cores": os.cpu_count(), "load_before": load, "cost": costs, "intervals": held, "settings": vars(args)}
    if args.out:
        write_json(Path(args.out), figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
