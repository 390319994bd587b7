"""Sections of a MIMIC-CXR report, cut as the data set's own parser cuts them.

Rebuilt from the description of MIT-LCP/mimic-cxr (txt/section_parser.py, create_section_files.py), whose cut every
published set of findings goes back to. Text is kept as it is: line breaks, double spaces, `___`.
"""

import re

# a newline, one space, capital letters, a colon, one white-space character
HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")

_SPELLINGS = {
    "impression": (
        "conclusion", "findings and impression", "findings/impression", "findings/ impression", "ndication", "impresson",
        "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion", "mpression", "impession",
    ),
    "findings": (
        "chest, two views", "finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs",
        "reference findings",
    ),
    "comparison": (
        "comparisons", "reference exam", "comparison exam", "comparison film", "comparision", "comparsion", "comparrison",
        "comparisions",
    ),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
}  # fmt: skip
# names that stand for themselves, so that no rule below changes them
_STAY = ("technique", "notification", "addendum", "date", "comment")
EXACT = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in (name, *spellings)}
EXACT |= {name: name for name in _STAY}
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
# parts of an examination's title, under which the findings of many reports stand
TITLES = (
    "chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and", "two views",
    "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window", "frontal upright",
    "frontal semi-upright", "ribs", "pa and lat",
)  # fmt: skip
ADDENDUM_LINE = re.compile(r"\n\s*_{10,}\s*\n")


def section_name(header: str) -> str:
    """The name of a section from its header: exact spelling, else a name it contains, else an examination's title."""
    name = header.lower().strip()
    if name in EXACT:
        return EXACT[name]
    for known in CONTAINED:
        if known in name:
            return known
    return "findings" if any(title in name for title in TITLES) else name


def cut_sections(text: str) -> list[tuple[str, str]]:
    """[(name, text)] of a report in its order; the text before the first header is `preamble`.

    A report without a header is one section, `full report`. Blank sections named impression or findings are dropped (the
    report's title, mostly). Where neither is left, the paragraphs after the first of the last section are `last_paragraph`.
    """
    headers, search_from = [], 0
    while found := HEADER.search(text, search_from):
        headers.append(found)
        # the next header starts at the first newline behind this one: a second header on its line is text
        search_from = max(text.find("\n", found.end()), found.end())
    if not headers:
        sections = [("full report", text)]
    else:
        sections = [("preamble", text[: headers[0].start(1)])]
        ends = [header.start() for header in headers[1:]] + [len(text)]
        sections += [(section_name(header[1]), text[header.end() : end]) for header, end in zip(headers, ends)]
    sections = [(name, part) for name, part in sections if part.strip() or name not in ("impression", "findings")]
    if not {"impression", "findings"} & {name for name, _ in sections}:
        name, part = sections[-1]
        first, mark, rest = part.partition("\n \n")
        if mark:
            sections[-1:] = [(name, first), ("last_paragraph", rest)]
    return sections


def sections_of(text: str) -> dict[str, str]:
    """{name: text, stripped} of a report; of several sections of one name the last."""
    return {name: part.strip() for name, part in cut_sections(text)}
