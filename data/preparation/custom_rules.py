"""The 54 MIMIC-CXR studies whose conclusion stands where no rule finds it (MIT-LCP/mimic-cxr, txt/section_parser.py).

The data set's own command names their conclusion by hand for the labelers, and leaves them out of its table of sections.
None of them is in the official test split.
"""

# the conclusion is another section, the last of that name
OTHER_SECTION = {
    50913680: "recommendations", 59363654: "examination", 59279892: "technique", 59768032: "recommendations",
    57936451: "indication", 50058765: "indication", 53356173: "examination", 53202765: "technique", 50808053: "technique",
    51966317: "indication", 50743547: "examination", 56451190: "note", 59067458: "recommendations",
    59215320: "examination", 55124749: "indication", 54365831: "indication", 59087630: "recommendations",
    58157373: "recommendations", 56482935: "recommendations", 58375018: "recommendations", 54654948: "indication",
    55157853: "examination", 51491012: "history",
}  # fmt: skip
# the conclusion is a range of characters of the file
CHARACTERS = {
    50525523: (201, 349), 57564132: (233, 554), 59982525: (313, 717), 53488209: (149, 475), 54875119: (234, 988),
    50196495: (59, 399), 56579911: (59, 218), 52648681: (292, 631), 59889364: (172, 453), 53514462: (73, 377),
    59505494: (59, 450), 53182247: (59, 412), 51410602: (47, 320), 56412866: (522, 822), 54986978: (59, 306),
    59003148: (262, 505), 57150433: (61, 394), 56760320: (219, 457), 59562049: (158, 348), 52674888: (145, 296),
    55258338: (192, 568), 59330497: (140, 655), 52119491: (179, 454),
}  # fmt: skip
# no conclusion anywhere
NONE = frozenset((58235663, 50798377, 54168089, 53071062, 56724958, 54231141, 53607029, 52035334))
EXCEPTIONS = frozenset(OTHER_SECTION) | frozenset(CHARACTERS) | NONE


def conclusion(study_id: int, text: str, sections: dict[str, str]) -> str:
    """What the rule of one of the 54 names as its conclusion; "" for those that have none."""
    if study_id in CHARACTERS:
        first, end = CHARACTERS[study_id]
        return text[first:end].strip()
    return sections.get(OTHER_SECTION.get(study_id, ""), "")
