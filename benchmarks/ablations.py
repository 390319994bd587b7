"""What each part of a system brings: a table over seeds, from one command.

    python -m benchmarks.ablations --dataset_name miniature --seeds 42 43 44 --out results/ablations
    python -m benchmarks.ablations --model csr_lmca --out results/ablations_csr_lmca

EKAGen: six trainings per seed: a teacher with and one without the knowledge aligner (complete images, no distillation), and from
them the student with every part and the students without one. CSR-LMCA: every part, and without one of them each.
A training that is finished is kept, so a killed command goes on where it was. Needs the artefacts of --from_scratch.
Further flags go to every main_train.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modules.artefact import ROOT, write_atomic, write_json
from modules.scoring.baselines import BASELINES, footnotes
from modules.scoring.clinical import LEADING
from modules.scoring.score_table import FINDINGS
from modules.text.labeler import VERSION

# name -> flags, the run whose best checkpoint is the teacher, row of the table
EKAGEN = {
    "teacher": (["--no-adm", "--no-gid"], None, "no ADM, no GID (the teacher)"),
    "none": (["--no-adm", "--no-iek", "--no-gid"], None, "none: no ADM, no IEK, no GID"),
    "full": ([], "teacher", "full"),
    "no_adm": (["--no-adm"], "teacher", "no ADM"),
    "no_iek": (["--no-iek"], "none", "no IEK"),
    "no_gid": (["--no-gid"], None, "no GID"),
}
CSR_LMCA = {
    "full": ([], None, "full"),
    "no_sr_mamba": (["--no-sr_mamba"], None, "no SR-Mamba"),
    "no_r_msa": (["--no-r_msa"], None, "no R-MSA"),
    "no_cr_msa": (["--no-cr_msa"], None, "no CR-MSA"),
    "no_sdam": (["--no-sdam"], None, "no SDAM (complete image)"),
    "fixed_scale": (["--no-sr_scale_learned"], None, "weight of SR-Mamba fixed"),
}
# system -> its runs, and the order of the rows
TABLES = {
    "ekagen": (EKAGEN, ("full", "no_adm", "no_iek", "no_gid", "teacher", "none")),
    "csr_lmca": (CSR_LMCA, tuple(CSR_LMCA)),
}
SHOWN = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")


def run(words: list[str], log: Path, threads: int) -> None:
    with open(log, "a", encoding="utf-8") as file:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(words)}\nsee {log}")


def train_and_test(name: str, row, seed: int, out: Path, data: list[str], extra: list[str], threads: int) -> dict:
    """Scores of one run of the table, trained if its metrics are not there yet."""
    flags, teacher, _ = row
    folder = out / f"{name}_{seed}"
    metrics = folder / "metrics_test.json"
    if not metrics.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["main_train.py", *data, "--seed", str(seed), "--save_dir", str(folder), *flags, *extra]
        if teacher:
            words += ["--teacher", str(out / f"{teacher}_{seed}" / "best.pt")]
        words += ["--resume"] if (folder / "last.pt").is_file() else []
        run(words, folder / "train.log", threads)
        run(["main_test.py", "--load", str(folder / "best.pt"), "--protocols", "r2gen"], folder / "test.log", threads)
    return json.loads(metrics.read_text(encoding="utf-8"))["metrics"]


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def table(scores: dict[str, list[dict]], runs: dict, order: tuple[str, ...]) -> str:
    """Mean and standard deviation over the seeds, protocol r2gen, of all and of the abnormal studies; the baselines below."""
    few = f"{scores['full'][0]['subsets']['abnormal']['studies']} abnormal"
    heads = [*SHOWN, "F1 micro", "F1 macro", f"{few}: CIDEr", "F1 micro", "distinct"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in order:
        cells = [spread(list(values)) for values in zip(*(figures(row) for row in scores[name]))]
        distinct = statistics.mean(row["distinct_reports"] for row in scores[name])
        lines.append(f"| {runs[name][2]} | " + " | ".join(cells) + f" | {distinct:.0f} |")
    first = scores["full"][0]
    for name, facts in first["baselines"].items():
        cells = [f"{value:.3f}" for value in figures(first, f"{name}/")]
        lines.append(f"| {BASELINES[name][0]} | " + " | ".join(cells) + f" | {facts['distinct_reports']} |")
    return "\n".join([*lines, "", FINDINGS, *footnotes(list(first["baselines"]))])


def figures(metrics: dict, prefix: str = "") -> list[float]:
    """The values of a row of the table: text metrics, F1 of the findings, and of the abnormal studies alone."""
    part, labeler = metrics["subsets"]["abnormal"], f"{prefix}ce/{VERSION}"
    values = [metrics[f"{prefix}r2gen/{metric}"] for metric in SHOWN]
    values += [metrics[f"{labeler}/13/{average}/u1/f1"] for average in ("micro", "macro")]
    return [*values, part[f"{prefix}r2gen/CIDEr"], part[f"{labeler}/{LEADING}"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ekagen", choices=tuple(TABLES))
    parser.add_argument("--dataset_name", default="miniature")
    parser.add_argument("--data_dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--out", default="results/ablations")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; the cores are shared among them")
    args, extra = parser.parse_known_args()
    out = Path(args.out).resolve()
    runs, order = TABLES[args.model]
    data = ["--model", args.model, "--dataset_name", args.dataset_name] + (
        ["--data_dir", args.data_dir] if args.data_dir else []
    )
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    scores: dict[tuple[str, int], dict] = {}
    for stage in ([n for n in runs if runs[n][1] is None], [n for n in runs if runs[n][1]]):  # teachers first
        jobs = [(name, seed) for seed in args.seeds for name in stage]
        with ThreadPoolExecutor(args.jobs) as pool:
            for job, found in zip(
                jobs,
                pool.map(lambda job: train_and_test(job[0], runs[job[0]], job[1], out, data, extra, threads), jobs),
            ):
                scores[job] = found
                print(f"{job[0]:8s} seed {job[1]}: CIDEr {found['r2gen/CIDEr']:.3f}", flush=True)
    by_name = {name: [scores[name, seed] for seed in args.seeds] for name in runs}
    text = table(by_name, runs, order)
    print(
        f"\n{args.dataset_name}, {found['studies']} test studies, seeds {args.seeds}, mean ± standard deviation\n\n{text}"
    )
    write_atomic(out / "table.md", lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    write_json(out / "scores.json", {"seeds": args.seeds, "flags": extra, "scores": by_name})


if __name__ == "__main__":
    main()
