"""EKAGen (Bu et al., CVPR 2024): expert knowledge by diagnosis, masked images, distillation from a teacher.

B studies, V views, P patches, L token positions, D width, K labels, K beams in `step`. Source of the numbers and of the
order of operations: the paper's figure and the behaviour of the released code (hnjzbss/EKAGen).
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from modules.checkpoint import is_ours, load_checkpoint, load_released, load_weights, rename_keys
from modules.errors import InputError, Problems
from modules.nets.knowledge_base import KnowledgeBase, load_knowledge
from modules.nets.pretrained import load_backbone, weights_problem
from modules.nets.transformer import DecoderLayer, EncoderLayer, Linear, WordCache, causal_mask, sine_positions, watched
from modules.nets.visual_extractor import VisualExtractor
from modules.text.labels import CHEXPERT_14
from modules.text.tokenizer import Tokenizer

STRIPPED_WORDS = json.loads((Path(__file__).parent / "ekagen_stripped_words.json").read_text(encoding="utf-8"))
VIEW_FIELD = {"complete": "images", "masked": "masked_images"}


def start_small(part: nn.Module) -> None:
    """Every matrix of the transformer starts xavier-uniform, as DETR's: word and position codes stay small beside content."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class Embedding(nn.Module):
    """Words with learned positions: ids [B, L] -> [B, L, D]; LayerNorm with BERT's eps 1e-12."""

    def __init__(self, vocab_size: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocab_size, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        start_small(self)

    def forward(self, ids: torch.Tensor, at: int = 0) -> torch.Tensor:
        places = self.position.weight[at : at + ids.shape[1]]
        return self.dropout(self.norm(self.word(ids) + places))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The layer's parameters by the names of modules.nets.knowledge_base.embed."""
        return {
            "word": self.word.weight.detach(),
            "position": self.position.weight.detach(),
            "weight": self.norm.weight.detach(),
            "bias": self.norm.bias.detach(),
        }

    def take(self, layer: dict[str, torch.Tensor]) -> None:
        """Start from the embedding layer that made a knowledge base."""
        for name, value in self.tensors().items():
            value.copy_(layer[name])


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


class EKAGen(nn.Module):
    """The generator, with its knowledge base and, in training, its frozen teacher.

    knowledge: None = no aligner (--no-iek). teacher: an EKAGen that sees `teacher_view`; None = no distillation.
    Losses: "ce" (padding counted, as published) and "gid" = T^2 KL(teacher || student) / B, weighted by delta.
    """

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
        self.aligners = None if knowledge is None else nn.ModuleList(Aligner(width) for _ in range(layers))
        self.head = nn.ModuleList((Linear(width, 512), Linear(512, 512), Linear(512, vocab_size)))
        self.knowledge = knowledge
        self.student_view, self.teacher_view, self.eval_view = student_view, teacher_view, eval_view
        self.temperature = temperature
        self.loss_weights = {"ce": 1.0, "gid": delta}
        self._teacher: list[EKAGen] = []  # in a list: not a submodule, so neither trained nor stored
        for part in (self.encoder, self.decoder, self.aligners):
            if part is not None:
                start_small(part)
        if knowledge is not None and knowledge.word is not None and knowledge.word.shape[0] == vocab_size:
            self.embedding.take(knowledge.layer())  # the base was embedded by this very layer

    # -- what the Trainer needs ------------------------------------------------------------------------------------

    @property
    def teacher(self) -> "EKAGen | None":
        return self._teacher[0] if self._teacher else None

    def set_teacher(self, teacher: "EKAGen | None") -> None:
        """Freeze `teacher` and distil from it; None ends distillation."""
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]

    def _apply(self, function, recurse=True):
        if self.teacher is not None:
            self.teacher._apply(function, recurse)
        return super()._apply(function, recurse)

    def needs(self, training: bool) -> set[str]:
        """Fields of Batch that are read."""
        views = [self.eval_view]
        if training:
            views = [self.student_view] + ([self.teacher_view] if self.teacher is not None else [])
        fields = {VIEW_FIELD[view] for view in views} | ({"tokens"} if training else set())
        return fields | ({"diagnosis"} if self.knowledge is not None else set())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group name; the trainer gives each group its learning rate."""
        own = set(self.extractor.parameters())
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return {"extractor": [p for p in trained if p in own], "rest": [p for p in trained if p not in own]}

    def losses(self, batch) -> dict[str, torch.Tensor]:
        """Named scalars of one batch; the trainer sums them with `loss_weights`."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        logits = self.logits(self.encode(batch, self.student_view), inputs).float()
        losses = {"ce": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
        if self.teacher is not None:
            with torch.no_grad():
                expert = self.teacher.logits(self.teacher.encode(batch, self.teacher_view), inputs).float()
            losses["gid"] = distillation(logits, expert, self.temperature)
        return losses

    def remarks(self, batch) -> dict[str, list[str]]:
        """Further columns of the predictions file: the diagnosis and the expert report that served as knowledge."""
        if self.knowledge is None:
            return {}
        rows = batch.diagnosis.tolist()
        columns = {"diagnosis": ["|".join(name for name, bit in zip(CHEXPERT_14, row) if bit) for row in rows]}
        experts = [self.knowledge.expert(row) for row in batch.diagnosis]
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
        features = self.project(self.extractor(images.flatten(0, 1)))
        height, width = features.shape[-2:]
        padding = self._patch_padding(batch, studies, views, height, width, features.device)
        position = sine_positions(padding.flatten(0, 1), features.shape[1]).unflatten(0, (studies, views)).flatten(1, 2)
        patches = features.flatten(2).mT.unflatten(0, (studies, views)).flatten(1, 2)
        mask = ~padding.flatten(1)[:, None, None, :]
        mask = None if batch.padding is None and batch.view_mask is None else mask
        position = position.to(patches.dtype)
        for layer in self.encoder:
            patches = layer(patches, position, mask)
        patches = self.encoder_norm(patches)
        memory = {"patches": patches, "outside": padding} | ({} if mask is None else {"mask": mask})
        for number, layer in enumerate(self.decoder):
            memory[f"keys.{number}"], memory[f"values.{number}"] = layer.patches(patches, position)
        if self.aligners is not None:
            iek = self.knowledge(batch.diagnosis)
            memory |= {f"knowledge.{number}": aligner.knowledge(iek) for number, aligner in enumerate(self.aligners)}
        return memory

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
        """Teacher-forced pass: tokens [B, L] -> [B, L, vocabulary]."""
        length = tokens.shape[1]
        x, position = self.embedding(tokens), self.embedding.position.weight[:length]
        report_mask, mask = causal_mask(tokens == self.padding), memory.get("mask")
        for number, layer in enumerate(self.decoder):
            x = layer(x, position, memory[f"keys.{number}"], memory[f"values.{number}"], mask, report_mask)
            if self.aligners is not None:
                x = self.aligners[number](x, memory[f"knowledge.{number}"][:, :length])
        return self._words(x)

    def attention(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        """Where each token looks before the next word is chosen: tokens [B, L] -> [B, L, V, h, w], sums to 1 per token.

        One teacher-forced pass, so it serves any report however it was written; mean over heads and layers.
        """
        with watched(layer.cross_attention for layer in self.decoder) as seen:
            self.logits(memory, tokens)
        return torch.stack(seen).mean(0).unflatten(-1, memory["outside"].shape[1:])

    def step(self, tokens: torch.Tensor, memory: dict, cache: WordCache | None) -> tuple[torch.Tensor, WordCache]:
        """The next word of each beam: tokens [B, K] (the last ones written) -> logits [B, K, vocabulary], cache."""
        studies, beams = tokens.shape
        if cache is None:
            sizes = {"layers": len(self.decoder), "length": self.embedding.position.num_embeddings}
            cache = WordCache(memory["keys.0"], beams=beams, **sizes)
        at = cache.at
        x = self.embedding(tokens.reshape(-1, 1), at).view(studies, beams, -1)
        position = self.embedding.position.weight[at]
        for number, (layer, past) in enumerate(zip(self.decoder, cache.layers())):
            keys, values = memory[f"keys.{number}"], memory[f"values.{number}"]
            x = layer.step(x, position, keys, values, memory.get("mask"), past)
            if self.aligners is not None:
                x = self.aligners[number](x, memory[f"knowledge.{number}"][:, at : at + 1])
        cache.at += 1
        return self._words(x), cache

    def _words(self, x: torch.Tensor) -> torch.Tensor:
        x = self.decoder_norm(x)
        for linear in self.head[:-1]:
            x = F.relu(linear(x))
        return self.head[-1](x)


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


# -- building ----------------------------------------------------------------------------------------------------------


def check(args, problems: Problems, *, training: bool, carried: bool = False) -> None:
    """Everything about this system that would fail later. Files are only looked for here.

    carried: the weights are a checkpoint of ours, which brings its knowledge base.
    """
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
        text = weights_problem(args.visual_extractor, args.extractor_weights, args.weights_dir, args.offline)
        problems.check(text is None, text or "")
        problems.check(
            not args.gid or args.teacher or args.gid_rounds,
            "--gid distils from a teacher: give --teacher FILE, train one here with --gid_rounds 1, or pass --no-gid",
        )
        problems.check(not (args.teacher and args.gid_rounds), "--teacher and --gid_rounds: give one of the two")
        problems.check(not args.teacher or Path(args.teacher).is_file(), f"--teacher {args.teacher}: no such file")


def make_tokenizer(reports, args) -> Tokenizer:
    """EKAGen's vocabulary; the released list of identifiers and clock times is left out. Marks: 0, 1, 2."""
    if args.vocab_path:
        return Tokenizer.from_file(args.vocab_path, cleaning=args.cleaning)
    return Tokenizer.build(reports, cleaning=args.cleaning, threshold=args.threshold, strip=STRIPPED_WORDS)


def build(args, tokenizer: Tokenizer, parts: dict | None = None) -> EKAGen:
    """The generator of the flags with random weights, and its knowledge base: from `parts` of a checkpoint, or read."""
    knowledge = None
    if args.iek and parts is not None:
        knowledge = KnowledgeBase.from_state(parts["knowledge"])
    elif args.iek:
        shape = {"length": args.max_seq_length, "width": args.d_model}
        knowledge = load_knowledge(args.knowledge_path, labels=CHEXPERT_14, **shape)
    extractor = VisualExtractor(args.visual_extractor, freeze=args.extractor_freeze, dilate=args.dilate)
    views = ("student_view", "teacher_view", "eval_view")
    return EKAGen(
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


def inputs(args, *, training: bool) -> set[str]:
    """What a run reads beside images and reports; training=False: what the studies that are written for must bring."""
    views = {args.eval_view, args.teacher_view if args.gid_rounds else args.eval_view}
    masks = args.adm and (training or "masked" in views)
    return ({"masks"} if masks else set()) | ({"diagnosis", "knowledge"} if args.iek else set())


def rounds(args) -> tuple[int, str | None]:
    """Students to be distilled one after another, else the file of the teacher or None."""
    return args.gid_rounds, args.teacher if args.gid else None


def teacher_flags(args):
    """The flags of round 0 of distillation: the teacher-to-be is trained and chosen on the view that it will see."""
    return argparse.Namespace(**{**vars(args), "student_view": args.teacher_view, "eval_view": args.teacher_view})


def parts(system: EKAGen) -> dict:
    """What a checkpoint holds beside the weights."""
    return {} if system.knowledge is None else {"knowledge": system.knowledge.state()}


def load_pretrained(system: EKAGen, args) -> None:
    """Start the visual extractor from its pretrained weights."""
    where = {"weights_dir": args.weights_dir, "offline": args.offline}
    load_backbone(system.extractor.body, args.visual_extractor, args.extractor_weights, **where)


def attach_teacher(system: EKAGen, args, tokenizer: Tokenizer, path) -> None:
    """Distil `system` from the weights at `path`; with --student_start teacher it also starts from them."""
    teacher = load_teacher(args, tokenizer, path)
    if args.student_start == "teacher":
        load_weights(system, teacher.state_dict(), f"--student_start teacher: {path}")
    system.set_teacher(teacher)


def load_teacher(args, tokenizer: Tokenizer, path) -> EKAGen:
    """A teacher for this run: a checkpoint of ours or the authors' *_t_model.pth; same words, any size of ours."""
    content = load_checkpoint(path)
    if not is_ours(content):
        teacher = build(args, tokenizer)
        load_start(teacher, content, str(path), args)
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
    teacher = build(argparse.Namespace(**{**vars(args), **content["flags"], **views}), theirs, content["parts"])
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


def released_state(state: dict) -> dict:
    """The authors' state_dict -> ours. Every key must have a rule, and no two may meet; InputError else."""
    return rename_keys(state, RULES, "EKAGen")


def load_start(system: EKAGen, content: dict, source: str, args) -> None:
    """Weights to test or to start from: a checkpoint of ours or a file of the authors."""
    if is_ours(content):
        load_weights(system, content["model"], source)
    else:
        load_released(system, released_state(content.get("model", content)), source, SIZES)


SIZES = (  # what a user can name -> the tensor and axis that shows it
    ("vocabulary (ids; --ann_path, --threshold or --vocab_path decide it)", "head.2.weight", 0),
    ("--d_model", "project.weight", 0),
    ("--max_seq_length", "embedding.position.weight", 0),
    ("--d_ff", "encoder.0.feed.linear1.weight", 0),
    ("width of --visual_extractor", "project.weight", 1),
)
