"""Report texts: R2Gen's cleaning and word counts."""

from collections import Counter
from collections.abc import Iterable

from modules.errors import InputError

# Replacements of the whole text, in this order; str.replace, so each one sees what the one before it left.
_LIST_MARKS = (
    ("1. ", ""),
    *((f". {n}. ", ". ") for n in range(2, 6)),
    *((f" {n}. ", ". ") for n in range(2, 6)),
)
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "iu_xray": (("..", "."),) * 3 + _LIST_MARKS,
    "mimic_cxr": (("\n", " "),) + (("__", "_"),) * 7 + (("  ", " "),) * 6 + (("..", "."),) * 6 + _LIST_MARKS,
}
_QUOTES = str.maketrans("", "", "\"/\\'")
_SIGNS = str.maketrans("", "", ".,?;*!%^&_+(){}]" + "".join(map(chr, range(ord(":"), ord("[") + 1))))

UNKNOWN = "<unk>"
SPLITS = ("train", "val", "test")


def clean_report(text: str, rule: str) -> str:
    """R2Gen's cleaning of a raw report: lower-case words, sentences that end in ` .`.

    `rule` is a name of RULES: `iu_xray` or `mimic_cxr`. Empty sentences are kept, as the original keeps them (they
    leave a second ` .`; an empty text becomes ` .`). Split the result with `.split()` to get its words.
    Source: Chen et al. 2020 (R2Gen), the tokenizer's cleaning. The accidental range `:` to `[` in its pattern is kept
    (`< = > @` go, `-` stays). Raises InputError for an unknown rule.
    """
    if rule not in RULES:
        raise InputError(f"cleaning rule {rule!r} is unknown; choose from {', '.join(sorted(RULES))}")
    for old, new in RULES[rule]:
        text = text.replace(old, new)
    sentences = text.strip().lower().split(". ")
    return " . ".join([s.translate(_QUOTES).strip().lower().translate(_SIGNS) for s in sentences]) + " ."


def count_words(reports: Iterable[str]) -> Counter[str]:
    """How often each word occurs in cleaned reports (texts of clean_report, split at white space)."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.split())
    return counts


