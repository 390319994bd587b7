"""The flags that every run has, and their parser. A system brings flags of its own and presets (models/system.py).

`parse` reads the command line in two stages: --model and --dataset_name choose the system's preset, the preset sets
defaults, what was typed overrides them. A checkpoint carries the flags it was trained with: they are the defaults of a test, and
those that fix the shape of the weights cannot be changed any more.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.errors import InputError
from modules.flag_help import answer_unknown, help_text

TRAIN, TEST, BOTH = ("train",), ("test",), ("train", "test")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def seed_number(text: str) -> int:
    value = natural(text)
    if value >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text} must be below 2^32")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} must be a number, 0 or more")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must lie in 0..1")
    return value


@dataclass(frozen=True)
class Flag:
    """One row of the table.

    kind: a function from text to value, or bool (gets a --no- form). keep: "shape" = stored in the checkpoint and fixed
    by the weights, "default" = stored in the checkpoint and the default of a test, "path" = the same, unless the test
    names another data set, "" = belongs to one command only. file: of an artefact, its name below --knowledge_dir where none is typed.
    """

    group: str
    name: str
    kind: Any
    default: Any
    help: str
    of: tuple = BOTH
    keep: str = ""
    choices: tuple = ()
    nargs: str = ""
    file: str = ""


class Extractors(tuple):
    """Our backbones by name; timm:NAME and hf:FOLDER are known to those libraries (modules/nets/library_backbones.py)."""

    __slots__ = ()

    def __contains__(self, name) -> bool:
        return super().__contains__(name) or str(name).startswith(("timm:", "hf:"))


AUGMENTATIONS = ("aligned", "released", "crop", "crop_flip", "crop_aligned", "rotate", "cvt2", "none")
EXTRACTORS = Extractors(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "efficientnet_lite0", "cvt_21", "cvt_small",
                         "swin_t", "swin_b"))  # fmt: skip

# fmt: off
FLAGS = (
    Flag("run", "model", str, None, "system to train or test; with --load that of the weights, else the first of models/__init__.py", keep="shape"),
    Flag("run", "dataset_name", str, "iu_xray", "data set, chooses paths and defaults; custom: any set in R2Gen's annotation format", keep="default", choices=("iu_xray", "mimic_cxr", "miniature", "custom")),
    Flag("run", "save_dir", str, None, "results folder of this run [results/<model>_<dataset_name>]"),
    Flag("run", "seed", seed_number, 42, "seed of weights, order, augmentation and dropout"),
    Flag("run", "device", str, "auto", "auto takes CUDA when there is one", choices=("auto", "cpu", "cuda")),
    Flag("run", "precision", str, "float32", "arithmetic of the forward pass; weights stay float32", choices=("float32", "tf32", "bf16", "fp16")),
    Flag("run", "deterministic", bool, False, "ask PyTorch for deterministic kernels (slower on CUDA; the CPU is deterministic without it)"),
    Flag("run", "num_workers", natural, 2, "processes that load images"),
    Flag("run", "dry_run", bool, False, "print the flags as JSON and what would stop the run, and leave; writes nothing, needs no data"),
    Flag("run", "resume", str, None, "continue a run: a checkpoint, or nothing for <save_dir>/last.pt", of=TRAIN, nargs="?"),
    Flag("run", "load", str, None, "checkpoint: ours (carries everything) or the authors' released weights"),
    Flag("run", "offline", bool, False, "never try the network; pretrained weights come from --weights_dir or a path"),
    Flag("run", "weights_dir", str, None, "folder with torchvision's ImageNet weight files"),

    Flag("data", "data_dir", str, None, "root of the data set, with annotation.json and images/ [data/<dataset_name>]", keep="path"),
    Flag("data", "ann_path", str, None, "annotation file [<data_dir>/annotation.json]", keep="path"),
    Flag("data", "image_dir", str, None, "folder of the images [<data_dir>/images]", keep="path"),
    Flag("data", "cleaning", str, "iu_xray", "R2Gen's cleaning rule for the reports", keep="shape", choices=("iu_xray", "mimic_cxr")),
    Flag("data", "threshold", positive_int, 3, "a word enters the vocabulary when seen this often in training reports", keep="shape"),
    Flag("data", "max_seq_length", positive_int, 128, "token positions of a report (BOS included)", keep="shape"),
    Flag("data", "max_views", positive_int, 1, "images used per study, in the annotation's order", keep="default"),
    Flag("data", "image_size", positive_int, 300, "side of the square image the generator sees, in pixels", keep="default"),
    Flag("data", "augment", str, "aligned", "training images: aligned = one draw for all views, no flip, small rotation; released = as EKAGen's code (flips, quarter turns, views drawn apart); crop = each image resized to 8/7 of the side and cut at random; crop_flip = also mirrored, as R2Gen's code; crop_aligned = one crop for all views of a study; cvt2 = resized to 7/6, cut at random, turned by at most 5 degrees, as CvT2DistilGPT2's code; rotate = one turn of at most 10 degrees, as SGRRG's code", of=TRAIN, choices=AUGMENTATIONS),
    Flag("data", "eval_crop", bool, False, "images that are not augmented are resized to 7/6 of the side and the middle is cut out, instead of resized to the square", keep="default"),
    Flag("data", "resize_filter", str, "bicubic", "how images are resized", keep="default", choices=("bicubic", "bilinear")),
    Flag("data", "dicom", str, None, "DICOM files: voi = as its maker meant it (modality LUT, window), mimic = as MIMIC-CXR-JPG made its images [mimic on mimic_cxr, else voi]", keep="default", choices=("voi", "mimic")),
    Flag("data", "equalize", str, "auto", "equalise the histogram of every image; auto: as the training set's images are (training: as the files are)", keep="default", choices=("auto", "on", "off")),
    Flag("data", "limit", natural, 0, "take the first so many studies of each split, 0 = all; every file and table says so", keep="default"),
    Flag("data", "skip_broken", bool, False, "go on without studies whose image or report is missing or broken; they are counted in the results"),
    Flag("data", "image_check", str, "full", "before the first batch decode every image (full) or read its header and end (quick)", choices=("full", "quick")),
    Flag("data", "image_cache", bool, True, "decode and resize each image once, into <knowledge_dir>/images (image_size^2 bytes per grey image; off for MIMIC-CXR, where that is 25 GB)"),
    Flag("data", "feature_cache", str, "off", "with --extractor_freeze all: keep the extractor's features of every image in <knowledge_dir>/features instead of computing them at every epoch; float16 takes half the room", keep="default", choices=("off", "float32", "float16")),
    Flag("data", "feature_draws", natural, 0, "with --feature_cache and an --augment: so many fixed draws of each training study are kept, an epoch takes one of them", of=TRAIN),
    Flag("data", "check_data", bool, False, "first look at data set, artefacts, weights and machine as python -m data.check does; stop when something is missing or wrong", of=TRAIN),
    Flag("data", "vocab_path", str, None, "JSON word list to use instead of the one counted in the training reports"),

    Flag("knowledge", "diagnosis_path", str, None, "CSV of diagnoses by study id (columns: id and the 14 labels), instead of a DiagnosisBot", keep="path"),
    Flag("knowledge", "diagnosisbot", str, None, "DiagnosisBot: ours or the authors' diagnosisbot.pth [<knowledge_dir>/diagnosisbot.pt]", file="diagnosisbot.pt"),
    Flag("knowledge", "knowledge_dir", str, None, "folder of the data set's artefacts [knowledge/<dataset_name>]", keep="path"),
    Flag("knowledge", "oracle_labels", bool, False, "allow diagnoses made from the reports of the split that is scored; marked as oracle in every table"),

    Flag("knowledge", "from_scratch", bool, False, "first build what the system reads and is missing: labels, DiagnosisBot, ADM masks, knowledge base, prototypes", of=TRAIN),
    Flag("knowledge", "labels_path", str, None, "labels of the reports (CSV by column name) instead of our labeler's [<knowledge_dir>/labels.csv]", keep="path", file="labels.csv"),

    Flag("generator", "visual_extractor", str, "resnet101", "backbone; or timm:NAME, hf:FOLDER of those libraries, with weights from a local file", keep="shape", choices=EXTRACTORS),
    Flag("generator", "extractor_weights", str, "imagenet", "imagenet, none (random, said in a warning), or a weight file", of=TRAIN),
    Flag("generator", "extractor_freeze", str, "stem", "stem: first stages and batch norm fixed, as published; norm: batch norm only; all; none", keep="shape", choices=("stem", "norm", "all", "none")),
    Flag("generator", "dilate", bool, True, "dilate the last ResNet stage (stride 16) as published", keep="shape"),
    Flag("generator", "d_model", positive_int, 256, "width of the transformer", keep="shape"),
    Flag("generator", "num_heads", positive_int, 8, "attention heads", keep="shape"),
    Flag("generator", "d_ff", positive_int, 2048, "width of the feed-forward layers", keep="shape"),
    Flag("generator", "num_layers", positive_int, 6, "layers of encoder and decoder each", keep="shape"),
    Flag("generator", "dropout", fraction, 0.1, "dropout of the transformer", of=TRAIN, keep="default"),

    Flag("training", "batch_size", positive_int, 8, "studies per step, over all processes and --accumulate"),
    Flag("training", "compile", bool, False, "compile the training step: minutes at the start; measure whether it pays (on CPUs it did not)", of=TRAIN),
    Flag("training", "accumulate", positive_int, 1, "batches that a step's studies are taken in one after another, for small memories", of=TRAIN),
    Flag("training", "epochs", natural, 50, "passes over the training studies", of=TRAIN),
    Flag("training", "lr_ve", not_negative, 1e-5, "learning rate of the visual extractor", of=TRAIN),
    Flag("training", "lr_ed", positive_float, 1e-4, "learning rate of everything else", of=TRAIN),
    Flag("training", "optimizer", str, "adamw", "adamw: decoupled weight decay; adam: weight decay added to the gradient (L2)", of=TRAIN, choices=("adamw", "adam")),
    Flag("training", "amsgrad", bool, False, "divide by the largest second moment so far", of=TRAIN),
    Flag("training", "adam_beta1", fraction, 0.9, "Adam's first decay rate", of=TRAIN),
    Flag("training", "adam_beta2", fraction, 0.999, "Adam's second decay rate", of=TRAIN),
    Flag("training", "adam_eps", positive_float, 1e-8, "Adam's epsilon", of=TRAIN),
    Flag("training", "weight_decay", not_negative, 1e-4, "weight decay of --optimizer", of=TRAIN),
    Flag("training", "lr_schedule", str, "step", "step: drops every --step_size epochs; cosine: every step, to --lr_min at the end", of=TRAIN, choices=("step", "cosine")),
    Flag("training", "lr_min", not_negative, 1e-6, "where --lr_schedule cosine ends", of=TRAIN),
    Flag("training", "step_size", positive_int, 20, "epochs between drops of the learning rate", of=TRAIN),
    Flag("training", "lr_gamma", positive_float, 0.1, "factor of each drop", of=TRAIN),
    Flag("training", "warmup_epochs", natural, 0, "epochs in which the learning rates climb from --lr_start, step by step", of=TRAIN),
    Flag("training", "lr_start", positive_float, 1e-6, "learning rate of the first step under --warmup_epochs", of=TRAIN),
    Flag("training", "fp16_scale", positive_float, 65536.0, "loss scale that --precision fp16 starts from", of=TRAIN),
    Flag("training", "validate_from", positive_int, 1, "first epoch after which reports are generated for the validation studies", of=TRAIN),
    Flag("training", "clip_norm", not_negative, 0.1, "largest gradient norm, 0 = no clipping", of=TRAIN),
    Flag("training", "clip_value", not_negative, 0.0, "largest size of a single gradient value, 0 = no clipping", of=TRAIN),
    Flag("training", "drop_last", bool, False, "leave out the last batch of an epoch where it is not full", of=TRAIN),
    Flag("training", "monitor_metric", str, "r2gen/CIDEr", "validation metric that chooses best.pt (larger is better); r2gen/xsum = BLEU-4 + .33 BLEU-1 + .67 METEOR, r2gen/bmsum = BLEU-4 + .5 METEOR", of=TRAIN),
    Flag("training", "early_stop", natural, 0, "stop after this many epochs without a better value, 0 = never", of=TRAIN),
    Flag("training", "val_beam_size", natural, 0, "beams at validation, 0 = --beam_size", of=TRAIN),
    Flag("training", "log_every", positive_int, 50, "steps between rows of log.jsonl", of=TRAIN),

    Flag("self-critical", "rl_epochs", natural, 0, "epochs of self-critical training into <save_dir>/rl, from the best checkpoint of this run, or from --load instead of --epochs", of=TRAIN),
    Flag("self-critical", "rl_reward", str, "cider=1 ce13=1", "rewards and their weights: cider, bleu4, rouge_l, ce13 (F1 of a study's 13 findings), ce13_corpus (what it adds to the micro-F1), chexbert13 and chexbert13_corpus (with --chexbert_path), radgraph (where installed)", of=TRAIN),
    Flag("self-critical", "rl_baseline", str, "leave_one_out", "what a sample's reward is compared with: the mean of the study's other samples, or its greedy report", of=TRAIN, choices=("leave_one_out", "greedy")),
    Flag("self-critical", "rl_samples", positive_int, 4, "samples per study and step", of=TRAIN),
    Flag("self-critical", "rl_temperature", positive_float, 1.0, "temperature of the samples, and of their probabilities", of=TRAIN),
    Flag("self-critical", "rl_lr", positive_float, 0.1, "factor on --lr_ve and --lr_ed, constant", of=TRAIN),
    Flag("self-critical", "ce_weight", not_negative, 0.1, "weight of the system's own losses beside the reward", of=TRAIN),
    Flag("self-critical", "kl_weight", not_negative, 0.0, "weight of the divergence from the policy at the start", of=TRAIN),

    Flag("decoding", "beam_size", positive_int, 1, "beams kept per study, 1 is greedy", keep="default"),
    Flag("decoding", "beam_search", str, "ours", "ours: ended reports are set aside; released: as the system's authors; mean: beams ranked by the mean log-probability of their words, an ended one stays; hf: as transformers 4.35", keep="default", choices=("ours", "released", "mean", "hf")),
    Flag("decoding", "max_gen_length", positive_int, 127, "most words of a written report", keep="default"),
    Flag("decoding", "min_gen_length", natural, 0, "fewest words before EOS may come", keep="default"),
    Flag("decoding", "length_penalty", str, "none", "beam scores divided by: nothing, the mean (avg), or ((5+n)/6)^0.7 (wu)", keep="default", choices=("none", "avg", "wu")),
    Flag("decoding", "sample", bool, False, "draw words instead of taking the best (seeded by study id and --seed)", keep="default"),
    Flag("decoding", "sample_temperature", positive_float, 1.0, "logits are divided by this before a draw", keep="default"),
    Flag("decoding", "top_k", natural, 0, "draw among the k best words, 0 = all", keep="default"),
    Flag("decoding", "block_trigrams", bool, False, "lower words that would repeat a trigram (R2Gen's soft block); beam 1 only", keep="default"),

    Flag("scoring", "split", str, "test", "split to write and score", of=TEST, choices=("train", "val", "test")),
    Flag("scoring", "protocols", str, ("r2gen", "clean", "ptb"), "preparations of the texts before scoring", of=TEST, choices=("r2gen", "clean", "ptb", "cvt2"), nargs="+"),
    Flag("scoring", "page", bool, True, "write the results page (index.html) with images and attention", of=TEST),
    Flag("scoring", "reference_words", positive_int, 59, "protocol r2gen: references are cut at this many words", keep="default"),
    Flag("scoring", "reference_threshold", positive_int, 3, "protocol r2gen: rarer words of the references become <unk>", keep="default"),

    Flag("scoring", "baselines", str, "auto", "what stands beside the scores: constant = the training reports that do best on validation by BLEU-4 and by CIDEr; all = also the nearest training study's report and the consensus of the 100 nearest, by the run's own extractor; auto = all where its features of the training images are kept or few (20,000 images on a GPU, 1,000 on a CPU). With --score, all needs --load", of=TEST, choices=("auto", "constant", "all")),
    Flag("scoring", "bootstrap", natural, 1000, "resamples of the studies for 95% intervals and --compare, 0 = none", of=TEST),
    Flag("scoring", "resample_by", str, "auto", "what a resample draws: patients or studies where rows share one (auto: the widest known), or rows", of=TEST, choices=("auto", "row", "study", "patient")),
    Flag("scoring", "chexbert_path", str, None, "your chexbert.pth: clinical metrics by CheXbert beside those of our rules"),
    Flag("scoring", "chexbert_vocab", str, None, "vocab.txt of BERT-base-uncased [beside --chexbert_path]"),
    Flag("scoring", "extra_metrics", str, (), "metrics of optional packages: radgraph[:MODEL], radeval:METRIC", of=TEST, nargs="+"),
    Flag("scoring", "radgraph_dir", str, None, "folder with the radgraph package's models, one folder each [the package's cache]"),
    Flag("scoring", "score", str, None, "score this file of any system and leave: predictions CSV, CSV with ids, R2GenCMN's res.csv, ReXrank's JSON", of=TEST),
    Flag("scoring", "reference", str, None, "with --score and --compare: annotation.json that ids and references must come from", of=TEST),
    Flag("scoring", "compare", str, None, "two such files: differences b - a with paired-bootstrap intervals and p-values", of=TEST, nargs="+"),
    Flag("scoring", "table", str, None, "runs (folders) or metrics files: one table under the first of --protocols, seeds together", of=TEST, nargs="+"),
    Flag("scoring", "table_format", str, "markdown", "form of --table", of=TEST, choices=("markdown", "csv", "latex")),
    Flag("scoring", "export", str, None, "with --score: also write rexrank (with --rexrank: its entries and our predictions), res_gts (R2GenCMN's two CSV), radeval or csv; with --load: rexrank_submission, a folder with program and environment", of=TEST, choices=("rexrank", "rexrank_submission", "res_gts", "radeval", "csv")),
    Flag("scoring", "rexrank", str, None, "ReXrank's input file: generate a report for each of its studies into --out, going on where that stops", of=TEST),
    Flag("scoring", "rexrank_section", str, "findings", "with --score of a ReXrank predictions file: its references", of=TEST, choices=("findings", "findings+impression")),
    Flag("scoring", "out", str, None, "file that --compare (JSON), --table or --export writes; with --image: a folder for a page of the study", of=TEST),

    Flag("one image", "image", str, None, "images of one new study: prints report, diagnosis and expert report", of=TEST, nargs="+"),
)
# fmt: on

OLD_NAMES = {"picture_check": "image_check", "picture_cache": "image_cache", "labels": "labels_path", "base": "knowledge_path",
             "classifier": "adm_classifier", "rule": "adm_rule", "bot_weights": "bot_backbone_weights"}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Exact flag names only; an unknown one is answered with the nearest names. Errors come without the usage."""

    def __init__(self, **settings) -> None:
        ours: dict[str, Any] = {"usage": "%(prog)s [flags]", "formatter_class": argparse.RawTextHelpFormatter}
        super().__init__(allow_abbrev=False, **(ours | settings))

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def names(self) -> list[str]:
        """Names of the flags, without --; silent aliases too."""
        return [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]

    def parse_args(self, args=None, namespace=None):
        chosen, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self.answer(unknown))
        return chosen

    def answer(self, unknown: list[str]) -> str:
        """What to say about words that no flag takes."""
        names = {word[2:].split("=")[0]: "" for word in unknown if word.startswith("--")}
        if not names:
            return f"{' '.join(unknown)}: no flag takes this; a switch is --name or --no-name, without a value"
        return answer_unknown([], names, {"": self.names()}, {}, script=self.prog, model=None)


def add_flag(group, flag: Flag) -> None:
    """Add one row of the table to a group of any parser; the default is shown in the help, not set."""
    note = "" if flag.default in (None, "", ()) else f" [{flag.default}]"
    settings: dict[str, Any] = {"help": (flag.help + note).replace("%", "%%")}
    if flag.kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = flag.kind
        if flag.choices:
            settings["choices"] = flag.choices
        if flag.nargs:
            settings["nargs"] = flag.nargs
        if flag.nargs == "?":
            settings["const"] = ""
    group.add_argument(f"--{flag.name}", **settings)
    for old in (old for old, name in OLD_NAMES.items() if name == flag.name):  # silent for one release
        group.add_argument(f"--{old}", dest=flag.name, **(settings | {"help": argparse.SUPPRESS}))


HELP = frozenset({"-h", "--help", "--help_all"})


class RunParser(Parser):
    """Parser of main_train.py or main_test.py; every default is suppressed, so that the result holds what was typed."""

    def __init__(self, command: str, systems: Mapping, extra: tuple[Flag, ...] = ()) -> None:
        super().__init__(prog=f"main_{command}.py", argument_default=argparse.SUPPRESS, add_help=False)
        every = dict.fromkeys((*FLAGS, *extra, *(flag for system in systems.values() for flag in system.flags)))
        for flag in every:
            if command in flag.of:
                add_flag(self, flag)
        self.elsewhere = {flag.name: f"main_{flag.of[0]}.py alone reads it" for flag in every if command not in flag.of}
        self.published = {name: system.published_flags for name, system in systems.items()}
        self.reads = {name: [flag.name for flag in (*FLAGS, *extra, *system.flags) if command in flag.of]
                      for name, system in systems.items()}  # fmt: skip

    def read(self, argv: list[str]) -> argparse.Namespace:
        """What was typed. Flags that are not read are answered, with those of the systems' published code (exit code 2)."""
        chosen, unknown = self.parse_known_args(argv)
        names = dict.fromkeys(word[2:].split("=")[0] for word in unknown if word.startswith("--"))
        if names:
            self.error(self.refusal(argv, {name: self.elsewhere.get(name, "") for name in names}, getattr(chosen, "model", None)))
        if unknown:
            self.error(self.answer(unknown))
        return chosen

    def refusal(self, argv: list[str], unread: Mapping[str, str], model: str | None) -> str:
        """The answer to flags that are not read."""
        return answer_unknown(argv, unread, self.reads, self.published, script=f"python {self.prog}", model=model)


def read_typed(argv: list[str] | None, command: str, *, systems: Mapping, extra: tuple[Flag, ...] = ()) -> argparse.Namespace:
    """What stands on a command line, by name, and nothing else; `extra`: rows beside those of every run and of the systems."""
    argv = sys.argv[1:] if argv is None else argv
    return RunParser(command, systems, extra).read([word for word in argv if word not in HELP])


def parse(
    argv: list[str] | None, command: str, *, systems: Mapping, carried: dict | None = None, extra: tuple[Flag, ...] = (),
    fallback: str | None = None,
) -> argparse.Namespace:
    """Resolve the flags of `command` ("train" or "test"); --help and --help_all are answered here.

    systems: the table from --model to class. carried: flags stored in a checkpoint; they replace the presets as defaults,
    and a typed flag that would change the shape of the weights raises InputError. extra: further rows of this command.
    fallback: --model where none is typed or carried. Returns a namespace with every flag of
    every run and of the chosen system (also those of the other command, at their defaults), plus `typed`, the names that
    stood on the command line, `known`, the rows of these flags, and `cache_dir`, where caches are kept: --knowledge_dir, or
    None where it comes from the checkpoint under test, because what a file names is not written to.
    """  # fmt: skip
    argv = sys.argv[1:] if argv is None else list(argv)
    asked = HELP & set(argv)
    typed = vars(read_typed(argv, command, systems=systems, extra=extra))
    model = typed.get("model", (carried or {}).get("model") or fallback or next(iter(systems)))
    if model not in systems:
        near = difflib.get_close_matches(model, systems, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--model {model}: unknown, choose from {', '.join(sorted(systems))}{hint}")
    known = (*FLAGS, *extra, *systems[model].flags)
    values = {flag.name: flag.default for flag in known} | {"model": model}
    dataset = typed.get("dataset_name") or (carried or values).get("dataset_name", values["dataset_name"])
    foreign = {flag.name: f"read by {', '.join(name for name, system in systems.items() if flag in system.flags)}"
               for system in systems.values() for flag in system.flags if flag.name in typed and flag.name not in values}  # fmt: skip
    if foreign and not asked:
        raise InputError(RunParser(command, systems, extra).refusal(argv, foreign, model))
    preset = systems[model].presets.get(dataset, {})
    unknown = sorted(set(preset) - set(values))
    if unknown:
        raise InputError(f"preset ({model}, {dataset}) sets unknown flags: {', '.join(unknown)}")
    values.update(preset)
    if carried:
        values.update(_carried(known, values, carried, typed, moved=dataset != carried.get("dataset_name")))
    values.update(typed)
    if "visual_extractor" in typed and "image_size" not in typed and ":" in values["visual_extractor"]:
        from modules.nets.library_backbones import library_side  # here: help and --dry_run need no PyTorch

        values["image_size"] = library_side(values["visual_extractor"])
    values["save_dir"] = values["save_dir"] or own_folder("results", f"{model}_{values['dataset_name']}", values["limit"])
    values["dicom"] = values["dicom"] or ("mimic" if values["dataset_name"] == "mimic_cxr" else "voi")
    fill_paths(known, values)
    systems[model].settle(values, set(typed), carried=bool(carried))
    if asked:
        own = {flag.name for flag in systems[model].flags}
        others = {name: [flag for flag in system.flags if flag.name not in own] for name, system in systems.items() if name != model}
        print(help_text(command, systems[model].title, known, values, own, others, whole="--help_all" in asked))
        raise SystemExit(0)
    folder, usual = values["knowledge_dir"], own_folder("knowledge", str(dataset), values["limit"])
    named_by_file = carried and command == "test" and "knowledge_dir" not in typed and folder != usual
    cache_dir = None if named_by_file else folder
    return argparse.Namespace(**values, typed=frozenset(typed), known=known, cache_dir=cache_dir)


def _carried(known: tuple[Flag, ...], values: dict, carried: dict, typed: dict, *, moved: bool) -> dict:
    """What a checkpoint's flags set; paths stay behind when the data have moved."""
    fixed = {flag.name for flag in known if flag.keep == "shape"}
    changed = [
        f"--{name} {typed[name]}: the checkpoint was trained with {carried[name]}"
        for name in sorted(fixed & set(typed) & set(carried))
        if typed[name] != carried[name]
    ]
    if changed:
        raise InputError("these flags are fixed by the weights, leave them out:\n  - " + "\n  - ".join(changed))
    wrong = [f"{flag.name}: {str(carried[flag.name])[:40]}" for flag in known
             if flag.name in carried and not _fits(flag, carried[flag.name])]  # fmt: skip
    if wrong:
        raise InputError("the checkpoint (or run.json) is damaged: it holds flags of another kind: " + ", ".join(wrong))
    paths = {flag.name for flag in known if flag.keep == "path"}
    moved = moved or "data_dir" in typed
    return {name: value for name, value in carried.items() if name in values and not (moved and name in paths)}


def _fits(flag: Flag, value) -> bool:
    """Whether a stored value is one that the flag can have."""
    if value is None or value == flag.default:
        return True
    if flag.nargs in ("+", "*"):
        return isinstance(value, (list, tuple)) and all(_fits(replace(flag, nargs=""), part) for part in value)
    if flag.kind in (bool, str):
        return isinstance(value, flag.kind) and (not flag.choices or value in flag.choices)
    try:
        return not isinstance(value, (bool, str)) and flag.kind(str(value)) == value
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False


def own_folder(root: str, name: str, limit: int) -> str:
    """Where results or artefacts lie by default; those of a part of the data set (--limit) stand apart."""
    return f"{root}/{name}_limit{limit}" if limit else f"{root}/{name}"


def fill_paths(rows: Sequence[Flag], values: dict) -> None:
    """The places that follow from --dataset_name, --data_dir and --knowledge_dir, where none is given; `values` of a command
    that has no --ann_path, --image_dir or --limit goes without."""
    dataset = values["dataset_name"]
    values["data_dir"] = values["data_dir"] or f"data/{dataset}"
    for name, part in (("ann_path", "annotation.json"), ("image_dir", "images")):
        if name in values:
            values[name] = values[name] or str(Path(values["data_dir"]) / part)
    values["knowledge_dir"] = values["knowledge_dir"] or own_folder("knowledge", dataset, values.get("limit", 0))
    fill_files(rows, values, values["knowledge_dir"])


def fill_files(rows: Sequence[Flag], values: dict, folder: str) -> None:
    """The default places of artefacts below `folder`, their --knowledge_dir."""
    for flag in rows:
        if flag.file:
            values[flag.name] = values[flag.name] or str(Path(folder) / flag.file)


def kept_flags(args: argparse.Namespace) -> dict:
    """The flags a checkpoint carries: plain values by name."""
    return {flag.name: getattr(args, flag.name) for flag in args.known if flag.keep}


def all_flags(args: argparse.Namespace) -> dict:
    """Every resolved flag by name, for run.json."""
    return {flag.name: getattr(args, flag.name) for flag in args.known}
