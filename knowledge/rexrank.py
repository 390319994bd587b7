"""Reports for ReXrank's studies, and the program that a submission to it consists of."""

import shutil
from collections.abc import Callable
from pathlib import Path

from modules.artefact import ROOT, write_atomic
from modules.errors import InputError, Problems
from modules.progress import tracked
from modules.scoring.rexrank import images_of, read_rexrank, write_rexrank, written_so_far

EVERY = 20  # studies between two writings
ROOMS = ("models", "modules", "data", "knowledge")
PROGRAM = '''"""python inference.py --input_json_file IN --save_json_file OUT --img_root_dir DIR (or these three by position)"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
names = ("input_json_file", "save_json_file", "img_root_dir")
for name in names:
    parser.add_argument(f"--{name}")
parser.add_argument("places", nargs="*", metavar="IN OUT DIR")
args = parser.parse_args()
chosen = dict(zip(names, args.places)) | {name: getattr(args, name) for name in names if getattr(args, name)}
if len(chosen) < 3:
    parser.error("give --input_json_file, --save_json_file and --img_root_dir")
source, out, images = (str(Path(chosen[name]).resolve()) for name in names)
words = ["--load", str(HERE / "best.pt"), "--rexrank", source, "--image_dir", images, "--out", out]
sys.exit(subprocess.run([sys.executable, str(HERE / "main_test.py"), *words], cwd=HERE, env=os.environ).returncode)
'''


def report_rexrank(args, generate: Callable[[list[str]], dict]) -> None:
    """A predictions file --out for the studies of --rexrank; goes on where --out stops.

    generate: image paths of a study -> {"report": text, ...}. Every image is looked for before the first report.
    """
    if not args.out:
        raise InputError("--rexrank: name the predictions file with --out")
    entries, problems, paths = read_rexrank(args.rexrank), Problems(), {}
    for study, entry in entries.items():
        try:
            paths[study] = [str(Path(args.image_dir) / path) for path in images_of(entry, study, args.max_views)]
        except InputError as error:
            problems.add(str(error))
            continue
        missing = [path for path in paths[study] if not Path(path).is_file()]
        problems.check(not missing, f"study {study}: no image {missing[:1]}; give the folder with --image_dir")
    problems.texts[20:] = [f"... and {len(problems.texts) - 20} more"] if len(problems.texts) > 20 else []
    problems.stop_if_any(f"{args.rexrank}: cannot start")
    made = written_so_far(args.out, entries)
    rest = [study for study in entries if study not in made]
    for number, study in enumerate(tracked(rest, desc="studies"), 1):
        made[study] = generate(paths[study])["report"]
        if number % EVERY == 0 or number == len(rest):
            write_rexrank(args.out, entries, made)
    print(f"written: {args.out}, {len(entries)} studies, {len(entries) - len(rest)} of them were there already")
    if any("subject_id" in entry for entry in entries.values()):  # of their files MIMIC-CXR's alone has it
        print(
            "note: the entries hold texts of MIMIC-CXR; this file may not be passed on outside its data use agreement"
        )


def write_submission(args, out: Path) -> None:
    """A folder with the program, its environment, the code and the checkpoint: what ReXrank asks for by e-mail."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*")):
            if (
                file.suffix in (".py", ".json", ".txt")
                and "miniature" not in str(file)
                and file.stat().st_size < 1 << 20
            ):
                target = out / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    for name in ("main_test.py", "requirements.txt", "LICENSE"):
        shutil.copyfile(ROOT / name, out / name)
    (out / "results").mkdir()
    shutil.copyfile(ROOT / "results" / "published.json", out / "results" / "published.json")
    write_atomic(out / "best.pt", lambda temporary: shutil.copyfile(args.load, temporary))
    (out / "inference.py").write_text(PROGRAM, encoding="utf-8")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    packages = "".join(f"      - {line}\n" for line in lines)
    head = "name: report_generation\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n"
    (out / "environment.yaml").write_text(head + packages, encoding="utf-8")
    print(f"written: {out}; send it with name, institution, links and year, as the leaderboard's page says")
