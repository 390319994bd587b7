"""Sentences about earlier studies: "unchanged", "compared with the prior", "new since".

A system that sees one study cannot know them, so what it writes of them is made up, and references full of them lower its
scores. Reported are their share on both sides and the scores on the studies with and without them in the reference.
"""

import re
from collections.abc import Iterable

# Words that need an earlier study to be true. "Stable" alone counts (a stable heart is one that was seen before);
# "chronic", "old" and "healed" do not: one image shows them. "New" counts when no noun of its own makes it harmless.
_CHANGE = (
    r"(?:in|de)creas(?:ed|ing)|enlarg(?:ed|ing)|progress(?:ed|ive)|worsen(?:ed|ing)|improv(?:ed|ing)|resolv(?:ed|ing)"
)
EARLIER = re.compile(
    r"\b(?:"
    r"unchanged|not (?:\w+ )?changed|no (?:\w+ ){0,3}change|without (?:\w+ ){0,2}change|unaltered|stable|stability"
    r"|similar (?:\w+ )?to (?:the )?(?:prior|previous|earlier)|again (?:seen|noted|demonstrated|identified|visualized)"
    r"|(?:re-?demonstrated|redemonstration)|once again"
    r"|interval(?! (?:of|between)\b)"
    r"|(?:compar(?:ed|ison|ing)|relative) (?:is )?(?:made )?(?:to|with)"
    r"|(?:in|for) comparison|since (?:the |that |your )?(?:\w+ ){0,2}"
    r"(?:prior|previous|last|earlier|most recent|exam\w*|study|radiograph\w*|film\w*|x-?rays?|chest|ct|admission|\d)"
    r"|(?:prior|previous|earlier|preceding|old|outside) (?:\w+ ){0,2}"
    r"(?:exam\w*|stud(?:y|ies)|radiograph\w*|film\w*|x-?rays?|images?|imaging|ct|scan|comparisons?)"
    r"|previously|as before"
    r"|(?:from|than|to) (?:the )?(?:prior|previous)(?! (?:\w+ )?(?:granulo|fractur|surg|infect|trauma|injur|operat|inflam))"
    r"|no longer|persist(?:s|ent|ing|ently)"
    r"|newly|new(?! york)|has (?:also |now |since |slightly |significantly |markedly |nearly |completely )?"
    rf"(?:been (?:removed|placed|inserted|replaced|exchanged|withdrawn|advanced)|cleared|{_CHANGE})"
    r"|(?:improv(?:ed|ing|ement)|worsen(?:ed|ing))"
    r"|remains?(?! of\b)|again\b"
    r")\b"
)
_SENTENCE_END = re.compile(r"(?<!\d)\.(?!\d)|(?<=\d)\.(?=\s)|[;!?]|\n\s*\n")


def sentences(text: str) -> list[str]:
    """The sentences of a report, raw or cleaned, in lower case; those without a letter are left out."""
    parts = (" ".join(part.lower().split()) for part in _SENTENCE_END.split(text))
    return [part for part in parts if any(letter.isalpha() for letter in part)]


def speaks_of_earlier(text: str) -> bool:
    """Whether a sentence of the text speaks of an earlier study."""
    return any(EARLIER.search(sentence) for sentence in sentences(text))


def earlier_share(texts: Iterable[str]) -> dict[str, float]:
    """Share of sentences about earlier studies, and share of reports with at least one; 0 where there is nothing."""
    said = [[bool(EARLIER.search(sentence)) for sentence in sentences(text)] for text in texts]
    total = sum(map(len, said))
    return {
        "sentences": sum(map(sum, said)) / total if total else 0.0,
        "reports": sum(map(any, said)) / len(said) if said else 0.0,
    }
