"""The family of R2Gen (Chen et al. 2020, 2021; Wang et al. 2022): what its systems do alike, from flags to released files.

The encoder-decoder itself stands in modules/nets/captioner.py.
"""

import re
from typing import Any, ClassVar

import torch

from models.system import System
from modules.checkpoint import rename_keys
from modules.errors import Problems
from modules.flag_help import Theirs
from modules.flags import TRAIN, Flag, fraction, positive_int
from modules.nets.captioner import Captioner
from modules.nets.visual_extractor import VisualExtractor
from modules.text.tokenizer import Tokenizer

MARKS: dict[str, Any] = {"padding": 0, "bos": 0, "eos": 0}
STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
PARTS = {"self_attn": "self_attention", "src_attn": "cross_attention", "a_2": "weight", "gamma": "weight", "b_2": "bias",
         "beta": "bias"}  # fmt: skip

# Keys of the family's released files that all its systems have.
RULES = (
    (r"^visual_extractor\.model\.([014567])\.(.+)$", lambda m: f"extractor.body.{STAGES[m[1]]}.{m[2]}"),
    (r"^encoder_decoder\.att_embed\.0\.(.+)$", r"project.\1"),
    (r"^encoder_decoder\.model\.encoder\.layers\.(\d+)\.self_attn\.(.+)$", r"encoder.\1.attention.\2"),
    (
        r"^encoder_decoder\.model\.decoder\.layers\.(\d+)\.(self_attn|src_attn)\.(.+)$",
        lambda m: f"decoder.{m[1]}.{PARTS[m[2]]}.{m[3]}",
    ),
    (r"^encoder_decoder\.model\.(encoder|decoder)\.layers\.(\d+)\.feed_forward\.w_([12]\..+)$", r"\1.\2.feed.linear\3"),
    (
        r"^encoder_decoder\.model\.(encoder|decoder)\.layers\.(\d+)\.sublayer\.(\d)\.norm\.(a_2|b_2|gamma|beta)$",
        lambda m: f"{m[1]}.{m[2]}.norm{int(m[3]) + 1}.{PARTS[m[4]]}",
    ),
    (
        r"^encoder_decoder\.model\.(encoder|decoder)\.norm\.(a_2|b_2|gamma|beta)$",
        lambda m: f"{m[1]}_norm.{PARTS[m[2]]}",
    ),
    (r"^encoder_decoder\.model\.tgt_embed\.0\.lut\.(.+)$", r"word.\1"),
    (r"^encoder_decoder\.logit\.(.+)$", r"head.\1"),
    (r"^encoder_decoder\.model\.(?:src|tgt)_embed\.\d\.pe$", None),  # sinusoids, built on construction
)

FEATURE_DROPOUT = Flag("generator", "feature_dropout", fraction, 0.5, "dropout of the projected patches", of=TRAIN,
                       keep="default")  # fmt: skip
TOPK = Flag("memory", "topk", positive_int, 32, "memory rows that answer a query, per head", keep="default")

# The family's argparse where ours has another name or none; what its systems add stands with them.
_LEVEL = "larger is better in every metric offered"
PUBLISHED_FLAGS = {
    "visual_extractor_pretrained": Theirs("", "--extractor_weights imagenet, none or a file"),
    "d_vf": Theirs("", "the backbone brings its width"),
    "logit_layers": Theirs("", "one layer, as published"),
    "bos_idx": Theirs("", "0, as published"),
    "eos_idx": Theirs("", "0, as published"),
    "pad_idx": Theirs("", "0, as published"),
    "use_bn": Theirs("", "none, as published"),
    "drop_prob_lm": Theirs("--feature_dropout"),
    "sample_method": Theirs("", "beam search is --beam_size 2 and more, greedy --beam_size 1, drawing --sample"),
    "temperature": Theirs("--sample_temperature"),
    "sample_n": Theirs("", "one report per study"),
    "group_size": Theirs("", "no diverse beam search, as published"),
    "output_logsoftmax": Theirs("", "always on, as published"),
    "decoding_constraint": Theirs("", "off, as published"),
    "n_gpu": Theirs("", "torchrun --nproc_per_node N main_train.py ... takes N GPUs"),
    "record_dir": Theirs("", "run.json and log.jsonl lie in --save_dir; main_test.py --table compares runs"),
    "log_period": Theirs("--log_every", "steps"),
    "save_period": Theirs("", "last.pt after every epoch, best.pt whenever it is better"),
    "monitor_mode": Theirs("", _LEVEL),
    "optim": Theirs("", "--optimizer adam (as published) or adamw"),
    "adam_betas": Theirs("", "--adam_beta1 and --adam_beta2"),
    "noamopt_warmup": Theirs("", "the published training does not use it; --warmup_epochs does the like"),
    "noamopt_factor": Theirs("", "the published training does not use it"),
    "lr_scheduler": Theirs("", "--lr_schedule step (StepLR, as published) or cosine"),
    "gamma": Theirs("--lr_gamma"),
}

# The released scripts' numbers: what all share on IU X-Ray, and what each data set changes.
_IU = {
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
NOAM = {"adam_beta2": 0.98, "adam_eps": 1e-9}


def family_presets(*, iu: dict, mimic: dict, miniature: dict) -> dict[str, dict]:
    """The presets of a system, from what each data set changes beside what the family shares."""
    published = {**_IU, **iu}
    return {
        "iu_xray": published,
        "mimic_cxr": {**published, **_MIMIC, **mimic},
        "miniature": {**published, **_MINIATURE, **miniature},
        "custom": {**published, "augment": "crop"},
    }


def released_layout(state: dict, rules, what: str) -> dict:
    """The authors' state_dict -> ours by the family's rules and a system's own `rules`; every key is accounted for."""
    compiled = [(re.compile(pattern), name) for pattern, name in (*RULES, *rules)]
    return stack_projections(rename_keys(state, compiled, what))


def stack_projections(state: dict) -> dict:
    """The four Linear layers of each attention -> one stacked projection and the output's."""
    result = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        match = re.match(r"^(.+)\.linears\.([0-3])\.(weight|bias)$", key)
        if match is None:
            result[key] = value
        elif match[2] == "3":
            result[f"{match[1]}.out_proj.{match[3]}"] = value
        else:
            parts.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
    return result | {key: torch.cat([rows[number] for number in sorted(rows)]) for key, rows in parts.items()}


class FamilySystem(Captioner, System):
    """A system of the family: Captioner's hooks change the network, the rest is alike.

    rules: names of the authors' keys that are the system's own, for `released_layout`.
    """

    flags: ClassVar[tuple[Flag, ...]] = (FEATURE_DROPOUT,)
    rules: ClassVar[tuple] = ()
    sizes: ClassVar[tuple[tuple[str, str, int], ...]] = (
        ("vocabulary (ids; --ann_path, --threshold or --vocab_path decide it)", "head.weight", 0),
        ("--d_model", "word.weight", 1),
        ("--d_ff", "encoder.0.feed.linear1.weight", 0),
        ("width of --visual_extractor", "project.weight", 1),
    )

    @classmethod
    def check(cls, args, problems: Problems, *, training: bool, carried: bool = False) -> None:
        super().check(args, problems, training=training, carried=carried)
        problems.check(args.d_model % args.num_heads == 0, f"--d_model {args.d_model} must be a multiple of --num_heads")
        problems.check(args.d_model % 2 == 0, f"--d_model {args.d_model} must be even")
        problems.check(
            args.max_gen_length <= args.max_seq_length,
            f"--max_gen_length {args.max_gen_length} must not exceed --max_seq_length {args.max_seq_length}",
        )

    @classmethod
    def make_tokenizer(cls, reports, args) -> Tokenizer:
        """Words from 1; 0 is padding, BOS and EOS alike."""
        if args.vocab_path:
            return Tokenizer.from_file(args.vocab_path, cleaning=args.cleaning, **MARKS)
        return Tokenizer.build(reports, cleaning=args.cleaning, threshold=args.threshold, **MARKS)

    @classmethod
    def released_state(cls, state: dict) -> dict:
        return released_layout(state, cls.rules, cls.title)


def captioner_settings(args, tokenizer: Tokenizer) -> dict:
    """The keywords of Captioner, the extractor with random weights among them."""
    return {
        "extractor": VisualExtractor(args.visual_extractor, freeze=args.extractor_freeze, dilate=args.dilate),
        "vocab_size": tokenizer.vocab_size,
        "width": args.d_model,
        "heads": args.num_heads,
        "inner": args.d_ff,
        "layers": args.num_layers,
        "max_tokens": args.max_seq_length,
        "dropout": args.dropout,
        "feature_dropout": args.feature_dropout,
    }
