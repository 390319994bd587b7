"""EKAGen (Bu et al., CVPR 2024): expert knowledge by diagnosis, masked images, distillation from a teacher.

B studies, V views, P patches, L token positions, D width, K labels, K beams in `step`. Source of the numbers and of the
order of operations: the paper's figure and the behaviour of the released code (hnjzbss/EKAGen).
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.masks import MASK_FLAGS
from models.system import System
from modules.checkpoint import is_ours, load_checkpoint, load_weights, rename_keys
from modules.errors import InputError, Problems
from modules.flag_help import Theirs
from modules.flags import TRAIN, Flag, fraction, natural, not_negative, positive_float
from modules.nets.knowledge_base import KnowledgeBase, load_knowledge
from modules.nets.transformer import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    Linear,
    WordCache,
    causal_mask,
    sine_positions,
    start_small,
)
from modules.nets.visual_extractor import VisualExtractor
from modules.text.labels import CHEXPERT_14
from modules.text.tokenizer import Tokenizer

STRIPPED_WORDS = json.loads((Path(__file__).parent / "ekagen_stripped_words.json").read_text(encoding="utf-8"))
VIEW_FIELD = {"complete": "images", "masked": "masked_images"}
VIEWS = tuple(VIEW_FIELD)
VIEW_PRESETS = {  # the released training gives the teacher the masked image; the paper's figure the student
    "paper": {"teacher_view": "complete", "student_view": "masked", "eval_view": "masked"},
    "released": {"teacher_view": "masked", "student_view": "complete", "eval_view": "masked"},
}

# fmt: off
FLAGS = (
    Flag("knowledge", "knowledge_path", str, None, "knowledge base: ours or the authors' knowledge_prompt_*.pkl "
         "[<knowledge_dir>/base.pt]", file="base.pt"),
    Flag("ekagen", "adm", bool, True, "use the masked image (off: complete images everywhere)", keep="default"),
    Flag("ekagen", "iek", bool, True, "use the knowledge aligner (off: plain decoder)", keep="shape"),
    Flag("ekagen", "gid", bool, True, "distil from a frozen teacher", keep="default"),
    Flag("ekagen", "theta", fraction, 0.4, "a mask is used when its mean exceeds this", keep="default"),
    Flag("ekagen", "gamma", not_negative, 0.4, "factor on the pixels outside the mask", keep="default"),
    Flag("ekagen", "beta", not_negative, 1.0, "factor on the pixels inside the mask (1 as released)", keep="default"),
    Flag("ekagen", "delta", not_negative, 0.01, "weight of the distillation loss", of=TRAIN, keep="default"),
    Flag("ekagen", "temperature", positive_float, 4.0, "temperature of the distillation", of=TRAIN, keep="default"),
    Flag("ekagen", "teacher", str, None, "teacher checkpoint: ours or the authors' *_t_model.pth", of=TRAIN),
    Flag("ekagen", "gid_rounds", natural, 0, "train the teacher here: round 0 without distillation, then this many students",
         of=TRAIN),
    Flag("ekagen", "student_start", str, "fresh", "weights a student starts from: fresh (ImageNet and random), or its teacher's",
         of=TRAIN, choices=("fresh", "teacher")),
    Flag("ekagen", "view_preset", str, "paper", "which image goes where; sets the three flags below", keep="default",
         choices=tuple(VIEW_PRESETS)),
    Flag("ekagen", "teacher_view", str, None, "image the teacher sees [by --view_preset]", of=TRAIN, keep="default",
         choices=VIEWS),
    Flag("ekagen", "student_view", str, None, "image the student is trained on [by --view_preset]", of=TRAIN, keep="default",
         choices=VIEWS),
    Flag("ekagen", "eval_view", str, None, "image from which reports are generated [by --view_preset]", keep="default",
         choices=VIEWS),
)
# fmt: on
PUBLISHED_FLAGS = {  # of the authors' argparse, where ours has another name or none
    "mode": Theirs("", "main_train.py trains, main_test.py tests"),
    "config": Theirs("", "presets follow from --model and --dataset_name"),
    "ve_name": Theirs("--visual_extractor"),
    "backbone": Theirs("--visual_extractor"),
    "lr_backbone": Theirs("--lr_ve"),
    "lr": Theirs("--lr_ed"),
    "lr_drop": Theirs("--step_size"),
    "clip_max_norm": Theirs("--clip_norm"),
    "start_epoch": Theirs("", "--resume goes on where the run stopped"),
    "anno_path": Theirs("--ann_path"),
    "dilation": Theirs("", "--dilate is on, as published"),
    "position_embedding": Theirs("", "sine, as published"),
    "hidden_dim": Theirs("--d_model"),
    "dim_feedforward": Theirs("--d_ff"),
    "nheads": Theirs("--num_heads"),
    "enc_layers": Theirs("--num_layers", "encoder and decoder alike"),
    "dec_layers": Theirs("", "--num_layers is that of encoder and decoder"),
    "pre_norm": Theirs("", "as published"),
    "layer_norm_eps": Theirs("", "as published"),
    "pad_token_id": Theirs("", "0, as published"),
    "vocab_size": Theirs("", "counted in the training reports, --threshold decides"),
    "max_position_embeddings": Theirs("--max_seq_length"),
    "t_model_weight_path": Theirs("--teacher"),
    "detector_weight_path": Theirs("--diagnosisbot"),
    "diagnosisbot_model_weight_path": Theirs("--diagnosisbot"),
    "knowledge_prompt_path": Theirs("--knowledge_path"),
    "seg_dir": Theirs("--adm_masks"),
    "test_path": Theirs("--load", "of main_test.py"),
    "n_gpu": Theirs("", "torchrun --nproc_per_node N main_train.py ... takes N GPUs"),
}
_RELEASED = {"diagnosisbot": "knowledge/released/diagnosisbot.pth", "adm_masks": "{data_dir}/images300_array"}


class Aligner(nn.Module):
    """The knowledge aligner: W3 [W1 h ; W2 IEK], position by position, no residual.

    Being linear, its knowledge half does not depend on h: it is computed once per study and cached.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.expert, self.joint = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(2 * width, width),
        )

    def knowledge(self, iek: torch.Tensor) -> torch.Tensor:
        """iek [B, L, D] -> its share of the result [B, L, D]."""
        width = iek.shape[-1]
        return F.linear(self.expert(iek), self.joint.weight[:, width:], self.joint.bias)

    def forward(self, h: torch.Tensor, knowledge: torch.Tensor) -> torch.Tensor:
        return F.linear(self.own(h), self.joint.weight[:, : h.shape[-1]]) + knowledge


class EKAGen(System):
    """The generator, with its knowledge base and, in training, its frozen teacher.

    knowledge: None = no aligner (--no-iek). teacher: an EKAGen that sees `teacher_view`; None = no distillation.
    Losses: "ce" (padding counted, as published) and "gid" = T^2 KL(teacher || student) / B, weighted by delta.
    """

    title = "EKAGen"
    flags = (*MASK_FLAGS, *FLAGS)
    published_flags = PUBLISHED_FLAGS
    presets = {
        "iu_xray": {"batch_size": 8},
        "mimic_cxr": {
            "batch_size": 32, "threshold": 10, "cleaning": "mimic_cxr", "reference_words": 99, "reference_threshold": 10,
            "image_check": "quick", "num_workers": 8, "image_cache": False,
        },
        "miniature": {
            "visual_extractor": "efficientnet_lite0", "image_size": 128, "d_model": 128, "d_ff": 512, "num_layers": 2,
            "max_seq_length": 64, "max_gen_length": 63, "batch_size": 8, "epochs": 7, "lr_ve": 3e-4, "lr_ed": 1e-3,
            "step_size": 5, "clip_norm": 1.0, "student_start": "teacher",
        },
    }  # fmt: skip
    released_files = {
        "iu_xray": {**_RELEASED, "knowledge_path": "knowledge/released/knowledge_prompt_iu.pkl"},
        "mimic_cxr": {**_RELEASED, "knowledge_path": "knowledge/released/knowledge_prompt_mimic.pkl"},
    }
    released_key = "model"
    sizes = (
        ("vocabulary (ids; --ann_path, --threshold or --vocab_path decide it)", "head.2.weight", 0),
        ("--d_model", "project.weight", 0),
        ("--max_seq_length", "embedding.position.weight", 0),
        ("--d_ff", "encoder.0.feed.linear1.weight", 0),
        ("width of --visual_extractor", "project.weight", 1),
    )
    padding, bos, eos = 0, 1, 2

    def __init__(
        self,
        extractor: VisualExtractor,
        *,
        vocab_size: int,
        width: int = 256,
        heads: int = 8,
        inner: int = 2048,
        layers: int = 6,
        positions: int = 128,
        dropout: float = 0.1,
        knowledge: KnowledgeBase | None = None,
        student_view: str = "masked",
        teacher_view: str = "complete",
        eval_view: str = "masked",
        delta: float = 0.01,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must be an even multiple of {heads} heads")
        self.extractor = extractor
        self.project = nn.Conv2d(extractor.width, width, 1)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.embedding = Embedding(vocab_size, positions, width, dropout)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.aligners: Any = None if knowledge is None else nn.ModuleList(Aligner(width) for _ in range(layers))
        self.head = nn.ModuleList((Linear(width, 512), Linear(512, 512), Linear(512, vocab_size)))
        self.knowledge = knowledge
        self.student_view, self.teacher_view, self.eval_view = student_view, teacher_view, eval_view
        self.temperature = temperature
        self.loss_weights = {"ce": 1.0, "gid": delta}
        self.teacher: Teacher | None = None
        for part in (self.encoder, self.decoder, self.aligners):
            if part is not None:
                start_small(part)
        if knowledge is not None and knowledge.word is not None and knowledge.word.shape[0] == vocab_size:
            self.embedding.take(knowledge.layer())  # the base was embedded by this very layer

    # -- what the Trainer needs ------------------------------------------------------------------------------------

    def needs(self, training: bool) -> set[str]:
        """Fields of Batch that are read."""
        views = [self.eval_view]
        if training:
            views = [self.student_view] + ([self.teacher_view] if self.teacher is not None else [])
        fields = {VIEW_FIELD[view] for view in views} | ({"tokens"} if training else set())
        return fields | ({"diagnosis"} if self.knowledge is not None else set())

    def extractors(self):
        return [self.extractor] + ([self.teacher.system.extractor] if self.teacher is not None else [])

    def losses(self, batch) -> dict[str, torch.Tensor]:
        """Named scalars of one batch; the trainer sums them with `loss_weights`."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        logits = self.logits(self.encode(batch, self.student_view), inputs).float()
        losses = {"ce": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
        if self.teacher is not None:
            losses["gid"] = distillation(logits, self.teacher.logits(batch, self.teacher_view, inputs), self.temperature)
        return losses

    def remarks(self, batch, memory) -> dict[str, list[str]]:
        """Further columns of the predictions file: the diagnosis and the expert report that served as knowledge."""
        if self.knowledge is None:
            return {}
        rows = batch.diagnosis.tolist()
        columns = {"diagnosis": ["|".join(name for name, bit in zip(CHEXPERT_14, row) if bit) for row in rows]}
        experts = self.knowledge.experts(batch.diagnosis)
        columns["knowledge_distance"] = [str(expert["distance"]) for expert in experts]
        if self.knowledge.reports is not None:
            columns["knowledge_id"] = [expert["id"] for expert in experts]
            columns["knowledge_report"] = [expert["report"] for expert in experts]
        return columns

    # -- what decoding needs ---------------------------------------------------------------------------------------

    def encode(self, batch, view: str | None = None) -> dict[str, torch.Tensor]:
        """Everything about a study that no token changes, made once. First axis of every tensor: B.

        "patches" [B, P, D], the encoder's output; "outside" bool [B, V, h, w], their grid (True = no image there); per
        layer i "keys.i", "values.i" [B, heads, P, D / heads] and "knowledge.i" [B, L, D]; "mask" bool [B, 1, 1, P]
        (True = a real patch) where some are not.
        """
        images = getattr(batch, VIEW_FIELD[view or self.eval_view])
        studies, views = images.shape[:2]
        features = self.project(self._features(batch, images.flatten(0, 1)))
        height, width = features.shape[-2:]
        padding = self._patch_padding(batch, studies, views, height, width, features.device)
        position = sine_positions(padding.flatten(0, 1), features.shape[1]).unflatten(0, (studies, views)).flatten(1, 2)
        patches = features.flatten(2).mT.unflatten(0, (studies, views)).flatten(1, 2)
        whole = batch.padding is None and batch.view_mask is None
        mask = None if whole else ~padding.flatten(1)[:, None, None, :]
        position = position.to(patches.dtype)
        for layer in self.encoder:
            patches = layer(patches, position, mask)
        patches = self.encoder_norm(patches)
        memory = {"patches": patches, "outside": padding} | ({} if mask is None else {"mask": mask})
        for number, layer in enumerate(self.decoder):
            memory[f"keys.{number}"], memory[f"values.{number}"] = layer.patches(patches, position)
        if self.aligners is not None and self.knowledge is not None:
            iek = self.knowledge(batch.diagnosis)
            memory |= {f"knowledge.{number}": aligner.knowledge(iek) for number, aligner in enumerate(self.aligners)}
        return memory

    def _features(self, batch, images: torch.Tensor) -> torch.Tensor:
        """The extractor's features of images [B * V, 3, H, W]; zeros for an absent view, which batch norm must not meet."""
        rows = batch.real_views()
        if rows is None:
            return self.extractor(images)
        real = self.extractor(images.index_select(0, rows))
        return real.new_zeros(len(images), *real.shape[1:]).index_copy(0, rows, real)

    @staticmethod
    def _patch_padding(batch, studies, views, height, width, device) -> torch.Tensor:
        """bool [B, V, h, w], True = no image there."""
        padding = torch.zeros(studies, views, height, width, dtype=torch.bool, device=device)
        if batch.padding is not None:
            padding = F.interpolate(batch.padding.float(), size=(height, width)).bool()
        if batch.view_mask is not None:
            padding = padding | ~batch.view_mask[:, :, None, None]
        return padding

    def logits(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        """Teacher-forced pass: tokens [B, L] -> [B, L, W]."""
        report_mask = causal_mask(tokens == self.padding)
        reads = [partial(layer, report_mask=report_mask) for layer in self.decoder]
        return self._decode(self.embedding(tokens), slice(0, tokens.shape[1]), memory, reads)

    def step(self, tokens: torch.Tensor, memory: dict, cache: WordCache | None) -> tuple[torch.Tensor, WordCache]:
        """The next token of each beam: tokens [B, K] (the last ones) -> logits [B, K, W], cache."""
        if cache is None:
            sizes = {"layers": len(self.decoder), "length": self.embedding.position.num_embeddings}
            cache = WordCache(memory["keys.0"], beams=tokens.shape[1], **sizes)
        at = slice(cache.at, cache.at + 1)
        reads = [partial(layer.step, past=past) for layer, past in zip(self.decoder, cache.layers())]
        x = self.embedding(tokens.reshape(-1, 1), cache.at).view(*tokens.shape, -1)
        logits = self._decode(x, at, memory, reads)
        cache.at += 1
        return logits, cache

    def _decode(self, x: torch.Tensor, at: slice, memory: dict, reads: Sequence[Callable]) -> torch.Tensor:
        """The decoder and its head: embedded tokens x [B, L or K, D] at the positions `at` -> logits [B, L or K, W].

        reads: for each layer its pass over the whole report, or over one more token of every beam.
        """
        position = self.embedding.position.weight[at]
        for number, read in enumerate(reads):
            x = read(x, position, memory[f"keys.{number}"], memory[f"values.{number}"], memory.get("mask"))
            if self.aligners is not None:
                x = self.aligners[number](x, memory[f"knowledge.{number}"][:, at])
        x = self.decoder_norm(x)
        for linear in self.head[:-1]:
            x = F.relu(linear(x))
        return self.head[-1](x)

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def settle(cls, values, typed, *, carried) -> None:
        if "view_preset" in typed or not carried:
            for name, view in VIEW_PRESETS[values["view_preset"]].items():
                if name not in typed:
                    values[name] = view
        if values["adm_masks"] is None:
            ours = Path(values["knowledge_dir"]) / "adm_masks"
            values["adm_masks"] = str(ours if ours.is_dir() else Path(values["data_dir"]) / "images300_array")

    @classmethod
    def inputs(cls, args, *, training: bool) -> set[str]:
        views = {args.eval_view, args.teacher_view if args.gid_rounds else args.eval_view}
        masks = args.adm and (training or "masked" in views)
        return ({"masks"} if masks else set()) | ({"diagnosis", "knowledge"} if args.iek else set())

    @classmethod
    def check(cls, args, problems: Problems, *, training: bool, carried: bool = False) -> None:
        super().check(args, problems, training=training, carried=carried)
        if args.iek and not carried:
            how = "build it with python -m knowledge.build_base, or pass --no-iek"
            problems.check(Path(args.knowledge_path).is_file(), f"--knowledge_path: no file {args.knowledge_path}; {how}")
        problems.check(
            args.d_model % (2 * args.num_heads) == 0, f"--d_model {args.d_model} must be an even multiple of --num_heads"
        )
        problems.check(
            args.max_gen_length < args.max_seq_length,
            f"--max_gen_length {args.max_gen_length} must be below --max_seq_length {args.max_seq_length}, "
            "which counts BOS",
        )
        problems.check(
            not (args.adm and args.augment.startswith("crop")),
            f"--augment {args.augment} cuts every image on its own, which does not go with masked images: pass --no-adm",
        )
        if training:
            problems.check(
                not args.gid or args.teacher or args.gid_rounds,
                "--gid distils from a teacher: give --teacher FILE, train one here with --gid_rounds 1, or pass --no-gid",
            )
            problems.check(not (args.teacher and args.gid_rounds), "--teacher and --gid_rounds: give one of the two")
            problems.check(not args.teacher or Path(args.teacher).is_file(), f"--teacher {args.teacher}: no such file")

    @classmethod
    def make_tokenizer(cls, reports, args) -> Tokenizer:
        """EKAGen's vocabulary; the released list of identifiers and clock times is left out. Marks: 0, 1, 2."""
        if args.vocab_path:
            return Tokenizer.from_file(args.vocab_path, cleaning=args.cleaning)
        return Tokenizer.build(reports, cleaning=args.cleaning, threshold=args.threshold, strip=STRIPPED_WORDS)

    @classmethod
    def build(cls, args, tokenizer: Tokenizer, parts: dict | None = None) -> "EKAGen":
        """The generator of the flags with random weights, and its knowledge base: from `parts` of a checkpoint, or read."""
        knowledge = None
        if args.iek and parts is not None:
            knowledge = KnowledgeBase.from_state(parts["knowledge"])
        elif args.iek:
            shape = {"length": args.max_seq_length, "width": args.d_model}
            knowledge = load_knowledge(args.knowledge_path, labels=CHEXPERT_14, **shape)
        extractor = VisualExtractor(args.visual_extractor, freeze=args.extractor_freeze, dilate=args.dilate)
        views = ("student_view", "teacher_view", "eval_view")
        return cls(
            extractor,
            vocab_size=tokenizer.vocab_size,
            width=args.d_model,
            heads=args.num_heads,
            inner=args.d_ff,
            layers=args.num_layers,
            positions=args.max_seq_length,
            dropout=args.dropout,
            knowledge=knowledge,
            delta=args.delta,
            temperature=args.temperature,
            **{view: getattr(args, view) if args.adm else "complete" for view in views},
        )

    @classmethod
    def rounds(cls, args) -> tuple[int, str | None]:
        return args.gid_rounds, args.teacher if args.gid else None

    @classmethod
    def teacher_flags(cls, args):
        """The flags of round 0 of distillation: the teacher-to-be is trained and chosen on the view that it will see."""
        return argparse.Namespace(**{**vars(args), "student_view": args.teacher_view, "eval_view": args.teacher_view})

    def attach_teacher(self, args, tokenizer: Tokenizer, path) -> None:
        """Distil from the weights at `path`; with --student_start teacher it also starts from them."""
        teacher = load_teacher(args, tokenizer, path)
        if args.student_start == "teacher":
            load_weights(self, teacher.state_dict(), f"--student_start teacher: {path}")
        self.teacher = Teacher(teacher)

    def parts(self) -> dict:
        return {} if self.knowledge is None else {"knowledge": self.knowledge.state()}

    @classmethod
    def released_state(cls, state: dict) -> dict:
        return rename_keys(state, RULES, cls.title)


class Teacher:
    """A frozen EKAGen that gives the soft targets of GID. Not a module: it is neither trained nor stored with the student."""

    def __init__(self, system: EKAGen) -> None:
        self.system = system.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, batch, view: str, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, W] for tokens [B, L], the teacher looking at `view`; on the device of the tokens."""
        system = self.system.to(tokens.device)
        return system.logits(system.encode(batch, view), tokens).float()


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """GID's soft-target loss: T^2 KL(teacher || student), summed over positions and words, divided by B.

    logits [B, L, vocabulary] of both -> scalar. Source: Hinton et al. 2015 with the "batchmean" of the released code.
    """
    soft = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * soft / len(student)


def load_teacher(args, tokenizer: Tokenizer, path) -> EKAGen:
    """A teacher for this run: a checkpoint of ours or the authors' *_t_model.pth; same words, any size of ours."""
    content = load_checkpoint(path)
    if not is_ours(content):
        teacher = EKAGen.build(args, tokenizer)
        teacher.load_start(content, str(path))
        return teacher
    theirs = Tokenizer.from_state_dict(content["tokenizer"])
    if theirs.words != tokenizer.words:
        raise InputError(
            f"teacher {path} writes other words ({theirs.vocab_size} ids, this run {tokenizer.vocab_size}): "
            "train it on the same training reports with the same --threshold"
        )
    if content["flags"]["max_seq_length"] != args.max_seq_length:
        raise InputError(
            f"teacher {path} has {content['flags']['max_seq_length']} positions, this run {args.max_seq_length}"
        )
    views = {name: getattr(args, name) for name in ("teacher_view", "adm")}
    teacher = EKAGen.build(argparse.Namespace(**{**vars(args), **content["flags"], **views}), theirs, content["parts"])
    load_weights(teacher, content["model"], f"teacher {path}")
    return teacher


RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^backbone\.0\.body\.(.+)$", r"extractor.body.\1"),
        (r"^input_proj\.(.+)$", r"project.\1"),
        (r"^transformer\.encoder\.layers\.(\d+)\.self_attn\.(.+)$", r"encoder.\1.attention.\2"),
        (r"^transformer\.(encoder|decoder)\.layers\.(\d+)\.(linear[12]\..+)$", r"\1.\2.feed.\3"),
        (r"^transformer\.(encoder|decoder)\.layers\.(\d+)\.(norm[123]\..+)$", r"\1.\2.\3"),
        (r"^transformer\.decoder\.layers\.(\d+)\.self_attn\.(.+)$", r"decoder.\1.self_attention.\2"),
        (r"^transformer\.decoder\.layers\.(\d+)\.multihead_attn\.(.+)$", r"decoder.\1.cross_attention.\2"),
        (r"^transformer\.(encoder|decoder)\.norm\.(.+)$", r"\1_norm.\2"),
        (r"^transformer\.embeddings\.(word|position)_embeddings\.(.+)$", r"embedding.\1.\2"),
        (r"^transformer\.embeddings\.LayerNorm\.(.+)$", r"embedding.norm.\1"),
        (r"^transformer\.decoder\.fc1\.(\d+)\.(.+)$", r"aligners.\1.own.\2"),
        (r"^transformer\.decoder\.fc2\.(\d+)\.(.+)$", r"aligners.\1.expert.\2"),
        (r"^transformer\.decoder\.fc3\.(\d+)\.(.+)$", r"aligners.\1.joint.\2"),
        (r"^mlp\.layers\.(\d+)\.(.+)$", r"head.\1.\2"),
    )
)
