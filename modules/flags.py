"""The one table of flags. A row is a flag; a preset carries the numbers of a (model, data set); a typed flag wins.

`parse` reads the command line in two stages: --model and --dataset_name choose the preset, the preset sets defaults,
what was typed overrides them. A checkpoint carries the flags it was trained with: they are the defaults of a test, and
those that fix the shape of the weights cannot be changed any more.
"""

import argparse
import difflib
import math
from dataclasses import dataclass
from pathlib import Path

from modules.errors import InputError

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
    names another data set, "" = belongs to one command only. systems: those that read it, () = all; typed with another
    one it is refused.
    """

    group: str
    name: str
    kind: object
    default: object
    help: str
    of: tuple = BOTH
    keep: str = ""
    choices: tuple = ()
    nargs: str = ""
    systems: tuple = ()


VIEWS = ("complete", "masked")
VIEW_PRESETS = {  # the released training gives the teacher the masked image; the paper's figure the student
    "paper": {"teacher_view": "complete", "student_view": "masked", "eval_view": "masked"},
    "released": {"teacher_view": "masked", "student_view": "complete", "eval_view": "masked"},
}
AUGMENTATIONS = ("aligned", "released", "crop", "crop_flip", "rotate", "none")
EKAGEN, R2GENCMN, R2GEN, XPRONET = (("ekagen",), ("r2gencmn",), ("r2gen",), ("xpronet",))
EXTRACTORS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "efficientnet_lite0")

# fmt: off
FLAGS = (
    Flag("run", "model", str, "ekagen", "system to train or test", keep="shape"),
    Flag("run", "dataset_name", str, "iu_xray", "data set, chooses paths and defaults; custom: any set in R2Gen's annotation format", keep="default", choices=("iu_xray", "mimic_cxr", "miniature", "custom")),
    Flag("run", "save_dir", str, None, "results folder of this run [results/<model>_<dataset_name>]"),
    Flag("run", "seed", natural, 42, "seed of weights, order, augmentation and dropout"),
    Flag("run", "device", str, "auto", "auto takes CUDA when there is one", choices=("auto", "cpu", "cuda")),
    Flag("run", "precision", str, "float32", "arithmetic of the forward pass; weights stay float32", choices=("float32", "bf16", "fp16")),
    Flag("run", "deterministic", bool, False, "ask PyTorch for deterministic kernels (slower on CUDA; the CPU is deterministic without it)"),
    Flag("run", "num_workers", natural, 2, "processes that load images"),
    Flag("run", "dry_run", bool, False, "resolve flags, check inputs, print the result as JSON and leave"),
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
    Flag("data", "augment", str, "aligned", "training images: aligned = one draw for all views, no flip, small rotation; released = as EKAGen's code (flips, quarter turns, views drawn apart); crop = each image resized to 8/7 of the side and cut at random; crop_flip = also mirrored, as R2Gen's code", of=TRAIN, choices=AUGMENTATIONS),
    Flag("data", "resize_filter", str, "bicubic", "how images are resized", keep="default", choices=("bicubic", "bilinear")),
    Flag("data", "skip_broken", bool, False, "go on without studies whose image or report is missing or broken; they are counted in the results"),
    Flag("data", "image_check", str, "full", "before the first batch decode every image (full) or read its header and end (quick)", choices=("full", "quick")),
    Flag("data", "image_cache", bool, True, "decode and resize each image once, into <knowledge_dir>/images (image_size^2 bytes per grey image; off for MIMIC-CXR, where that is 25 GB)"),
    Flag("data", "vocab_path", str, None, "JSON word list to use instead of the one counted in the training reports"),

    Flag("knowledge", "diagnosis_path", str, None, "CSV of diagnoses by study id (columns: id and the 14 labels), instead of a DiagnosisBot", keep="path"),
    Flag("knowledge", "diagnosisbot", str, None, "DiagnosisBot: ours or the authors' diagnosisbot.pth [<knowledge_dir>/diagnosisbot.pt]"),
    Flag("knowledge", "knowledge_dir", str, None, "folder of the data set's artefacts [knowledge/<dataset_name>]", keep="path"),
    Flag("knowledge", "oracle_labels", bool, False, "allow diagnoses made from the reports of the split that is scored; marked as oracle in every table"),
    Flag("knowledge", "adm_masks", str, None, "ADM masks: our packed store or the authors' tree of .npy files [<knowledge_dir>/adm_masks, else <data_dir>/images300_array]", keep="path", systems=EKAGEN),
    Flag("knowledge", "adm_classifier", str, None, "ADM classifier, put into the checkpoint so that a new image can be masked [<knowledge_dir>/adm_classifier.pt]", systems=EKAGEN),
    Flag("knowledge", "knowledge_path", str, None, "knowledge base: ours or the authors' knowledge_prompt_*.pkl [<knowledge_dir>/base.pt]", systems=EKAGEN),

    Flag("knowledge", "from_scratch", bool, False, "first build what the system reads and is missing: labels, DiagnosisBot, ADM masks, knowledge base, prototypes", of=TRAIN),
    Flag("knowledge", "labels_path", str, None, "labels of the reports (CSV by column name) instead of our labeler's [<knowledge_dir>/labels.csv]", keep="path"),
    Flag("knowledge", "bot_backbone", str, None, "with --from_scratch: network of the DiagnosisBot [swin_t, on miniature efficientnet_lite0]", of=TRAIN),
    Flag("knowledge", "adm_backbone", str, None, "with --from_scratch: network of the ADM classifier [resnet34, on miniature efficientnet_lite0]", of=TRAIN, systems=EKAGEN),
    Flag("knowledge", "bot_weights", str, None, "with --from_scratch: where both start: imagenet, none, or a weight file [imagenet]", of=TRAIN),

    Flag("ekagen", "adm", bool, True, "use the masked image (off: complete images everywhere)", keep="default", systems=EKAGEN),
    Flag("ekagen", "iek", bool, True, "use the knowledge aligner (off: plain decoder)", keep="shape", systems=EKAGEN),
    Flag("ekagen", "gid", bool, True, "distil from a frozen teacher", keep="default", systems=EKAGEN),
    Flag("ekagen", "theta", fraction, 0.4, "a mask is used when its mean exceeds this", keep="default", systems=EKAGEN),
    Flag("ekagen", "gamma", not_negative, 0.4, "factor on the pixels outside the mask", keep="default", systems=EKAGEN),
    Flag("ekagen", "beta", not_negative, 1.0, "factor on the pixels inside the mask (1 as released)", keep="default", systems=EKAGEN),
    Flag("ekagen", "adm_rule", str, "released", "how a map becomes a mask: released (as the published masks) or cam (map > 0.6)", keep="default", choices=("released", "cam"), systems=EKAGEN),
    Flag("ekagen", "delta", not_negative, 0.01, "weight of the distillation loss", of=TRAIN, keep="default", systems=EKAGEN),
    Flag("ekagen", "temperature", positive_float, 4.0, "temperature of the distillation", of=TRAIN, keep="default", systems=EKAGEN),
    Flag("ekagen", "teacher", str, None, "teacher checkpoint: ours or the authors' *_t_model.pth", of=TRAIN, systems=EKAGEN),
    Flag("ekagen", "gid_rounds", natural, 0, "train the teacher here: round 0 without distillation, then this many students", of=TRAIN, systems=EKAGEN),
    Flag("ekagen", "student_start", str, "fresh", "weights a student starts from: fresh (ImageNet and random), or its teacher's", of=TRAIN, choices=("fresh", "teacher"), systems=EKAGEN),
    Flag("ekagen", "view_preset", str, "paper", "which image goes where; sets the three flags below", keep="default", choices=tuple(VIEW_PRESETS), systems=EKAGEN),
    Flag("ekagen", "teacher_view", str, None, "image the teacher sees [by --view_preset]", of=TRAIN, keep="default", choices=VIEWS, systems=EKAGEN),
    Flag("ekagen", "student_view", str, None, "image the student is trained on [by --view_preset]", of=TRAIN, keep="default", choices=VIEWS, systems=EKAGEN),
    Flag("ekagen", "eval_view", str, None, "image used when writing reports [by --view_preset]", keep="default", choices=VIEWS, systems=EKAGEN),

    Flag("r2gencmn", "mem_size", natural, 2048, "rows of the memory matrix, 0 = no memory (the paper's base)", keep="shape", systems=R2GENCMN),
    Flag("r2gencmn, xpronet", "topk", positive_int, 32, "memory rows that answer a query, per head", keep="default", systems=R2GENCMN + XPRONET),
    Flag("r2gen", "relational_memory", bool, True, "drive the decoder by a relational memory (off: plain transformer, the paper's base)", keep="shape", systems=R2GEN),
    Flag("r2gen", "mcln", bool, True, "memory-driven conditional layer norm (off: the memory joins the output layer's input)", keep="shape", systems=R2GEN),
    Flag("r2gen", "rm_num_slots", positive_int, 3, "slots of the relational memory", keep="shape", systems=R2GEN),
    Flag("xpronet", "prototypes", str, None, "prototypes: a file of ours or the authors', random, or none (no prototypes, no contrastive losses) [<knowledge_dir>/prototypes.pt]", of=TRAIN, keep="default", systems=XPRONET),
    Flag("xpronet", "num_prototypes", positive_int, 20, "prototypes per label", keep="shape", systems=XPRONET),
    Flag("xpronet", "d_txt_ebd", positive_int, 768, "text columns of a prototype", keep="shape", systems=XPRONET),
    Flag("xpronet", "d_img_ebd", natural, 0, "image columns of a prototype, 0 = as wide as the patches of --visual_extractor", keep="shape", systems=XPRONET),
    Flag("xpronet", "img_con", not_negative, 1.0, "weight of the contrastive loss of the patches' responses, 0 = off", of=TRAIN, keep="default", systems=XPRONET),
    Flag("xpronet", "txt_con", not_negative, 0.1, "weight of the contrastive loss of the words' responses, 0 = off", of=TRAIN, keep="default", systems=XPRONET),
    Flag("xpronet", "con_margin", fraction, 0.4, "cosine that studies without a common label may have unpunished", of=TRAIN, keep="default", systems=XPRONET),

    Flag("generator", "visual_extractor", str, "resnet101", "backbone", keep="shape", choices=EXTRACTORS),
    Flag("generator", "extractor_weights", str, "imagenet", "imagenet, none (random, said in a warning), or a weight file", of=TRAIN),
    Flag("generator", "extractor_freeze", str, "stem", "stem: first stages and batch norm fixed, as published; norm: batch norm only; all; none", keep="shape", choices=("stem", "norm", "all", "none")),
    Flag("generator", "dilate", bool, True, "dilate the last ResNet stage (stride 16) as published", keep="shape"),
    Flag("generator", "d_model", positive_int, 256, "width of the transformer", keep="shape"),
    Flag("generator", "num_heads", positive_int, 8, "attention heads", keep="shape"),
    Flag("generator", "d_ff", positive_int, 2048, "width of the feed-forward layers", keep="shape"),
    Flag("generator", "num_layers", positive_int, 6, "layers of encoder and decoder each", keep="shape"),
    Flag("generator", "dropout", fraction, 0.1, "dropout of the transformer", of=TRAIN, keep="default"),
    Flag("generator", "feature_dropout", fraction, 0.5, "dropout of the projected patches", of=TRAIN, keep="default", systems=R2GENCMN + R2GEN + XPRONET),

    Flag("training", "batch_size", positive_int, 8, "studies per step, over all processes and --accumulate"),
    Flag("training", "compile", bool, False, "compile the training step: minutes at the start; measure whether it pays (on CPUs it did not)", of=TRAIN),
    Flag("training", "accumulate", positive_int, 1, "batches that a step's studies are taken in one after another, for small memories", of=TRAIN),
    Flag("training", "epochs", positive_int, 50, "passes over the training studies", of=TRAIN),
    Flag("training", "lr_ve", not_negative, 1e-5, "learning rate of the visual extractor", of=TRAIN),
    Flag("training", "lr_ed", positive_float, 1e-4, "learning rate of everything else", of=TRAIN),
    Flag("training", "optimizer", str, "adamw", "adamw: decoupled weight decay; adam: weight decay added to the gradient (L2)", of=TRAIN, choices=("adamw", "adam")),
    Flag("training", "amsgrad", bool, False, "divide by the largest second moment so far", of=TRAIN),
    Flag("training", "adam_beta1", fraction, 0.9, "Adam's first decay rate", of=TRAIN),
    Flag("training", "adam_beta2", fraction, 0.999, "Adam's second decay rate", of=TRAIN),
    Flag("training", "adam_eps", positive_float, 1e-8, "Adam's epsilon", of=TRAIN),
    Flag("training", "weight_decay", not_negative, 1e-4, "weight decay of --optimizer", of=TRAIN),
    Flag("training", "step_size", positive_int, 20, "epochs between drops of the learning rate", of=TRAIN),
    Flag("training", "lr_gamma", positive_float, 0.1, "factor of each drop", of=TRAIN),
    Flag("training", "clip_norm", not_negative, 0.1, "largest gradient norm, 0 = no clipping", of=TRAIN),
    Flag("training", "clip_value", not_negative, 0.0, "largest size of a single gradient value, 0 = no clipping", of=TRAIN),
    Flag("training", "drop_last", bool, False, "leave out the last batch of an epoch where it is not full", of=TRAIN),
    Flag("training", "monitor_metric", str, "r2gen/CIDEr", "validation metric that chooses best.pt (larger is better); r2gen/xsum = BLEU-4 + .33 BLEU-1 + .67 METEOR", of=TRAIN),
    Flag("training", "early_stop", natural, 0, "stop after this many epochs without a better value, 0 = never", of=TRAIN),
    Flag("training", "log_every", positive_int, 50, "steps between rows of log.jsonl", of=TRAIN),

    Flag("decoding", "beam_size", positive_int, 1, "beams kept per study, 1 is greedy", keep="default"),
    Flag("decoding", "beam_search", str, "ours", "ours: ended reports are set aside; released: as R2Gen's code, an ended report stays a beam, its score lowered by 1000", keep="default", choices=("ours", "released")),
    Flag("decoding", "max_gen_length", positive_int, 127, "most words of a written report", keep="default"),
    Flag("decoding", "min_gen_length", natural, 0, "fewest words before EOS may come", keep="default"),
    Flag("decoding", "length_penalty", str, "none", "beam scores divided by: nothing, the mean (avg), or ((5+n)/6)^0.7 (wu)", keep="default", choices=("none", "avg", "wu")),
    Flag("decoding", "sample", bool, False, "draw words instead of taking the best (seeded by study id and --seed)", keep="default"),
    Flag("decoding", "sample_temperature", positive_float, 1.0, "logits are divided by this before a draw", keep="default"),
    Flag("decoding", "top_k", natural, 0, "draw among the k best words, 0 = all", keep="default"),
    Flag("decoding", "block_trigrams", bool, False, "lower words that would repeat a trigram (R2Gen's soft block); beam 1 only", keep="default"),

    Flag("scoring", "split", str, "test", "split to write and score", of=TEST, choices=("train", "val", "test")),
    Flag("scoring", "protocols", str, ("r2gen", "clean", "ptb"), "preparations of the texts before scoring", of=TEST, choices=("r2gen", "clean", "ptb"), nargs="+"),
    Flag("scoring", "page", bool, True, "write the results page (index.html) with images and attention", of=TEST),
    Flag("scoring", "reference_words", positive_int, 59, "protocol r2gen: references are cut at this many words", keep="default"),
    Flag("scoring", "reference_threshold", positive_int, 3, "protocol r2gen: rarer words of the references become <unk>", keep="default"),

    Flag("scoring", "bootstrap", natural, 1000, "resamples of the studies for 95% intervals and --compare, 0 = none", of=TEST),
    Flag("scoring", "chexbert_path", str, None, "your chexbert.pth: clinical metrics by CheXbert beside those of our rules", of=TEST),
    Flag("scoring", "chexbert_vocab", str, None, "vocab.txt of BERT-base-uncased [beside --chexbert_path]", of=TEST),
    Flag("scoring", "extra_metrics", str, (), "metrics of optional packages: radgraph[:MODEL], radeval:METRIC", of=TEST, nargs="+"),
    Flag("scoring", "radgraph_dir", str, None, "folder with the radgraph package's models, one folder each [the package's cache]", of=TEST),
    Flag("scoring", "score", str, None, "score this file of any system and leave: predictions CSV, CSV with ids, R2GenCMN's res.csv, ReXrank's JSON", of=TEST),
    Flag("scoring", "reference", str, None, "with --score and --compare: annotation.json that ids and references must come from", of=TEST),
    Flag("scoring", "compare", str, None, "two such files: differences b - a with paired-bootstrap intervals and p-values", of=TEST, nargs="+"),
    Flag("scoring", "table", str, None, "runs (folders) or metrics files: one table under the first of --protocols, seeds together", of=TEST, nargs="+"),
    Flag("scoring", "table_format", str, "markdown", "form of --table", of=TEST, choices=("markdown", "csv", "latex")),
    Flag("scoring", "export", str, None, "with --score: also write the submission file of this leaderboard", of=TEST, choices=("rexrank",)),
    Flag("scoring", "out", str, None, "file that --compare (JSON), --table or --export writes", of=TEST),

    Flag("one image", "image", str, None, "images of one new study: prints report, diagnosis and expert report", of=TEST, nargs="+"),
)
# fmt: on

# Numbers as published (systems' papers and released scripts); what is not named keeps the table's default.
PRESETS: dict[tuple[str, str], dict] = {
    ("ekagen", "iu_xray"): {"batch_size": 8},
    ("ekagen", "mimic_cxr"): {
        "batch_size": 32, "threshold": 10, "cleaning": "mimic_cxr", "reference_words": 99, "reference_threshold": 10,
        "image_check": "quick", "num_workers": 8, "image_cache": False,
    },
    ("ekagen", "miniature"): {
        "visual_extractor": "efficientnet_lite0", "image_size": 128, "d_model": 128, "d_ff": 512, "num_layers": 2,
        "max_seq_length": 64, "max_gen_length": 63, "batch_size": 8, "epochs": 7, "lr_ve": 3e-4, "lr_ed": 1e-3,
        "step_size": 5, "clip_norm": 1.0, "student_start": "teacher",
    },
    ("ekagen", "custom"): {},
}  # fmt: skip

# The family of R2Gen: what its systems share, what each has of its own, and what each data set changes.
_FAMILY = {
    "image_size": 224, "resize_filter": "bilinear", "augment": "crop_flip", "max_views": 2,
    "visual_extractor": "resnet101", "extractor_freeze": "none", "dilate": False, "d_model": 512, "d_ff": 512, "num_layers": 3,
    "max_seq_length": 60, "max_gen_length": 60, "beam_size": 3, "beam_search": "released", "block_trigrams": True,
    "batch_size": 16, "epochs": 100, "optimizer": "adam", "amsgrad": True, "weight_decay": 5e-5, "lr_gamma": 0.8,
    "clip_norm": 0.0, "monitor_metric": "r2gen/BLEU_4", "early_stop": 50,
}  # fmt: skip
_MIMIC = {
    "max_views": 1, "max_seq_length": 100, "max_gen_length": 100, "threshold": 10, "cleaning": "mimic_cxr",
    "reference_words": 99, "reference_threshold": 10, "epochs": 30, "image_check": "quick", "num_workers": 8,
    "image_cache": False,
}  # fmt: skip
_MINIATURE = {  # reports that say left and right: no mirrors; one sentence for all has the best BLEU-4: chosen by CIDEr
    "visual_extractor": "efficientnet_lite0", "image_size": 128, "augment": "crop", "d_model": 128, "d_ff": 256,
    "num_heads": 4, "num_layers": 2, "feature_dropout": 0.1, "max_seq_length": 64, "max_gen_length": 64, "batch_size": 8,
    "epochs": 8, "lr_ve": 3e-4, "lr_ed": 1e-3, "step_size": 6, "lr_gamma": 0.3, "clip_norm": 1.0, "clip_value": 0.0,
    "extractor_freeze": "stem", "monitor_metric": "r2gen/CIDEr",
}  # fmt: skip
_CUSTOM = {"augment": "crop"}
_NOAM = {"adam_beta2": 0.98, "adam_eps": 1e-9}
_OWN = {
    "r2gencmn": {
        "iu_xray": {**_NOAM, "lr_ve": 1e-4, "lr_ed": 5e-4, "step_size": 10, "seed": 7580},
        "mimic_cxr": {"step_size": 3, "seed": 9153},
        "miniature": {"mem_size": 256, "topk": 16},
    },
    "r2gen": {
        "iu_xray": {"lr_ve": 5e-5, "lr_ed": 1e-4, "step_size": 50, "lr_gamma": 0.1, "clip_value": 0.1, "seed": 9223},
        "mimic_cxr": {"step_size": 1, "lr_gamma": 0.8, "seed": 456789},
        "miniature": {},
    },
    "xpronet": {
        "iu_xray": {
            **_NOAM, "augment": "crop", "topk": 15, "epochs": 30, "lr_ve": 1e-3, "lr_ed": 2e-3, "step_size": 10, "seed": 7580,
            "drop_last": True, "monitor_metric": "r2gen/xsum",
        },
        "mimic_cxr": {"batch_size": 64, "lr_ve": 5e-5, "lr_ed": 1e-4, "step_size": 3, "precision": "fp16"},
        "miniature": {},
    },
}  # fmt: skip
for _system, _own in _OWN.items():
    _published = {**_FAMILY, **_own["iu_xray"]}
    PRESETS[_system, "iu_xray"] = _published
    PRESETS[_system, "mimic_cxr"] = {**_published, **_MIMIC, **_own["mimic_cxr"]}
    PRESETS[_system, "miniature"] = {**_published, **_MINIATURE, **_own["miniature"]}
    PRESETS[_system, "custom"] = {**_published, **_CUSTOM}

OLD_NAMES = {"picture_check": "image_check", "picture_cache": "image_cache"}

# Where our builders put the artefacts of a data set, below --knowledge_dir.
ARTEFACTS = {
    "diagnosisbot": "diagnosisbot.pt",
    "adm_classifier": "adm_classifier.pt",
    "knowledge_path": "base.pt",
    "prototypes": "prototypes.pt",
    "labels_path": "labels.csv",
}

# Where the authors' files are expected when --load is one of them and nothing else is typed.
RELEASED_FILES: dict[tuple[str, str], dict] = {
    ("ekagen", "iu_xray"): {
        "diagnosisbot": "knowledge/released/diagnosisbot.pth",
        "knowledge_path": "knowledge/released/knowledge_prompt_iu.pkl",
    },
    ("ekagen", "mimic_cxr"): {
        "diagnosisbot": "knowledge/released/diagnosisbot.pth",
        "knowledge_path": "knowledge/released/knowledge_prompt_mimic.pkl",
    },
}


class Parser(argparse.ArgumentParser):
    """Exact flag names only; an unknown one is answered with the nearest names."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter, **settings)

    def parse_args(self, args=None, namespace=None):
        chosen, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            hints = []
            for word in unknown:
                near = difflib.get_close_matches(word.split("=")[0], known, n=2)
                hints.append(f"{word}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
            self.error("unknown flag: " + ", ".join(hints))
        return chosen


def add_flag(group, flag: Flag) -> None:
    """Add one row of the table to a group of any parser; the default is shown in the help, not set."""
    note = "" if flag.default in (None, "", ()) else f" [{flag.default}]"
    settings = {"help": (flag.help + note).replace("%", "%%")}
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


def build_parser(command: str) -> Parser:
    """Parser of "train" or "test"; every default is suppressed, so that the result holds what was typed."""
    parser = Parser(prog=f"main_{command}.py", argument_default=argparse.SUPPRESS)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag in FLAGS:
        if command in flag.of:
            if flag.group not in groups:
                groups[flag.group] = parser.add_argument_group(flag.group)
            add_flag(groups[flag.group], flag)
    return parser


def parse(argv: list[str] | None, command: str, *, systems: tuple[str, ...], carried: dict | None = None):
    """Resolve the flags of `command` ("train" or "test").

    carried: flags stored in a checkpoint; they replace the presets as defaults, and a typed flag that would change the
    shape of the weights raises InputError. Returns a namespace with every flag of the table (also those of the other
    command, at their defaults), plus `typed`: the names that stood on the command line.
    """
    typed = vars(build_parser(command).parse_args(argv))
    values = {flag.name: flag.default for flag in FLAGS}
    model = typed.get("model", (carried or values)["model"])
    dataset = typed.get("dataset_name", (carried or values)["dataset_name"])
    if model not in systems:
        near = difflib.get_close_matches(model, systems, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--model {model}: unknown, choose from {', '.join(sorted(systems))}{hint}")
    foreign = [flag.name for flag in FLAGS if flag.name in typed and flag.systems and model not in flag.systems]
    if foreign:
        raise InputError(f"--{', --'.join(foreign)}: --model {model} does not read that; leave it out")
    preset = PRESETS.get((model, dataset), {})
    unknown = sorted(set(preset) - set(values))
    if unknown:
        raise InputError(f"preset ({model}, {dataset}) sets unknown flags: {', '.join(unknown)}")
    values.update(preset)
    if carried:
        fixed = {flag.name for flag in FLAGS if flag.keep == "shape"}
        changed = [
            f"--{name} {typed[name]}: the checkpoint was trained with {carried[name]}"
            for name in sorted(fixed & set(typed) & set(carried))
            if typed[name] != carried[name]
        ]
        if changed:
            raise InputError("these flags are fixed by the weights, leave them out:\n  - " + "\n  - ".join(changed))
        paths = {flag.name for flag in FLAGS if flag.keep == "path"}
        moved = dataset != carried["dataset_name"] or "data_dir" in typed
        values.update({k: v for k, v in carried.items() if k in values and not (moved and k in paths)})
    values.update(typed)
    if "view_preset" in typed or not carried:
        for name, view in VIEW_PRESETS[values["view_preset"]].items():
            if name not in typed:
                values[name] = view
    args = argparse.Namespace(**values, typed=frozenset(typed))
    args.save_dir = args.save_dir or f"results/{args.model}_{args.dataset_name}"
    args.data_dir = args.data_dir or f"data/{args.dataset_name}"
    args.ann_path = args.ann_path or str(Path(args.data_dir) / "annotation.json")
    args.image_dir = args.image_dir or str(Path(args.data_dir) / "images")
    args.knowledge_dir = args.knowledge_dir or f"knowledge/{args.dataset_name}"
    if args.adm_masks is None:
        ours = Path(args.knowledge_dir) / "adm_masks"
        args.adm_masks = str(ours if ours.is_dir() else Path(args.data_dir) / "images300_array")
    for name, file in ARTEFACTS.items():
        setattr(args, name, getattr(args, name) or str(Path(args.knowledge_dir) / file))
    return args


def kept_flags(args) -> dict:
    """The flags a checkpoint carries: plain values by name."""
    return {flag.name: getattr(args, flag.name) for flag in FLAGS if flag.keep}


def all_flags(args) -> dict:
    """Every resolved flag by name, for run.json."""
    return {flag.name: getattr(args, flag.name) for flag in FLAGS}
