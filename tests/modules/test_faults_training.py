"""Faults of training, resuming and scoring that were once found: each test failed before its repair."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_MODEL, call, inputs, run, same, without_java

from models import SYSTEMS
from models.system import System
from modules.checkpoint import CheckpointWriter, load_checkpoint, load_weights
from modules.errors import InputError
from modules.flags import parse
from modules.scoring.clinical import clinical_statistics
from modules.scoring.other_files import Split, read_any
from modules.scoring.predictions import R2GenReferences, write_predictions
from modules.scoring.resampling import intervals
from modules.trainer import Trainer

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


class Line(System):
    """The smallest system that trains: one weight."""

    loss_weights = {"ce": 1.0}

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def parameter_groups(self):
        return {"rest": list(self.parameters())}

    def loss_counts(self, batch):
        return {}


class Silent:
    def write(self, *_, **__):
        pass

    def say(self, text):
        pass


def trainer(folder, *more, validate=None, epochs=6):
    args = parse(["--dataset_name", "miniature", "--epochs", str(epochs), *more], "train", systems=SYSTEMS)
    carried = {"flags": {"model": "line", "dataset_name": "miniature"}, "tokenizer": {}, "parts": {}}
    made = Trainer(Line(), [], validate, args=args, device=torch.device("cpu"), folder=folder, log=Silent(), carried=carried)
    made.trained = 0

    def train_epoch():
        made.trained += 1
        return {}, 1.0

    made.train_epoch = train_epoch
    return made


def test_the_best_checkpoint_is_written_before_the_one_that_names_it(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("modules.checkpoint.save_checkpoint", lambda path, content: written.append(path.name))
    with CheckpointWriter() as writer:
        trainer(tmp_path).save(writer, won=True)
    assert written == ["best.pt", "last.pt"]


def test_a_stopped_run_trains_no_further_epoch(tmp_path):
    first = trainer(tmp_path, "--early_stop", "2", validate=lambda system: {"r2gen/CIDEr": 0.5})
    first.fit()
    assert first.trained == 3
    again = trainer(tmp_path, "--early_stop", "2", validate=lambda system: {"r2gen/CIDEr": 0.9})
    again.resume(tmp_path / "last.pt")
    again.fit()
    assert again.trained == 0


def test_rates_typed_beside_resume_win(tmp_path):
    with CheckpointWriter() as writer:
        first = trainer(tmp_path, "--lr_ed", "1e-3", "--step_size", "2")
        first.epoch = 3
        first.save(writer, won=False)
    kept = trainer(tmp_path)
    kept.resume(tmp_path / "last.pt")
    assert kept.optimizer.param_groups[0]["lr"] == 1e-3, "what was not typed goes on"
    typed = trainer(tmp_path, "--lr_ed", "0.5", "--weight_decay", "0.25", "--step_size", "2", "--lr_gamma", "0.1")
    typed.resume(tmp_path / "last.pt")
    assert typed.optimizer.param_groups[0]["lr"] == pytest.approx(0.05), "3 epochs with a drop every 2"
    assert typed.optimizer.param_groups[0]["weight_decay"] == 0.25


def test_weights_that_diverged_are_neither_saved_nor_loaded(tmp_path):
    broken = trainer(tmp_path)
    broken.system.weight.data[1] = float("nan")
    with pytest.raises(InputError, match="not finite"), CheckpointWriter() as writer:
        broken.save(writer, won=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="not finite"):
        load_weights(Line(), {"weight": torch.tensor([1.0, float("inf"), 0.0])}, "best.pt")


def test_a_step_that_the_scaler_skips_is_counted_and_left_out_of_the_mean(tmp_path):
    rows = []
    made = trainer(tmp_path)
    del made.train_epoch
    made.log.write = lambda event, **values: rows.append(values)
    made._steps = lambda: iter([[], []])
    made.loader = type("Loader", (list,), {"dataset": Line()})([1, 2])
    steps = iter([{"loss": 2.0, "skipped_steps": 1.0}, {"loss": 4.0, "skipped_steps": 0.0, "grad_norm": 3.0}])
    made.update = lambda batches: {**next(steps), "studies": 1}
    made.train_epoch()
    assert rows[-1]["train/grad_norm"] == 3.0 and rows[-1]["train/loss"] == 3.0 and rows[-1]["train/skipped_steps"] == 0.5


def labels(*columns):
    """States [B, 14]: label k is positive where columns[k] is 1; the rest is blank."""
    states = np.zeros((len(columns[0]), 14), dtype=np.int8)
    for k, column in enumerate(columns):
        states[:, k] = column
    return states


def test_macro_f1_of_a_perfect_system_has_a_perfect_interval():
    rare = np.zeros(200, dtype=int)
    rare[:2] = 1
    states = labels(*[rare] * 13, 1 - rare)
    statistics = clinical_statistics("rules", states, states)
    key = "ce/rules/14/macro/u0/f1"
    assert statistics[key].corpus() == 1.0 and intervals({key: statistics[key]})[key] == [1.0, 1.0]
    nothing = clinical_statistics("rules", labels(rare), labels(rare))
    assert nothing[key].corpus() == pytest.approx(1 / 14), "a label without a positive study counts as 0, as published"


def test_references_come_from_the_annotation(tmp_path):
    reports = {"a": "The heart is large.", "b": "No effusion."}
    references = R2GenReferences(reports.values(), "iu_xray", threshold=1)
    rows = [references.row(study, text, "normal .", note="kept") for study, text in reports.items()]
    for row in rows:
        row["reference_r2gen"] = row["reference_clean"] = row["prediction"]
    path = write_predictions(tmp_path / "flattering.csv", rows)
    read = read_any(path, Split("test", reports, references))
    assert [row["reference_r2gen"] for row in read] == ["the heart is large .", "no effusion ."]
    assert read[0]["note"] == "kept"


def test_released_weights_take_released_masks(tmp_path):
    masks = SYSTEMS["ekagen"].released_files["iu_xray"]["adm_masks"]
    assert masks.format(data_dir="data/iu_xray") == "data/iu_xray/images300_array"


def test_fewer_studies_than_parts_of_a_step(mini, tmp_path):
    words = ["--batch_size", "4", "--accumulate", "5", "--no-adm", "--no-gid", "--save_dir", tmp_path / "run"]
    done = call("main_train.py", *inputs(mini), *words, code=2)
    assert "--batch_size 4 is below 1 process(es) x --accumulate 5" in done.stderr


def test_a_run_goes_on_with_the_files_it_began_with(mini, tmp_path):
    reports = json.loads((mini / "data" / "annotation.json").read_text())
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps(reports))
    words = [*inputs(mini), "--no-adm", "--no-gid", "--ann_path", path, "--save_dir", tmp_path / "run", "--epochs", "1"]
    call("main_train.py", *words)
    reports["val"][0]["report"] = "The heart is large."
    path.write_text(json.dumps(reports))
    done = call("main_train.py", "--resume", "--save_dir", tmp_path / "run", "--epochs", "2", code=2)
    assert "have changed since" in done.stderr and "--ann_path" in done.stderr
    done = call("main_train.py", "--resume", "--save_dir", tmp_path / "run", "--amsgrad", code=2)
    assert "--amsgrad: the optimiser's state" in done.stderr


def test_sigterm_finishes_the_checkpoint_that_is_being_written(tmp_path):
    script = (
        "import os, sys, time, torch; from pathlib import Path; from modules import checkpoint, processes\n"
        "processes.start(torch.device('cpu')); save = checkpoint.save_checkpoint\n"
        "checkpoint.save_checkpoint = lambda *words: (os.write(1, b'writing\\n'), time.sleep(2), save(*words))\n"
        "flags = {'model': 'line', 'dataset_name': 'miniature'}\n"
        "content = {'flags': flags, 'tokenizer': {}, 'model': {}, 'parts': {}}\n"
        "with checkpoint.CheckpointWriter() as writer:\n"
        "    writer.write({Path(sys.argv[1]): content}); os.write(1, b'going on\\n'); time.sleep(60)\n"
    )
    for asked in (signal.SIGTERM, signal.SIGHUP):
        path = tmp_path / f"{asked.name}.pt"
        process = subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT, stdout=subprocess.PIPE)
        assert {process.stdout.readline() for _ in range(2)} == {b"writing\n", b"going on\n"}
        process.send_signal(asked)
        assert process.wait(30) == 128 + asked and load_checkpoint(path)["model"] == {}


KILLED = """
import os, sys, main_train
folder, words, calls, replace = sys.argv[1], sys.argv[2:], 0, os.replace
def count():
    global calls
    calls += 1
    if calls == at:
        os.kill(os.getpid(), 9)
def watched(*words, **settings):
    count()
    replace(*words, **settings)
    count()
for at in range(2, 11):  # each in a process of its own, which starts with PyTorch imported
    child = os.fork()
    if not child:
        os.replace = watched
        main_train.main([*words, "--save_dir", f"{folder}_{at}"])
        os._exit(0)
    print(at, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_kills_around_each_rename_end_in_the_same_files(mini, tmp_path):
    """Killed before and after each rename of a training with a teacher and a student; resumed, all ends to the bit alike."""
    words = [*inputs(mini), "--no-adm", "--gid_rounds", "1", "--epochs", "1"]
    call("main_train.py", *words, "--save_dir", tmp_path / "whole")
    whole = {name: load_checkpoint(tmp_path / "whole" / name) for name in ("best.pt", "round_0/last.pt", "round_1/last.pt")}
    said = run("-c", KILLED, tmp_path / "killed", *words, env=without_java(), timeout=900).stdout
    ends = re.findall(r"^(\d+) (-?\d+)$", said, re.MULTILINE)
    assert [int(at) for at, _ in ends] == list(range(2, 11))
    for at, code in ends:
        folder = tmp_path / f"killed_{at}"
        if int(code) != -signal.SIGKILL:
            assert int(code) == 0 and int(at) > 8, "the run ended before so many renames"
            break
        if (folder / "run.json").is_file():
            call("main_train.py", "--resume", "--save_dir", folder)
        else:
            call("main_train.py", *words, "--save_dir", folder)
        for name, content in whole.items():
            same(content, load_checkpoint(folder / name))


@pytest.mark.slow
def test_two_processes_build_from_scratch(mini, tmp_path):
    """What the first process builds alone opens the data as a run of its own; the others wait for it."""
    words = ["--model", "xpronet", "--from_scratch", "--bot_weights", "none", "--epochs", "1", "--save_dir", tmp_path / "run"]
    place = ["--dataset_name", "miniature", "--data_dir", mini / "data", "--knowledge_dir", tmp_path / "knowledge"]
    small = ["--num_prototypes", "4", "--topk", "3", "--d_txt_ebd", "16"]
    start = time.time()
    run(*TORCHRUN, "main_train.py", *words, *place, *TINY_MODEL, *small, timeout=600, env=without_java())
    assert (tmp_path / "knowledge" / "prototypes.pt").is_file() and (tmp_path / "run" / "last.pt").is_file()
    assert time.time() - start < 600


