"""The words of a split's reports, cleaned once and kept as numbers: vocabulary, token ids and word counts come from them.

Cleaning 270,790 reports takes a while; the result lies beside the data set's other artefacts, under the hash of the
annotation, and is read back in a moment the next time. `words[flat[starts[n] : starts[n + 1]]]` are report n's words.
"""

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from modules.artefact import checksum, write_atomic
from modules.text.cleaning import clean_report

VERSION = 2
CHUNK = 10_000


class Corpus:
    """Cleaned reports of N studies, in order. rule: the cleaning rule, see modules/text/cleaning.py."""

    def __init__(self, words: Sequence[str], flat: np.ndarray, starts: np.ndarray, *, rule: str) -> None:
        self.words, self.flat, self.starts, self.rule = list(words), flat, starts, rule
        self._counts: Counter[str] | None = None

    @classmethod
    def of(cls, reports: Iterable[str], rule: str) -> "Corpus":
        """Clean raw reports."""
        numbers: dict[str, int] = {}
        flat, starts = [], [0]
        for report in reports:
            flat += [numbers.setdefault(word, len(numbers)) for word in clean_report(report, rule).split()]
            starts.append(len(flat))
        return cls(list(numbers), np.array(flat, dtype=np.int32), np.array(starts, dtype=np.int64), rule=rule)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def counts(self) -> Counter[str]:
        """How often each word occurs."""
        if self._counts is None:
            self._counts = Counter(dict(zip(self.words, np.bincount(self.flat, minlength=len(self.words)).tolist())))
        return self._counts.copy()

    def reports(self) -> Iterator[list[str]]:
        """The words of each report."""
        for start, end in zip(self.starts[:-1], self.starts[1:]):
            yield [self.words[number] for number in self.flat[start:end]]

    def take(self, places: Sequence[int]) -> "Corpus":
        """The reports at `places`, in that order."""
        rows = [self.flat[self.starts[place] : self.starts[place + 1]] for place in places]
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        kept, flat = np.unique(np.concatenate(rows), return_inverse=True) if rows else (np.zeros(0, int),) * 2
        return Corpus([self.words[number] for number in kept], flat.astype(np.int32), starts, rule=self.rule)

    def padded(self, tokenizer, length: int) -> np.ndarray:
        """int32 [N, length]: every row is tokenizer.encode_padded of the report."""
        if tokenizer.cleaning != self.rule:
            raise ValueError(f"the tokenizer cleans by {tokenizer.cleaning}, these reports by {self.rule}")
        ids = np.array([tokenizer.number(word) for word in self.words] or [0], dtype=np.int32)
        made = np.full((len(self), length), tokenizer.padding, dtype=np.int32)
        made[:, 0] = tokenizer.bos
        for first in range(0, len(self), CHUNK):  # few reports at a time: the index arrays stay small
            starts = self.starts[first : first + CHUNK + 1]
            counts = np.diff(starts)
            rows = np.repeat(np.arange(first, first + len(counts)), counts)
            places = np.arange(starts[0], starts[-1]) - np.repeat(starts[:-1], counts) + 1
            fits = places < length
            made[rows[fits], places[fits]] = ids[self.flat[starts[0] : starts[-1]][fits]]
            ended = np.flatnonzero(counts + 1 < length)
            made[first + ended, counts[ended] + 1] = tokenizer.eos
        return made

    def save(self, path: str | Path) -> None:
        """Write whole or not at all."""
        facts = {"words": "\n".join(self.words), "flat": self.flat, "starts": self.starts, "rule": self.rule}
        write_atomic(path, lambda temporary: _save(temporary, {**facts, "checksum": _sum_of(facts)}))


def _sum_of(facts: dict) -> int:
    return checksum(str(facts["words"]), facts["flat"], facts["starts"], str(facts["rule"]))


def _save(path: Path, facts: dict) -> None:
    with open(path, "wb") as file:
        np.savez(file, version=VERSION, **facts)


def corpus_of(reports: Sequence[str], rule: str, path: Path) -> Corpus:
    """The corpus kept at `path`, or cleaned now and kept there. `path` must change with the reports and the rule."""
    if path.is_file():
        try:
            with np.load(path) as file:
                kept = {name: file[name] for name in file.files}
            sound = int(kept["version"]) == VERSION and int(kept["checksum"]) == _sum_of(kept)
            if sound and len(kept["starts"]) == len(reports) + 1 and str(kept["rule"]) == rule:
                return Corpus(str(kept["words"]).split("\n"), kept["flat"], kept["starts"], rule=rule)
        except (OSError, ValueError, LookupError, TypeError, EOFError, NotImplementedError, SyntaxError, MemoryError,
                zlib.error, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
            print(f"{path} cannot be read ({error}), cleaning the reports again")
    made = Corpus.of(reports, rule)
    made.save(path)
    return made
