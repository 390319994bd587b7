"""Train every row of the table of truth, choose epoch and decoding on validation, test once, write the table.

    python -m benchmarks.truth --dataset_name iu_xray --data_dir $IU --out results/truth
    python -m benchmarks.truth --out results/truth --table          # the table of what is there

Rows and recipe: benchmarks/truth/rows.py. One fine-tuned extractor, frozen, serves all rows (--extractor FILE, else it is
trained first). Kill it at any time and give the same command again: what is finished is kept, a training goes on with --resume.
A row that fails is said, the others go on. The decoding of a row is chosen on validation by its first seed and kept for all.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.truth.rows import DECODINGS, RECIPES, ROWS, SYSTEMS, training_flags
from benchmarks.truth.table import write_table
from knowledge import from_scratch, train_adm_classifier, train_diagnosisbot
from models import SYSTEMS as KINDS
from modules.artefact import ROOT, read_json, sha256, write_json
from modules.errors import InputError, entry
from modules.flags import parse

QUICK = ("--no-page", "--protocols", "r2gen")


class Failed(RuntimeError):
    """A command of a row did not end well; its log says why."""


def run(words: list[str], log: Path) -> float:
    """Run `python *words`, its output appended to `log`; returns GiB of memory that it held at most."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ python {shlex.join(words)}\n")
        file.flush()
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{words[0]} ended with {process.returncode}, see {log}")
    return used.ru_maxrss / 2**20


class Truth:
    """The folder of a table: extractor.pt, knowledge/, <row>/<seed>/, table.*; places: flags that say where the data lie."""

    def __init__(self, args, places: list[str], extra: list[str]) -> None:
        self.args, self.extra, self.out = args, extra, Path(args.out).resolve()
        self.recipe, self.seeds = RECIPES[args.dataset_name], args.seeds
        self.extractor = Path(args.extractor).resolve() if args.extractor else self.out / "extractor.pt"
        self.labels = self.out / "knowledge" / "labels.csv"
        self.places = [*places, "--knowledge_dir", str(self.out / "knowledge")]

    def start(self) -> None:
        """Keep the settings of the table: a later call with others is refused. Train the extractor where there is none."""
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {"places": self.places, "extra": self.extra, "first_seed": self.seeds[0], "cache": self.args.feature_cache,
                    "recipe": [list(self.recipe.shared), list(self.recipe.family)]}  # fmt: skip
        record = self.out / "settings.json"
        if record.is_file() and read_json(record) != settings:
            raise InputError(f"{record} says other flags than these: give the same, or choose another --out")
        write_json(record, settings)
        if not self.labels.is_file():
            ann = self.args.ann_path or str(Path(self.args.data_dir or f"data/{self.args.dataset_name}") / "annotation.json")
            run(["-m", "knowledge.label_reports", "--ann_path", ann, "--out", str(self.labels)], self.out / "knowledge.log")
        if not self.extractor.is_file():
            files = ["--labels", str(self.labels), "--out", str(self.extractor)]
            words = ["-m", "knowledge.train_diagnosisbot", *self.places, *files, *self.recipe.extractor]
            run(words, self.out / "extractor.log")

    def words(self, name: str, seed: int) -> list[str]:
        """The flags of a training, its teacher aside."""
        kind = ROWS[name].model
        own = {flag.name for flag in KINDS[kind].flags}
        looks = [word for flag in ("diagnosisbot", "adm_classifier") if flag == "diagnosisbot" or flag in own
                 for word in (f"--{flag}", str(self.extractor))]  # fmt: skip
        return [*self.places, *training_flags(name, self.recipe), "--extractor_weights", str(self.extractor), *looks, "--seed",
                str(seed), "--feature_cache", self.args.feature_cache, *self.extra]  # fmt: skip

    def build_knowledge(self, name: str) -> None:
        """What the row reads beside images and reports; the extractor serves as DiagnosisBot and ADM classifier."""
        args = parse(self.words(name, 0), "train", systems=KINDS)
        for _, main, typed in from_scratch.steps(args):
            if main not in (train_diagnosisbot.main, train_adm_classifier.main):
                run(["-m", main.__module__, *typed], self.out / "knowledge.log")

    def train(self, name: str, seed: int) -> None:
        """Train a row with one seed, or go on with it."""
        folder, row = self.out / name / str(seed), ROWS[name]
        words = [*self.words(name, seed), "--save_dir", str(folder)]
        if row.teacher:
            words += ["--teacher", str(self.out / row.teacher / str(seed) / "best.pt")]
        begun = (folder / "last.pt").is_file()
        memory = run(["main_train.py", *(["--resume", "--save_dir", str(folder)] if begun else words)], folder / "train.log")
        write_json(folder / "cost.json", {"memory_gib": memory, "command": words})

    def test(self, name: str, seed: int, split: str, decoding: str) -> dict:
        """Metrics of one pass over a split; kept where they are there."""
        row = ROWS[name]
        folder = self.out / name / str(seed) / (split if split == "test" else f"val_{decoding}")
        metrics = folder / f"metrics_{split}.json"
        if not metrics.is_file():
            weights = self.out / (row.of or name) / str(seed) / "best.pt"
            more = [word.format(labels=self.labels) for word in row.test]
            chexbert = ["--chexbert_path", self.args.chexbert_path] if self.args.chexbert_path and split == "test" else []
            few = ["--bootstrap", "0", "--baselines", "constant"] if split == "val" else ["--baselines", "all"]
            run(["main_test.py", "--load", str(weights), "--split", split, *self.places, "--diagnosisbot", str(self.extractor),
                 "--num_workers", "0", *DECODINGS[decoding], *QUICK, *few, *more, *chexbert, "--save_dir", str(folder)],
                folder.parent / "test.log")  # fmt: skip
        return read_json(metrics)

    def decoding(self, name: str, seed: int) -> str:
        """The decoding of a row: best CIDEr on the validation split by its first seed."""
        first = self.seeds[0]
        found = {way: self.test(name, first, "val", way)["metrics"]["r2gen/CIDEr"] for way in DECODINGS}
        return max(found, key=found.get)

    def row(self, name: str, seed: int) -> None:
        """Train, choose, test; then <row>/<seed>/row.json is there."""
        folder, row = self.out / name / str(seed), ROWS[name]
        if (folder / "row.json").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        source = self.out / (row.of or name) / str(seed)
        if row.of is None and not _finished(folder):
            self.build_knowledge(name)
            self.train(name, seed)
        if not _finished(source):
            raise Failed(f"{row.of} of seed {seed} is not trained")
        decoding = self.decoding(name, seed)
        tested = self.test(name, seed, "test", decoding)
        write_json(folder / "row.json", {"row": name, "seed": seed, "decoding": decoding, "metrics": tested["metrics"],
                                         **facts_of(source)})  # fmt: skip


def _finished(folder: Path) -> bool:
    """Whether the training in `folder` came to its end, which cost.json says."""
    return (folder / "cost.json").is_file()


def facts_of(folder: Path) -> dict:
    """What a trained row cost and what it was made of: data, extractor, curve."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    run_facts, cost = read_json(folder / "run.json"), read_json(folder / "cost.json")
    validated = [row for row in log if row["event"] == "val"]
    best = next(row for row in validated if row["epoch"] == validated[-1]["best_epoch"])
    data = run_facts["data"]["splits"]
    return {
        "data": {split: facts["ids_sha256"] for split, facts in data.items()},
        "annotation": run_facts["inputs"]["ann_path"]["sha256"],
        "extractor": next(row["weights_sha256"] for row in log if row["event"] == "features"),
        "parameters": next(row["trained_parameters"] for row in log if row["event"] == "system"),
        "image_use": best["val/image_use"],
        "best_epoch": best["epoch"],
        "epochs": validated[-1]["epoch"],
        "hours": seconds_of(log) / 3600,
        "memory_gib": cost["memory_gib"],
        "command": "python main_train.py " + shlex.join(cost["command"]),
        "log": str(folder / "log.jsonl"),
        "weights_sha256": sha256(folder / "best.pt"),
    }


def seconds_of(log: list[dict]) -> float:
    """Time from the first row to the last, without the gaps in which no process was at work."""
    return sum(after["time"] - before["time"] for before, after in zip(log, log[1:]) if after["event"] != "system")


@entry
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Further flags go to every main_train.py.")
    parser.add_argument("--dataset_name", default="iu_xray", choices=tuple(RECIPES))
    for name in ("data_dir", "ann_path", "image_dir"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--out", default="results/truth")
    parser.add_argument("--extractor", help="weights of a DiagnosisBot, instead of training one into <out>/extractor.pt")
    parser.add_argument("--rows", nargs="+", default=list(SYSTEMS), choices=tuple(ROWS), metavar="ROW",
                        help=f"rows in this order [{' '.join(SYSTEMS)}]; also {' '.join(set(ROWS) - set(SYSTEMS))}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--feature_cache", default="float32", choices=("float32", "float16"))
    parser.add_argument("--chexbert_path", help="your chexbert.pth: clinical scores by CheXbert too")
    parser.add_argument("--table", action="store_true", help="train nothing: write the table of what is there")
    args, extra = parser.parse_known_args(argv)
    if args.table:
        print(write_table(Path(args.out)))
        return
    named = {name: getattr(args, name) for name in ("data_dir", "ann_path", "image_dir") if getattr(args, name)}
    places = ["--dataset_name", args.dataset_name, *(word for name, value in named.items() for word in (f"--{name}", value))]
    truth, failed = Truth(args, places, extra), []
    truth.start()
    for seed in args.seeds:
        for name in args.rows:
            print(f"{time.strftime('%H:%M')} {name}, seed {seed}", flush=True)
            try:
                truth.row(name, seed)
            except Failed as error:
                failed.append(f"{name}, seed {seed}: {error}")
                print(failed[-1], flush=True)
                continue
            write_table(truth.out)
    print((truth.out / "table.md").read_text(encoding="utf-8") if (truth.out / "table.md").is_file() else "no row is finished")
    if failed:
        lines = "\n".join(f"  - {text}" for text in failed)
        raise InputError(f"these rows failed; mend them and give the same command again:\n{lines}")


if __name__ == "__main__":
    main()
