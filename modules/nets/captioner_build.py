"""From flags and released files to a Captioner: what every system of the family does alike."""

import re

import torch

from modules.checkpoint import is_ours, load_released, load_weights, rename_keys
from modules.errors import Problems
from modules.nets.pretrained import load_backbone, weights_problem
from modules.nets.visual_extractor import VisualExtractor
from modules.text.tokenizer import Tokenizer

MARKS = {"padding": 0, "bos": 0, "eos": 0}
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
SIZES = (  # what a user can name -> the tensor and axis that shows it
    ("vocabulary (ids; --ann_path, --threshold or --vocab_path decide it)", "head.weight", 0),
    ("--d_model", "word.weight", 1),
    ("--d_ff", "encoder.0.feed.linear1.weight", 0),
    ("width of --visual_extractor", "project.weight", 1),
)


def released_layout(state: dict, rules, what: str) -> dict:
    """The authors' state_dict -> ours by the family's rules and a system's own `rules`; every key is accounted for."""
    compiled = [(re.compile(pattern), name) for pattern, name in (*RULES, *rules)]
    return _stack_projections(rename_keys(state, compiled, what))


def _stack_projections(state: dict) -> dict:
    """The four Linear layers of each attention -> one stacked projection and the output's."""
    result, parts = {}, {}
    for key, value in state.items():
        match = re.match(r"^(.+)\.linears\.([0-3])\.(weight|bias)$", key)
        if match is None:
            result[key] = value
        elif match[2] == "3":
            result[f"{match[1]}.out_proj.{match[3]}"] = value
        else:
            parts.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
    return result | {key: torch.cat([rows[number] for number in sorted(rows)]) for key, rows in parts.items()}


def load_captioner(system, content: dict, source: str, released_state) -> None:
    """Weights to test or to start from: a checkpoint of ours or a file of the authors ({'state_dict': ...})."""
    if is_ours(content):
        load_weights(system, content["model"], source)
    else:
        load_released(system, released_state(content.get("state_dict", content)), source, SIZES)


def check_captioner(args, problems: Problems, *, training: bool) -> None:
    """Everything about the family's flags that would fail later."""
    problems.check(args.d_model % args.num_heads == 0, f"--d_model {args.d_model} must be a multiple of --num_heads")
    problems.check(args.d_model % 2 == 0, f"--d_model {args.d_model} must be even")
    problems.check(
        args.max_gen_length <= args.max_seq_length,
        f"--max_gen_length {args.max_gen_length} must not exceed --max_seq_length {args.max_seq_length}",
    )
    if training:
        text = weights_problem(args.visual_extractor, args.extractor_weights, args.weights_dir, args.offline)
        problems.check(text is None, text or "")


def make_tokenizer(reports, args) -> Tokenizer:
    """The family's vocabulary: words from 1, and 0 is padding, BOS and EOS alike."""
    if args.vocab_path:
        return Tokenizer.from_file(args.vocab_path, cleaning=args.cleaning, **MARKS)
    return Tokenizer.build(reports, cleaning=args.cleaning, threshold=args.threshold, **MARKS)


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


def load_pretrained(system, args) -> None:
    """Start the visual extractor from its pretrained weights."""
    where = {"weights_dir": args.weights_dir, "offline": args.offline}
    load_backbone(system.extractor.body, args.visual_extractor, args.extractor_weights, **where)
