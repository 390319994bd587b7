"""The contract of a system: what Trainer, decoding, scoring and results page ask of it.

B studies, V views, L tokens, K beams in `step`, W ids of the vocabulary. A plain encoder-decoder states `build`,
`released_state`, `losses`, `encode` and `step`; the rest has the defaults below. No other file knows a system by name.
"""

import argparse
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from modules.checkpoint import is_ours, load_released, load_weights
from modules.errors import InputError, Problems
from modules.flag_help import Theirs
from modules.flags import Flag
from modules.nets.library_backbones import is_library, shape_problem
from modules.nets.pretrained import load_backbone, weights_problem
from modules.nets.transformer import watched
from modules.nets.visual_extractor import VisualExtractor
from modules.text.tokenizer import Tokenizer


class System(nn.Module):
    """Base class of the published systems.

    flags: what this system reads beside the flags of every run. presets: data set -> {flag: value}, the published numbers;
    what is not named keeps the flag's default. released_files: data set -> {flag: where the authors' file is expected}
    when --load is one of theirs; "{data_dir}" in it stands for that flag. sizes: (what a user can name, tensor of the
    state_dict, axis) for the message about released weights of another shape. published_flags: what to answer to flags of
    the authors' code that are not ours. released_key: where the weights lie in the
    authors' file. released_search: what --beam_search released means, a row of SEARCHES in modules/decoding.py.
    idle_parameters: there are some that a batch may leave without a gradient.
    """

    title: ClassVar[str]
    flags: ClassVar[tuple[Flag, ...]] = ()
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    released_files: ClassVar[dict[str, dict[str, str]]] = {}
    sizes: ClassVar[tuple[tuple[str, str, int], ...]] = ()
    published_flags: ClassVar[dict[str, Theirs]] = {}
    released_key: ClassVar[str] = "state_dict"
    released_search: ClassVar[str] = "lowered"
    idle_parameters: ClassVar[bool] = False

    tokenizer_kind: ClassVar[type] = Tokenizer
    padding_ends: ClassVar[bool] = True  # a predicted padding ends a report, and beam search never predicts it

    padding: int
    bos: int
    eos: int
    loss_weights: dict[str, float]
    extractor: VisualExtractor
    decoder: Any  # layers that `attention` watches

    # -- flags and building ------------------------------------------------------------------------------------------

    @classmethod
    def settle(cls, values: dict[str, Any], typed: set[str], *, carried: bool) -> None:
        """Fill in flags that follow from others, in place. carried: the values come from a checkpoint of ours."""

    @classmethod
    def inputs(cls, args: argparse.Namespace, *, training: bool) -> set[str]:
        """What a run reads beside images and reports.

        Of the studies "masks", "diagnosis", "labels", "scene_graphs"; of files "knowledge", "prototypes". training=False:
        what the studies bring for which reports are generated.
        """
        return set()

    @classmethod
    def views(cls, args: argparse.Namespace) -> tuple[tuple[str, int], ...] | None:
        """The views in Batch.images, (kind, number of the study's image), see data/views.py; None: the complete images."""
        return None

    @classmethod
    def facts(cls, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
        """What run.json says of this system beside the flags."""
        return {}

    @classmethod
    def marks(cls, args: argparse.Namespace) -> tuple[str, ...]:
        """What every table must say of a run with these flags, in a few words each."""
        return ()

    @classmethod
    def check(cls, args: argparse.Namespace, problems: Problems, *, training: bool, carried: bool = False) -> None:
        """Note everything about this system that would fail later; files are only looked for.

        carried: the weights are a checkpoint of ours, which brings its `parts`.
        """
        if training and not args.load:  # else these weights come from there
            text = weights_problem(args.visual_extractor, args.extractor_weights, args.weights_dir, args.offline)
            problems.check(text is None, text or "")
        if is_library(args.visual_extractor):
            text = shape_problem(args.visual_extractor, args.image_size)
            problems.check(text is None, text or "")

    @classmethod
    def make_tokenizer(cls, reports, args: argparse.Namespace):
        """The system's vocabulary from the training reports (raw texts or their Corpus)."""
        raise NotImplementedError

    @classmethod
    def build(cls, args: argparse.Namespace, tokenizer, parts: dict | None = None) -> "System":
        """The system of the flags with random weights; parts: what a checkpoint holds beside the weights."""
        raise NotImplementedError

    @classmethod
    def rounds(cls, args: argparse.Namespace) -> tuple[int, str | None]:
        """Students to be distilled one after another (0: one plain training), and the teacher's file if one is given."""
        return 0, None

    @classmethod
    def teacher_flags(cls, args: argparse.Namespace) -> argparse.Namespace:
        """The flags of round 0, which trains the teacher-to-be; asked where `rounds` says so."""
        return args

    def attach_teacher(self, args: argparse.Namespace, tokenizer, path) -> None:
        """Distil from the weights at `path`; asked where `rounds` says so."""
        raise NotImplementedError

    def load_pretrained(self, args: argparse.Namespace) -> None:
        """Start what begins from pretrained weights or a file."""
        where = {"weights_dir": args.weights_dir, "offline": args.offline}
        load_backbone(self.extractor.body, args.visual_extractor, args.extractor_weights, **where)

    def load_start(self, content: dict, source: str) -> None:
        """Weights to test or to start from: a checkpoint of ours or a file of the authors. Strict; InputError else."""
        if is_ours(content):
            load_weights(self, content["model"], source)
        else:
            state = self.released_state(content.get(self.released_key, content))
            load_released(self, state, source, self.sizes)

    @classmethod
    def released_state(cls, state: dict) -> dict:
        """The authors' state_dict -> ours. Every key must have a rule, and no two may meet; InputError else."""
        raise NotImplementedError

    def parts(self) -> dict:
        """What a checkpoint holds beside the weights: plain values and tensors."""
        return {}

    # -- what the Trainer needs --------------------------------------------------------------------------------------

    def needs(self, training: bool) -> set[str]:
        """Fields of Batch that are read; the others are not loaded."""
        return {"images", "tokens"} if training else {"images"}

    def extractors(self) -> list[nn.Module]:
        """All that look at images: features of a cache are given to each of them."""
        return [self.extractor]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group name; --lr_ve is the rate of "extractor", --lr_ed that of every other group."""
        own = set(self.extractor.parameters())
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return {"extractor": [p for p in trained if p in own], "rest": [p for p in trained if p not in own]}

    def prepare(self, batch):
        """The batch with all that can be counted or cut on the CPU; asked in the mode of the pass, before it moves to the device.

        What is kept in batch.prepared need not be asked of the device: a question waits until it has worked off its queue.
        """
        return batch

    def losses(self, batch) -> dict[str, torch.Tensor]:
        """Named scalars of one prepared batch; the Trainer sums them with `loss_weights`."""
        raise NotImplementedError

    def loss_counts(self, batch) -> dict[str, float]:
        """What each loss is a mean over, where that is not the batch's studies.

        The Trainer weighs by it when a step is split over processes or --accumulate. Asked on the CPU, before the batch
        moves to the device.
        """
        return {}

    # -- what decoding, predictions file and results page need ---------------------------------------------------------

    def encode(self, batch) -> dict[str, torch.Tensor]:
        """Everything about a study that no token changes, made once. First axis of every tensor: B."""
        raise NotImplementedError

    def step(self, tokens: torch.Tensor, memory: dict, cache) -> tuple[torch.Tensor, Any]:
        """The next token of each beam: tokens [B, K] (the last ones), the cache (None at first) -> logits [B, K, W], cache.

        A cache has `keep(studies, source)` (WordCache in modules/nets/transformer.py serves a transformer).
        """
        raise NotImplementedError

    def logits(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        """Teacher-forced pass: tokens [B, L] -> [B, L, W]. Needed by the default `attention` only."""
        raise NotImplementedError

    def attention(self, memory: dict, tokens: torch.Tensor) -> torch.Tensor:
        """Where each token looks before the next one is chosen: tokens [B, L] -> [B, L, V, h, w], sums to 1 per token.

        One teacher-forced pass, so it serves any report however it was decoded; mean over heads and layers. Reads
        `decoder` (layers with `cross_attention`) and memory["outside"], bool [B, V, h, w].
        """
        with watched(layer.cross_attention for layer in self.decoder) as seen:
            self.logits(memory, tokens)
        return torch.stack(seen).mean(0).unflatten(-1, memory["outside"].shape[1:])

    def remarks(self, batch, memory: dict) -> dict[str, list[str]]:
        """Further columns of the predictions file, a text per study; memory: what `encode` gave for the batch.

        The batch is on the CPU, the system and the memory may be elsewhere.
        """
        return {}


def model_of(content: dict, systems: Mapping[str, type[System]]) -> str | None:
    """The system of loaded weights: of a checkpoint of ours its own, of released ones the first whose keys they are."""
    if is_ours(content):
        return content["flags"].get("model")
    return next((name for name, system in systems.items() if _is_released(content, system)), None)


def use_released(args: argparse.Namespace, content: dict, systems: Mapping[str, type[System]]) -> None:
    """Point the flags at what the authors released beside `content`, their weights, and check that they are --model's.

    InputError names the systems that the file does belong to.
    """
    fitting = [name for name, system in systems.items() if _is_released(content, system)]
    if fitting and args.model not in fitting:
        raise InputError(f"{args.load} is a file of --model {' or '.join(fitting)}, not of {args.model}: say so")
    if fitting and "model" not in args.typed:
        print(f"{args.load}: weights of --model {args.model}"
              + (f", or of {', '.join(fitting[1:])} where --model says so" if fitting[1:] else ""))  # fmt: skip
    for name, path in systems[args.model].released_files.get(args.dataset_name, {}).items():
        if name not in args.typed:
            setattr(args, name, path.format(data_dir=args.data_dir))


def _is_released(content: dict, system: type[System]) -> bool:
    state = content.get(system.released_key, content)
    try:
        return isinstance(state, dict) and bool(system.released_state(state))
    except (InputError, AttributeError, TypeError):  # keys that are no text, values that are no tensors
        return False
