"""Words to numbers and back. One class serves every system: they differ in the ids of the marks and in the word list."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modules.artefact import read_json
from modules.errors import InputError
from modules.text.cleaning import clean_report
from modules.text.corpus import Corpus

UNKNOWN = "<unk>"


class Tokenizer:
    """words (sorted) get the ids first.., where first is one above the largest mark.

    EKAGen: padding 0, BOS 1, EOS 2, words from 3. The R2Gen family: 0 is padding, BOS and EOS alike, words from 1.
    """

    def __init__(self, words: Iterable[str], *, cleaning: str, padding: int = 0, bos: int = 1, eos: int = 2) -> None:
        self.words = list(words)
        self.cleaning, self.padding, self.bos, self.eos = cleaning, padding, bos, eos
        self.first = max(padding, bos, eos) + 1
        self.ids = {word: self.first + place for place, word in enumerate(self.words)}
        if len(self.ids) != len(self.words) or UNKNOWN not in self.ids:
            raise InputError(f"a word list needs {UNKNOWN} and every word once")

    @classmethod
    def build(cls, reports: "Iterable[str] | Corpus", *, cleaning: str, threshold: int, strip: Iterable[str] = (), **marks):
        """Count the words of the training reports, leave out `strip`, keep those seen `threshold` times or more."""
        if isinstance(reports, Corpus):
            counts = reports.counts()
        else:
            counts = Counter(word for report in reports for word in clean_report(report, cleaning).split())
        for word in strip:
            counts.pop(word, None)
        kept = {word for word, count in counts.items() if count >= threshold}
        return cls(sorted(kept | {UNKNOWN}), cleaning=cleaning, **marks)

    @classmethod
    def from_file(cls, path: str | Path, *, cleaning: str, **marks) -> "Tokenizer":
        """A JSON word list, or a JSON object from word to id as EKAGen's authors release it."""
        content = read_json(path, "--vocab_path wants a word list")
        numbers = content.values() if isinstance(content, dict) else ()
        known = isinstance(content, (dict, list)) and all(isinstance(word, str) for word in content)
        if not known or any(type(number) is not int for number in numbers):
            raise InputError(f"--vocab_path {path}: expected a list of words, or an object from word to id")
        words = sorted(content, key=content.__getitem__) if isinstance(content, dict) else content
        tokenizer = cls(words, cleaning=cleaning, **marks)
        if isinstance(content, dict) and content != tokenizer.ids:
            raise InputError(f"--vocab_path {path}: ids must run from {tokenizer.first} without a gap")
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, marks included: the width of the output layer."""
        return self.first + len(self.words)

    @property
    def fingerprint(self) -> str:
        """Hash of the word list and the marks: two tokenizers with one fingerprint number alike."""
        return hashlib.sha256(json.dumps(self.state_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def number(self, word: str) -> int:
        """The id of a cleaned word; a word outside the list gets that of <unk>."""
        return self.ids.get(word, self.ids[UNKNOWN])

    def encode(self, report: str) -> list[int]:
        """Raw report -> [BOS] + word ids + [EOS], not cut."""
        return [self.bos, *map(self.number, clean_report(report, self.cleaning).split()), self.eos]

    def encode_padded(self, report: str, length: int) -> list[int]:
        """Raw report -> `length` ids, cut or padded (a cut report has no EOS, as released)."""
        ids = self.encode(report)[:length]
        return ids + [self.padding] * (length - len(ids))

    def padded(self, corpus: Corpus, length: int) -> np.ndarray:
        """int32 [N, length]: every row is encode_padded of the report."""
        return corpus.padded(self, length)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids after BOS -> text; nothing after EOS (or padding) is kept."""
        words = []
        for number in ids:
            if number in (self.eos, self.padding):
                break
            if number != self.bos:
                words.append(self.words[number - self.first])
        return " ".join(words)

    def state_dict(self) -> dict:
        """Plain values, enough to build the tokenizer again."""
        marks = {"padding": self.padding, "bos": self.bos, "eos": self.eos}
        return {"words": self.words, "cleaning": self.cleaning, **marks}

    @classmethod
    def from_state_dict(cls, state: dict) -> "Tokenizer":
        old = {"begin": "bos", "end": "eos"}  # names in checkpoints of format 1
        return cls(**{old.get(name, name): value for name, value in state.items()})
