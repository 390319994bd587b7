"""Tiny systems of the table on the miniature data, made as main_train.py makes them."""

import torch
from conftest import TINY_MODEL

from data.batches import make_loader
from data.prepare import make_dataset, open_data
from knowledge.diagnose import diagnose_studies
from models import SYSTEMS
from modules.errors import Problems
from modules.flags import kept_flags, parse
from modules.trainer import Trainer

NAMES = tuple(SYSTEMS)


def own_flags(name: str, mini) -> list[str]:
    """What a tiny run of a system needs beside images and reports."""
    labels = str(mini / "data" / "labels.csv")
    if name == "ekagen":
        return ["--no-adm", "--no-gid", "--diagnosis_path", labels, "--oracle_labels", "--knowledge_path", str(mini / "base.pt")]
    if name == "csr_lmca":
        return ["--no-sdam"]
    if name == "xpronet":
        return ["--prototypes", "random", "--labels_path", labels, "--oracle_labels"]
    if name == "cvt2distilgpt2":
        return ["--decoder_weights", "none", "--bpe_vocab", "300"]
    if name == "sgrrg":
        return ["--labels_path", labels]
    return []


def read(name: str, mini, *more):
    words = ["--model", name, "--dataset_name", "miniature", "--data_dir", str(mini / "data"), "--no-image_cache"]
    return parse([*words, *TINY_MODEL, *own_flags(name, mini), *more], "train", systems=SYSTEMS)


def prepare(args, split: str = "train"):
    """The data, vocabulary, system and one loader of a run, as main_train.py makes them."""
    kind, problems = SYSTEMS[args.model], Problems()
    kind.check(args, problems, training=True)
    inputs = {s: kind.inputs(args, training=s == "train") for s in ("train", "val")}
    data = open_data(args, inputs, problems, views=kind.views(args))
    problems.stop_if_any()
    diagnosed = [s for s, names in inputs.items() if "diagnosis" in names]
    if diagnosed:
        diagnose_studies(args, data, diagnosed, torch.device("cpu"))
    tokenizer = kind.make_tokenizer([study.report for study in data.studies["train"]], args)
    torch.manual_seed(1)
    system = kind.build(args, tokenizer)
    return data, tokenizer, system


def loader_of(args, data, tokenizer, system, split: str):
    training = split == "train"
    dataset = make_dataset(args, data, split, system.needs(training), tokenizer, training=training)
    return make_loader(dataset, batch_size=4, num_workers=0, shuffle=training)


def trainer_of(args, system, folder, **carried) -> Trainer:
    return Trainer(system, [], None, args=args, device=torch.device("cpu"), folder=folder, log=None, carried=carried)


def two_steps(args, mini, folder):
    data, tokenizer, system = prepare(args)
    trainer = trainer_of(args, system, folder, flags=kept_flags(args), tokenizer=tokenizer.state_dict(),
                         parts=system.parts())  # fmt: skip
    system.train()
    for _, batch in zip(range(2), loader_of(args, data, tokenizer, system, "train")):
        trainer.update([batch])
        for name, parameter in system.named_parameters():
            if parameter.requires_grad:
                gone = parameter.grad is None and system.idle_parameters
                assert gone or torch.isfinite(parameter.grad).all(), name
    return data, tokenizer, system.eval(), trainer
