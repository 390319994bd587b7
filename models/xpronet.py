"""XProNet (Wang, Bhalerao and He, ECCV 2022): prototypes of a study's labels, queried by patches and words.

B studies, P patches, L words, D width, K labels, n prototypes per label, R prototypes of a study. Source of the numbers and
of the order of operations: the paper and the behaviour of the released code (Markin-Wang/XProNet).
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.family import NOAM, PUBLISHED_FLAGS, TOPK, FamilySystem, captioner_settings, family_presets
from modules.errors import InputError
from modules.flag_help import Theirs
from modules.flags import TRAIN, Flag, fraction, natural, not_negative, positive_int
from modules.nets.captioner import start_matrices
from modules.nets.memory import MemoryResponse
from modules.safe_pickle import load_pickle
from modules.text.labels import CHEXPERT_14, NO_FINDING

# fmt: off
FLAGS = (
    Flag("xpronet", "prototypes", str, None, "prototypes: a file of ours or the authors', random, or none (no prototypes, no "
         "contrastive losses) [<knowledge_dir>/prototypes.pt]", of=TRAIN, keep="default", file="prototypes.pt"),
    Flag("xpronet", "num_prototypes", positive_int, 20, "prototypes per label", keep="shape"),
    Flag("xpronet", "d_txt_ebd", positive_int, 768, "text columns of a prototype", keep="shape"),
    Flag("xpronet", "d_img_ebd", natural, 0, "image columns of a prototype, 0 = as wide as the patches of --visual_extractor",
         keep="shape"),
    Flag("xpronet", "img_con", not_negative, 1.0, "weight of the contrastive loss of the patches' responses, 0 = off", of=TRAIN,
         keep="default"),
    Flag("xpronet", "txt_con", not_negative, 0.1, "weight of the contrastive loss of the words' responses, 0 = off", of=TRAIN,
         keep="default"),
    Flag("xpronet", "con_margin", fraction, 0.4, "margin: pairs without a common label are penalised above this cosine", of=TRAIN,
         keep="default"),
)
# fmt: on

# The order of the authors' labels, which their files do not state: that of CheXbert's output (checked: in the labels
# file that they ship every column is most like its name here).
RELEASED_LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip


class XProNet(FamilySystem):
    """Patches and words are fused with what the prototypes of the study's labels respond.

    Losses: "ce", "img_con" and "txt_con" (contrastive, of the mean responses of patches and of words). A study without a
    positive label counts as No Finding. prototypes=False: none of this, a plain transformer. eval_labels: field of Batch
    that holds the labels in evaluation ("diagnosis": predicted; "labels": those of the reports, an oracle).
    """

    title = "XProNet"
    flags = (*FamilySystem.flags, TOPK, *FLAGS)
    published_flags = PUBLISHED_FLAGS | {
        "cmm_size": Theirs("", "the prototypes take the memory's place: --num_prototypes for each label"),
        "cmm_dim": Theirs("", "the prototypes are as wide as --d_model"),
        "init_protypes_path": Theirs("--prototypes"),
        "num_protype": Theirs("--num_prototypes"),
        "num_cluster": Theirs("--num_prototypes"),
        "label_path": Theirs("", "--labels_path takes a CSV by column name; python -m knowledge.label_reports makes one"),
        "num_labels": Theirs("", "the 14 of CheXpert"),
        "weight_img_con_loss": Theirs("--img_con"),
        "weight_txt_con_loss": Theirs("--txt_con"),
        "img_con_margin": Theirs("--con_margin", "of both losses"),
        "txt_con_margin": Theirs("", "--con_margin is that of both losses"),
        "clip_option": Theirs("", "--clip_value or --clip_norm, 0 = off"),
        "warm_up_epochs": Theirs("--warmup_epochs"),
        "start_lr": Theirs("--lr_start"),
    }
    presets = family_presets(
        iu={
            **NOAM, "augment": "crop", "topk": 15, "epochs": 30, "lr_ve": 1e-3, "lr_ed": 2e-3, "step_size": 10, "seed": 7580,
            "drop_last": True, "monitor_metric": "r2gen/xsum",
        },
        mimic={"batch_size": 64, "lr_ve": 5e-5, "lr_ed": 1e-4, "step_size": 3, "precision": "fp16"},
        miniature={},
    )  # fmt: skip
    rules = (  # the memory's layers stand twice in the released file
        (r"^encoder_decoder\.protypes$", "prototypes"),
        (r"^encoder_decoder\.dim_reduction\.(.+)$", r"reduce.\1"),
        (r"^encoder_decoder\.fuse_feature\.(.+)$", r"fuse_patches.\1"),
        (r"^encoder_decoder\.model\.fuse_feature\.(.+)$", r"fuse_words.\1"),
        (r"^encoder_decoder\.(?:model\.)?cmn\.(.+)$", r"respond.\1"),
    )

    def __init__(self, *, prototypes: bool = True, per_label: int = 20, text: int = 768, image: int = 0, topk: int = 15,
                 img_con: float = 1.0, txt_con: float = 0.1, margin: float = 0.4, eval_labels: str = "diagnosis",
                 width: int, heads: int, dropout: float, **settings) -> None:  # fmt: skip
        super().__init__(width=width, heads=heads, dropout=dropout, **settings)
        self.per_label, self.margin, self.eval_labels = per_label, margin, eval_labels
        self.prototypes = None
        if prototypes:
            columns = text + (image or self.extractor.width)
            self.prototypes = nn.Parameter(torch.randn(len(CHEXPERT_14) * per_label, columns) / columns**0.5)
            self.reduce = nn.Linear(columns, width)
            self.respond = MemoryResponse(width, heads, topk, dropout)
            self.fuse_patches, self.fuse_words = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
            for part in (self.respond, self.fuse_words):  # parts of the published transformer
                start_matrices(part)
            self.loss_weights |= {"img_con": img_con, "txt_con": txt_con}

    def needs(self, training):
        fields = super().needs(training)
        return fields if self.prototypes is None else fields | {"labels" if training else self.eval_labels}

    def labels(self, batch) -> torch.Tensor:
        """bool [B, K]; no label at all becomes No Finding."""
        positive = (batch.labels if self.training or self.eval_labels == "labels" else batch.diagnosis) == 1
        positive[:, CHEXPERT_14.index(NO_FINDING)] |= ~positive.any(1)
        return positive

    def prepare(self, batch):
        """Also with the numbers of each study's prototypes: "rows" int [B, R] and "rows.real" bool [B, R]."""
        batch = super().prepare(batch)
        if self.prototypes is None:
            return batch
        rows, real = self.rows(self.labels(batch))
        return dataclasses.replace(batch, prepared=batch.prepared | {"rows": rows, "rows.real": real})

    def rows(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """labels bool [B, K] -> the positive ones' prototypes, int [B, R], zeros after them, and which are real, bool [B, R]."""
        counts = labels.sum(1) * self.per_label
        real = torch.arange(int(counts.max())) < counts[:, None]
        chosen = labels.repeat_interleave(self.per_label, 1).nonzero()[:, 1]  # study after study, label after label
        return torch.zeros(real.shape, dtype=torch.long).masked_scatter(real, chosen), real

    def lookup(self, batch, features):
        """The study's own rows: "rows.keys", "rows.values" [B, heads, R, d] and "rows.mask" bool [B, R]."""
        if self.prototypes is None:
            return {}
        prepared = batch.prepared if "rows" in batch.prepared else self.prepare(batch).prepared
        real = prepared["rows.real"]
        keys, values = self.respond.rows(self.gather(prepared["rows"], real))
        return {"rows.keys": keys, "rows.values": values, "rows.mask": real}

    def gather(self, rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Numbers of prototypes int [B, R] -> the prototypes [B, R, D], zeros where they are not real."""
        return self.reduce(self.prototypes)[rows] * real[..., None]

    def response(self, x, memory):
        return self.respond(x, memory["rows.keys"], memory["rows.values"], memory["rows.mask"])

    def read_patches(self, patches, memory, bank):
        if self.prototypes is None:
            return patches
        answer = self.response(patches, memory)
        memory["seen"] = mean_of(answer, memory.get("mask"))
        return self.fuse_patches(torch.cat([patches, answer], -1))

    def read_words(self, words, memory, bank):
        if self.prototypes is None:
            return words
        answer = self.response(words, memory)
        if "said" in memory:
            memory["said"] = answer.mean(1)
        return self.fuse_words(torch.cat([words, answer], -1))

    def losses(self, batch):
        memory = self.encode(batch) | {"said": None}  # read_words fills it
        losses = self.word_losses(batch, memory)
        for name, response in (("img_con", "seen"), ("txt_con", "said")):
            if self.loss_weights.get(name):
                losses[name] = contrastive_loss(memory[response], self.labels(batch), self.margin)
        return losses

    def remarks(self, batch, memory):
        if self.prototypes is None:
            return {}
        rows = self.labels(batch).tolist()
        return {"labels": ["|".join(name for name, bit in zip(CHEXPERT_14, row) if bit) for row in rows]}

    @classmethod
    def check(cls, args, problems, *, training: bool, carried: bool = False) -> None:
        """What would fail later; a prototypes file is looked into, since only its shape tells whether it fits."""
        super().check(args, problems, training=training, carried=carried)
        if args.prototypes == "none":
            return
        text = f"--topk {args.topk} exceeds --num_prototypes {args.num_prototypes}: a study with one label has no more"
        problems.check(args.topk <= args.num_prototypes, text)
        if training and args.prototypes != "random":
            how = "build it with python -m knowledge.build_prototypes, pass --from_scratch, or start from --prototypes random"
            if problems.check(Path(args.prototypes).is_file(), f"--prototypes: no file {args.prototypes}; {how}"):
                try:
                    read_prototypes(args.prototypes)
                except InputError as error:
                    problems.add(str(error))

    @classmethod
    def inputs(cls, args, *, training: bool) -> set[str]:
        """Labels: those of the training reports; for other studies predicted ones or, with --oracle_labels, their reports'."""
        if args.prototypes == "none":
            return set()
        if training:
            return {"labels"} | ({"prototypes"} if args.prototypes != "random" else set())
        return {"labels"} if args.oracle_labels and not args.diagnosis_path else {"diagnosis"}

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "XProNet":
        return cls(
            prototypes=args.prototypes != "none",
            per_label=args.num_prototypes,
            text=args.d_txt_ebd,
            image=args.d_img_ebd,
            topk=args.topk,
            img_con=args.img_con,
            txt_con=args.txt_con,
            margin=args.con_margin,
            eval_labels="labels" if "labels" in cls.inputs(args, training=False) else "diagnosis",
            **captioner_settings(args, tokenizer),
        )

    def load_pretrained(self, args) -> None:
        """Start the visual extractor from its pretrained weights and the prototypes from their file."""
        super().load_pretrained(args)
        if self.prototypes is None or args.prototypes in ("none", "random"):
            return
        rows = read_prototypes(args.prototypes)
        if rows.shape != self.prototypes.shape:
            raise InputError(
                f"--prototypes {args.prototypes} has {list(rows.shape)}, this run {list(self.prototypes.shape)} "
                "(14 x --num_prototypes, --d_txt_ebd + --d_img_ebd): build it for this --visual_extractor"
            )
        self.prototypes.data.copy_(rows)

    @classmethod
    def released_state(cls, state: dict) -> dict:
        renamed = super().released_state(state)
        if "prototypes" in renamed:
            renamed["prototypes"] = in_our_order(renamed["prototypes"])
        return renamed


def mean_of(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real positions: x [B, P, D], mask bool [B, 1, 1, P] or None -> [B, D]."""
    if mask is None:
        return x.mean(1)
    real = mask[:, 0, 0, :, None]
    return (x * real).sum(1) / real.sum(1)


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Multi-label contrastive loss over all pairs of studies: features [B, D], labels bool [B, K] -> scalar.

    A pair that shares a label is drawn together up to a cosine of 1.5^-(share of differing labels), another pair is pushed
    apart down to `margin`.
    """
    features, labels = F.normalize(features.float(), dim=-1), labels.float()
    cosine = features @ features.mT
    common = labels @ labels.mT
    counts = labels.sum(1)
    total = counts[:, None] + counts
    target = 1.5 ** -((total - 2 * common) / total)
    return torch.where(common > 0, (target - cosine).relu(), (cosine - margin).relu()).sum() / len(labels) ** 2


def read_prototypes(path) -> torch.Tensor:
    """[K * n, columns] in the order of CHEXPERT_14, from a file of ours or the authors' bare tensor; InputError else."""
    content = load_pickle(path)
    if isinstance(content, torch.Tensor) and content.dim() == 2 and len(content) % len(RELEASED_LABELS) == 0:
        return in_our_order(content.float())
    if not isinstance(content, dict) or content.get("what") != "prototypes":
        raise InputError(f"--prototypes {path} holds no prototypes: expected a file of ours or a tensor [14 * n, columns]")
    if content["labels"] != list(CHEXPERT_14):
        raise InputError(f"--prototypes {path} is of other labels: {', '.join(content['labels'])}")
    return content["prototypes"]


def in_our_order(rows: torch.Tensor) -> torch.Tensor:
    """Rows by the authors' labels [K * n, columns] -> by ours."""
    places = [RELEASED_LABELS.index(label) for label in CHEXPERT_14]
    return rows.unflatten(0, (len(places), -1))[places].flatten(0, 1)
