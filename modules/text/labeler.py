"""A rule-based labeler: the 14 CheXpert labels of a report, each with the words that decided it.

It is the project's own, needs no download, and is never called CheXbert. A report is cut into sentences; phrases name
the findings (`FINDINGS`), cues around them say whether they are negated or uncertain (`CUES`), and the scope of a cue
ends at words such as "but", "however", "with" or at a comma that opens a new statement. Both tables are meant to be
read and edited.

Source: the label set, and the idea of phrase, negation and uncertainty, are those of Irvin et al. 2019 (CheXpert) and
Peng et al. 2018 (NegBio); no code or phrase file of theirs is used.
Differs: cues work on words instead of a dependency parse; heart and mediastinum need words of enlargement to be
positive.
`python -m knowledge.label_reports --agreement ...` measures it against labels made by another labeler.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from modules.errors import InputError
from modules.text.labels import CHEXPERT_14, NO_FINDING

VERSION = "rules-2"
STATES = ("positive", "negative", "uncertain", "absent")
UNCERTAIN_RULES = ("positive", "negative", "keep")
# What one phrase says of another label: heart failure makes cardiomegaly likely, its absence says nothing of it.
IMPLIED = {"Cardiomegaly": re.compile(r"(?:congestive |heart |cardiac )+failure|chf")}
# Not diseases: a report may name them and still have No Finding.
NOT_A_DISEASE = ("Support Devices",)


class Mention(NamedTuple):
    """What a report says of one label: a state of `STATES`, and the words that decided it ('' when absent)."""

    state: str
    phrase: str


ABSENT = Mention("absent", "")

# ---------------------------------------------------------------------------------------------------- findings
# Per label: stems (a cheap test: one of them must be in the sentence), then phrases as regular expressions over lower
# case text. {gap} is up to five words that do not change the statement. A phrase under NORMAL denies the label itself.

FINDINGS = {
    "Atelectasis": (
        ("atelec", "collaps"),
        (
            r"(?:micro)?atelec\w+",
            r"collaps\w*(?= (?:of|in) (?:the )?(?:\w+ ){0,4}(?:lungs?|lobes?|lingula|segments?)\b)",
            r"(?:lung|lobar|lobe|lingular|segmental|pulmonary) collapse",
            r"collapsed (?:\w+ ){0,3}(?:lung|lobe|lingula)",
        ),
    ),
    "Cardiomegaly": (
        ("cardio", "cardiac", "heart", "ventric", "chf", "failure"),
        (
            r"cardio-?megal\w+|cardiac (?:megaly|prominence)",
            r"(?:cardiac|heart|(?:bi)?ventricular|four[- ]chamber) (?:size )?(?:enlargement|prominence|dilatation)",
            r"{grown} (?:in size )?(?:of )?(?:the )?(?:right |left )?{heart}(?! (?:failure|border|valve|fat))",
            r"(?:large|enlarging|generous|globular) {heart}|increas\w+ (?:in )?(?:the )?(?:heart|cardiac) size",
            r"{heart}(?: size)?{gap} (?:{grown}|(?<!not )(?<!no )larger?|big|top[- ]normal to mildly enlarged)\b",
            r"borderline (?:\w+ )?(?:in size )?{heart}",
            r"{heart}(?: size)?{gap} borderline",
            r"{failure}",
        ),
    ),
    "Consolidation": (("consolid", "consilid"), (r"(?:non)?cons[oi]lid\w+",)),
    "Edema": (
        ("edema", "oedema", "conges", "failure", "chf", "vascular", "vessel", "vasculature", "fluid overload"),
        (
            r"(?<!tissue )(?<!tissues )(?<!subcutaneous )(?<!wall )(?<!marrow )(?<!laryngeal )(?<!vasogenic )o?edema\b",
            r"{failure}",
            r"(?:pulmonary |central |venous |perihilar )*(?:vascular|vessel|vasculature|venous) (?:\w+ )?"
            r"(?:congestion|engorgement|prominence)",
            r"(?:pulmonary|central|hilar|perihilar|venous|interstitial|mild) (?:\w+ )?congestion",
            r"congestion of the (?:\w+ ){0,2}(?:vascul\w+|vessels)",
            r"(?:pulmonary )?(?:vasculature|vascularity|vessels){gap} (?:engorged|congested)",
            r"(?:engorge\w+|congested) (?:of )?(?:the )?(?:\w+ ){0,2}(?:vascul\w+|vessels)",
            r"fluid overload",
        ),
    ),
    "Enlarged Cardiomediastinum": (
        ("mediastin", "hilar", "hilum", "hila", "adenopath", "paratracheal", "atrial"),
        (
            r"{grown} (?:of )?(?:the )?(?:(?:superior|upper|anterior|right|left|hilar|and|cardiac and) ){0,3}"
            r"(?:cardiomediastin(?:um|al)|mediastinum|mediastinal (?:silhouette|contour|shadow|structure|width|soft))",
            r"(?:cardio)?mediastin(?:um|al)(?: \w+)?{gap} {grown}\b",
            r"(?:mediastinal|hilar|paratracheal|retrocrural|intrathoracic|thoracic|bihilar)(?: and \w+)? "
            r"(?:lymph ?)?(?:adenopathy|node enlargement|lymphadenopathy)",
            r"lymphadenopathy|adenopathy",
            r"(?:anterior |posterior |middle |superior |upper )?mediastinal (?:soft tissue )?"
            r"(?:mass|opacit|densit|hematoma)\w*",
            r"(?:mass|opacity|density)(?: measuring)?{gap} (?:with)?in (?:the )?(?:\w+ )?mediastinum",
            r"hilar (?:prominence|fullness|enlargement)",
            r"abnormal (?:cardio)?mediastinal (?:contour|silhouette)s?|mediastinal abnormality",
            r"left atrial enlargement|enlarge\w+ (?:of )?(?:the )?left atrium",
        ),
    ),
    "Fracture": (
        ("fractur", "fx"),
        (r"(?:micro)?fractur\w+(?! (?:line|plane))", r"\bfx\b"),
    ),
    "Lung Lesion": (
        ("nodul", "mass", "lesion", "tumor", "tumour", "neoplas", "carcinoma", "cancer", "metasta", "round", "lump"),
        (
            r"(?:micro)?nodul(?:e|es|ar|arity)\b(?! (?:thyroid|liver))",
            r"mass(?:es|[- ]?like)?\b(?! effect| index)",
            r"(?:lung|pulmonary|cavitary|cavitating|lobe|parenchymal|spiculated|suspicious|hilar|pleural) lesions?\b",
            r"neoplas\w+",
            r"tumou?rs?\b",
            r"(?:lung|pulmonary|bronchogenic|bronchoalveolar|primary|metastatic) (?:lung )?"
            r"(?:cancer|(?:adeno)?carcinoma)",
            r"(?:lung|pulmonary) metasta\w+",
            r"round(?:ed)? (?:\w+ ){0,2}(?:opacit|densit|focus|lucenc)\w*",
        ),
    ),
    "Lung Opacity": (
        ("opaci", "air", "infiltrat", "interstiti", "reticul", "scar", "densit", "ground", "bronchial", "alveolar"),
        (
            r"(?<!nodular )(?<!retrocardiac soft tissue )opaci(?:ty|ties|fi\w+)\b",
            r"air[- ]?spaced? (?:\w+ )?(?:disease|process|change|filling|infiltrat|opacit)\w*",
            r"infiltrat\w+",
            r"alveolar (?:disease|process|filling)",
            r"interstitial (?:\w+ )?(?:markings?|patterns?|disease|lung disease|infiltrat\w+|abnormalit\w+|process)",
            r"(?:reticular|reticulonodular|reticulo-nodular) \w+|reticulation\w*",
            r"(?<!pleural )(?<!parenchymal )scar(?:s|red|ring)?\b(?! tissue)",
            r"(?:increased|patchy|basilar|bibasilar|basal|airspace|parenchymal|ill-defined|hazy|streaky|linear"
            r"|interstitial|alveolar|perihilar|bandlike|platelike) "
            r"densit\w+",
            r"densit(?:y|ies) (?:with)?in (?:the )?(?:right|left|both|bilateral)? ?"
            r"(?:lungs?|bases?|(?:lower|upper|mid\w*)(?= lungs?| lobes?| zones?))\b",
            r"ground[- ]glass",
            r"(?:peri)?bronchial (?:wall )?(?:thickening|cuffing)",
        ),
    ),
    "Pleural Effusion": (
        ("effusion", "pleural", "hydropneumo", "hemothora", "haemothora", "hydrothora", "empyema"),
        (
            r"(?<!pericardial )(?<!joint )(?<!knee )(?<!elbow )effusions?\b",
            r"pleural (?:\w+ )?(?:fluid|collection)s?\b",
            r"fluid in the (?:\w+ ){0,3}(?:pleural space|fissures?)",
            r"hydro(?:pneumo)?thora\w+|ha?emothora\w+|empyema\w*",
        ),
    ),
    "Pleural Other": (
        ("pleur", "fibro"),
        (
            r"pleural(?:[- ]based)?(?: and \w+)?(?:/\w+)? (?:\w+ )?(?:thickening|plaques?|calcifications?|scar\w*)",
            r"pleur(?:al|o)[- ]?(?:/ ?)?parenchymal (?:\w+ )?(?:scar\w*|thickening|opacit\w+|change\w*)",
            r"thickening of (?:the )?(?:\w+ ){0,2}pleura",
            r"pleural (?:and|/) \w+ scar\w*",
            r"(?:fibrothora\w+|pleuritis|pleurisy)",
            r"fibrosis",
        ),
    ),
    "Pneumonia": (
        ("pneumonia", "infecti", "pna"),
        (r"(?:broncho)?pneumonias?\b", r"(?<!post)infecti(?:on|ons|ous)\b", r"\bpna\b"),
    ),
    "Pneumothorax": (
        ("pneumothor", "ptx"),
        (r"(?:hydro|ha?emo)?pneumothor\w+", r"\bptx\b"),
    ),
    "Support Devices": (
        (
            "cathet", "picc", "line", "tube", "pace", "icd", "defib", "lead", "valve", "hardware", "screw", "port",
            "stent", "drain", "prosthe", "device", "swan", "cannula", "coil", "tracheostomy", "wires", "pump", "dobb",
            "stimulator", "arthroplast", "lvad", "pacing", "pigtail", "apparatus", "equipment", "hoff",
        ),  # fmt: skip
        (
            r"(?:\w+ )?catheters?\b(?!ization)",
            r"picc(?: lines?)?",
            r"(?:central|venous|picc|subclavian|jugular|ij|dialysis|arterial|femoral|iv|infusion|access|support|monitoring)"
            r"(?: venous| access)? lines?\b",
            r"lines,? (?:and|or) (?:tubes|catheters)|tubes,? (?:and|or) lines",
            r"(?:endotracheal|et|ng|og|enteric|feeding|nasogastric|orogastric|chest|tracheostomy|gastrostomy|thoracostomy"
            r"|drainage|dobbhoff|dobhoff|nasoenteric|gastric|pigtail|nj|g|j)[- ]tubes?\b",
            r"tubes?\b(?= (?:tip|terminat|is in|in (?:place|situ)|remains|ends|projects|has been|overl))",
            r"pace ?makers?\b|pacer\b|pacing (?:wires?|leads?|device)",
            r"(?:aicd|icd|defibrillators?)\b",
            r"(?:pacer|pacemaker|icd|aicd|ventricular|atrial|chamber|defibrillator|cardiac) leads?\b",
            r"(?:prosthetic|mechanical|bioprosthetic|artificial|replaced) (?:\w+ )?valves?|valve replacements?",
            r"(?:\w+ )?prosthes[ie]s\b",
            r"(?:orthopedic|spinal|surgical|fixation|fusion|metallic|postsurgical|spine)? ?hardware\b",
            r"(?:pedicle )?screws?\b",
            r"port-?a-?cath\w*|mediport\w*|(?:chest|infusion|subclavian|jugular|venous|access) ports?\b",
            r"(?:vascular |aortic |coronary |bronchial |esophageal |tracheal )?stents?\b",
            r"pigtail\b|(?:surgical|pleural|chest|mediastinal|pericardial) drains?\b",
            r"(?:support|monitoring|assist|implanted|pacing|cardiac) (?:and \w+ )?(?:devices?|apparatus|equipment)",
            r"lvad\b|tracheostomy\b|swan[- ]ganz|balloon pump|dobb?hoff|cannulas?\b|embolization coils?",
            r"nerve stimulator|arthroplasty",
        ),
    ),
}

# A denial in itself: "heart size is normal". Searched before FINDINGS; what it covers cannot be found again.
NORMAL = {
    "Cardiomegaly": (
        ("cardi", "heart"),
        (
            r"{heart}(?: size)?(?:(?:,| and|, and)? (?:the )?(?:\w+ )?(?:mediastin\w+|cardiomediastin\w+|lungs?|size"
            r"|contours?|silhouettes?|vascul\w+|pulmonary|hila\w*|aort\w+|pleura\w*|borders?))*{gap} {normal}",
            r"{normal} (?:in size )?(?:\w+ )?{heart}(?: size| contour)?",
            r"cardiomediastinal (?:silhouettes?|contours?|structures){gap} {normal}",
            r"{normal} cardiomediastinal (?:silhouettes?|contours?)",
        ),
    ),
    "Enlarged Cardiomediastinum": (
        ("mediastin",),
        (
            r"(?:cardio)?mediastin(?:um|al)(?: silhouettes?| contours?| structures| shadow)?"
            r"(?: and (?:\w+ ){0,3}?\w+|,(?: \w+){1,2})?{gap} {normal}",
            r"{normal} (?:\w+ )?(?:and )?(?:cardiac,? )?(?:and )?(?:hilar and )?(?:cardio)?mediastin(?:um|al)(?: \w+)?",
        ),
    ),
}

WORDS = {
    "heart": r"(?:hearts?|cardiac(?: (?:size|silhouettes?|shadow|contours?|borders?))?|cardiopericardial silhouette)",
    "grown": r"(?:enlarge(?:d|ment)|prominen(?:t|ce)|widen(?:ed|ing)|full(?:ness)?\b(?! extent)|dilat\w+"
    r"|increased(?= in size))",
    "failure": r"(?:congestive (?:heart |cardiac )?failure|(?:heart|cardiac) failure|chf)\b",
    "normal": r"(?:(?:with)?in normal limits?|normal|unremarkable|not (?:\w+ )?(?:enlarged|widened|prominent)|wnl"
    r"|top[- ]normal|(?:at )?(?:the )?upper limits? (?:of )?normal)",
    # up to five words within the statement; none that turns it around or opens another one
    "gap": r"(?:,? (?!normal|unremarkable|not?\b|and\b|with|but\b|lungs?\b|clear)[\w/-]+){{0,5}}?",
}

# -------------------------------------------------------------------------------------------------------- cues
# kind -> phrases; (a|b) lists alternatives and a trailing ? makes a word optional. Scope of each kind:
#   wall       ends every scope, both ways            opening    ends a scope that comes from its left
#   negate     denies what follows                    denied     denies what comes before
#   doubt      what follows is uncertain              doubted    what comes before is uncertain
#   maybe      uncertain whatever else is said        skip       what follows is not about this image
#   either     the findings on both sides are uncertain
#   plain      no cue: keeps the words it covers from being read as one

CUES = {
    "wall": [
        "but", "however", "although", "though", "except", "whereas", "while", "yet", "otherwise", "nevertheless",
        "still", "aside from", "apart from", "other than", "despite", "given", "therefore",
    ],
    "opening": [
        "with", "there (is|are|has|have|remains|remain|appears)", "likely reflecting", "unchanged from", "which",
        "status post",
    ],
    "negate": [
        "no", "non", "not", "without", "w/o", "nor", "neither", "none of", "negative for", "negative",
        "free (of|from)", "clear of", "cleared of", "absence of", "absent", "lack of", "resolution of",
        "clearing of", "removal of", "resolved", "rather than", "instead of", "rules out", "excludes",
        "exclude the presence of", "unlikely to (be|represent|reflect)", "denies", "never",
        "not (likely|felt) to (be|represent|reflect)", "interval removal of", "interval resolution of",
        "no (longer|more)", "no (evidence|sign|signs) (of|for)",
    ],
    "denied": [
        "{VERB}? {VERB}? not (definitely|clearly|convincingly|confidently|currently)? {SEEN}",
        "{VERB}? {VERB}? no longer (definitely|clearly)? {SEEN}?", "not {VERB} {SEEN}",
        "(has|have) not (recurred|developed|reaccumulated)",
        "(has|have) (completely|nearly|essentially|now|since|largely|also|all|been)? "
        "(resolved|cleared|disappeared)",
        "(is|are) (now|completely)? (resolved|absent|gone)",
        "(has|have) been (removed|ruled out|excluded|withdrawn|discontinued)",
        "(was|were|is|are) (removed|ruled out|excluded|unlikely|not likely)", "appears? unlikely", "removed",
        "excluded",
    ],
    "doubt": [
        "may", "might", "could", "can", "would", "possible", "possibly", "probable", "probably", "likely",
        "presumed", "presumably", "presumptive", "suspect", "suspected", "suspicion (of|for)", "suspicious for",
        "concern for", "concerning for", "concern (of|about)", "worrisome for", "question", "questionable",
        "questioned", "equivocal", "suggest", "suggests", "suggesting", "suggestive of", "suggestion of",
        "differential", "considerations?", "consider", "favor", "favors", "favored", "favoring", "borderline",
        "potential", "potentially", "perhaps", "less likely", "more likely", "most likely", "felt to",
        "thought to", "indeterminate", "versus", "vs", "if", "correlate", "correlation",
        "raises? the (question|possibility) of", "raising the (question|possibility) of", "appears? to",
        "apparent", "indicate", "indicating", "simulate", "simulating", "rule out", "r/o", "ruling out", "exclude",
        "maybe", "most consistent with", "most compatible with", "suspicious",
    ],
    "doubted": [
        "(is|are|was|were|remains?) (also|less|more|most)? "
        "(possible|probable|likely|suspected|questioned|favored|considered)",
        "(may|might|could) (also|not)? be", "in the (appropriate)? (clinical)? (differential|setting)",
        "considerations?", "(cannot|could not) be", "should be (considered|excluded)", "in question",
        "not (entirely|completely)? certain",
    ],
    "maybe": [
        "(cannot|can not|could not|can't|couldn't) (completely|entirely|definitively|confidently|reliably)? "
        "(exclude|rule out)",
        "(cannot|can not|could not|can't|couldn't) be "
        "(completely|entirely|definitively|confidently|reliably|fully)? (excluded|ruled out)",
        "not (completely|entirely|definitively|fully)? excluded",
        "(difficult|hard|unable) to (completely|entirely)? (exclude|rule out)", "does not exclude",
        "do not exclude", "not be excluded",
    ],
    "skip": [
        "history of", "hx of", "h/o", "(evaluate|evaluation|assess|assessment|eval) for", "treatment (of|for)",
        "therapy for", "indication",
    ],
    "either": [
        "versus", "vs", "or", "and/or",
    ],
    "plain": [
        "no (significant|substantial|appreciable|definite|great|obvious|major|relevant|overall|other)? "
        "(interval|short-term)? (change|changes|improvement|decrease|increase|difference|progression|worsening) "
        "(in|of|from|to|since|compared|within|over)?",
        "without (significant|substantial|appreciable)? (interval)? (change|improvement) (in|of)?",
        "not (significantly)? changed",
        "not (completely|fully|entirely|yet|well|optimally|included|only)",
        "not (significantly|substantially|appreciably)",
        "(consistent|compatible|associated|along|together|correlate|correlation|commensurate|concordant) with",
        "in keeping with",
        "with (or|and|/) without", "if (any|present)", "(has|have) not (completely|fully|yet)? (resolved|cleared)",
        "no doubt", "not well", "may (be|also|be of)? (helpful|beneficial|useful|indicated|warranted)",
        "not (yet|fully|completely) resolved", "non calcified", "non displaced",
        "may (represent|reflect|be) (a|an)? (chronic|normal) (variant|appearance)",
    ],
}  # fmt: skip
CUE_WORDS = {
    "VERB": "(is|are|was|were|has|have|been|be|being)",
    "SEEN": "(seen|identified|visualized|visualised|present|evident|noted|demonstrated|appreciated|apparent|detected"
    "|found|visible|observed|suggested|shown|suspected|confirmed|recognized|discernible)",
}

# After a comma or "and", these open a new statement, so that a negation before them ends: "no effusion, stable mass".
NEW_STATEMENT = frozenset(
    """small mild mildly minimal minimally moderate moderately stable unchanged persistent persisting increased
    increasing decreased decreasing improved improving worsening worsened new chronic old prior slight slightly
    bibasilar probable probably possible possibly likely question questionable borderline marked severe
    redemonstrated there heart lungs lung mediastinum cardiac cardiomediastinal continued interval few multiple
    scattered tiny trace mediastinal healed healing low residual""".split()
)
NEW_AFTER_AND = NEW_STATEMENT | {"large", "right", "left", "bilateral", "the", "is", "are", "has"}
PREDICATES = frozenset(
    """is are was were has have had remains remain appears appear persists persist shows show demonstrates reveals
    continues""".split()
)
# a full stop (but not that of 1.4 cm, vs. or Dr.), a blank line (" | "), a dash, "2)", a remark in brackets
CLAUSE_END = re.compile(
    r"(?<!\bvs)(?<!\bdr)\.(?!\d)|(?<!\d)(?<!\bvs)(?<!\bdr)\.|[;!?|]"
    r"|\s[-\u2013\u2014]+\s|\s\d\)\s|\((?=[\w-]+(?: [\w-]+){3})"
)
WORD = re.compile(r"[a-z'][a-z'/-]*")
NEGATION_INSIDE = re.compile(r"\b(?:no|not|without)\b")
LIST_GOES_ON = re.compile(r"\bn?or\b")
PARAGRAPH = re.compile(r"\n\s*\n")
# R2Gen's cleaning takes the stroke out of "scarring/atelectasis"; it is put back here
GLUED = re.compile(
    r"(atelectasis|scarring|scar|disease|infection|effusion|opacities|infiltrate|thickening|nodule)"
    r"(?=(?:atelecta|scar|infiltrate|pneumonia|air ?space|effusion|hemothorax|emphysem|lymph|thickening|mass|edema))"
)
# "not seen on the prior study" says that it is new, "not seen on the lateral" that the other view shows it
SEEN_ELSEWHERE = re.compile(
    r" (?:on|in|with) (?:the |a |any )?(?:\w+ ){0,2}?"
    r"(?:prior|previous|old|older|outside|lateral|frontal|earlier|comparison)\b"
)
NORMAL_REPORT = re.compile(
    r"no (?:\w+[ ,/]+){0,6}?(?:abnormalit\w+|disease|process|findings?)|(?:normal|unremarkable|negative) (?:\w+ ){0,2}?"
    r"(?:chest|exam\w*|study|radiograph)|(?:lungs? (?:\w+ ){0,3}?clear|clear lungs)"
)


# --------------------------------------------------------------------------------------------------- compiling


def expand_words(pattern: str) -> str:
    """A phrase of the tables with {heart}, {grown}, {normal} and {gap} written out."""
    for name, text in WORDS.items():
        pattern = pattern.replace("{" + name + "}", text.replace("{{", "{").replace("}}", "}"))
    return pattern


def compile_phrases(table: Mapping[str, tuple]) -> list[tuple]:
    """[(label, stems, compiled alternation)] of FINDINGS or NORMAL."""
    rows = []
    for label, (stems, phrases) in table.items():
        pattern = "|".join(f"(?:{expand_words(phrase)})" for phrase in phrases)
        rows.append((label, stems, re.compile(rf"\b(?:{pattern})")))
    return rows


def spell_out(phrase: str) -> Iterable[tuple[str, ...]]:
    """Every word sequence that a cue phrase stands for: (a|b) is a choice, a trailing ? makes the word optional."""
    choices = []
    for part in re.findall(r"\([^)]*\)\??|\S+", phrase):
        optional = part.endswith("?")
        part = part.rstrip("?")
        if part.startswith("("):
            words = part[1:-1].split("|")
        elif optional:
            words, optional = [part, part[:-1]], False  # "appears?" is "appears" or "appear"
        else:
            words = [part]
        choices.append([*words, ""] if optional else words)
    for words in itertools.product(*choices):
        yield tuple(" ".join(words).split())


def compile_cues() -> dict:
    """A tree of words: cues by their words, one level a word; the kind lies under ''. Longest match wins."""
    tree: dict = {}
    for kind, phrases in CUES.items():
        for phrase in phrases:
            for words in spell_out(phrase.format(**CUE_WORDS)):
                node = tree
                for word in words:
                    node = node.setdefault(word, {})
                node[""] = (*node.get("", ()), kind)
    return tree


FINDING_ROWS = compile_phrases(FINDINGS)
NORMAL_ROWS = compile_phrases(NORMAL)
CUE_TREE = compile_cues()
for _label in {**FINDINGS, **NORMAL}:
    assert _label in CHEXPERT_14, _label


# ---------------------------------------------------------------------------------------------------- deciding


def find_cues(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """[(start, end, kinds)] of a clause in lower case, from left to right; 'comma' and 'predicate' are kinds too."""
    words = [(match.start(), match.end(), match.group()) for match in WORD.finditer(text)]
    cues: list[tuple[int, int, tuple[str, ...]]] = []
    i = 0
    while i < len(words):
        start, end, word = words[i]
        node, j, kinds, last = CUE_TREE.get(word), i, None, i
        while node is not None:
            if "" in node:
                kinds, last = node[""], j
            j += 1
            node = node.get(words[j][2]) if j < len(words) else None
        before = text[:start].rstrip()
        if before.endswith(",") and word in NEW_STATEMENT:
            cues.append((start, start, ("comma",)))
        elif before.endswith(" and") and word in NEW_AFTER_AND:
            cues.append((start, start, ("opening",)))
        if kinds is not None:
            cues.append((start, words[last][1], kinds))
        elif word in PREDICATES:
            cues.append((start, end, ("predicate",)))
        i = last + 1
    return cues


def decide(text: str, start: int, end: int, cues: list, first: int) -> str | None:
    """State of the finding text[start:end] of a clause, or None where the clause does not speak of this image.

    `first` is the start of the first finding of the clause: "resolved" looks forward only when it comes before it.
    """
    doubt = denied = False
    for cue_start, cue_end, kinds in reversed(cues):
        if cue_end > start:
            continue
        if "maybe" in kinds:
            return "uncertain"
        if "wall" in kinds or "opening" in kinds:
            break
        if "comma" in kinds and not LIST_GOES_ON.search(text, end):
            break
        if "skip" in kinds:
            return None
        if "negate" in kinds and not (text[cue_start:cue_end] in ("resolved", "negative") and first < cue_start):
            denied = True
            break
        if "doubt" in kinds or ("either" in kinds and cue_end + 40 > start):
            doubt = True
    predicate = False
    for cue_start, cue_end, kinds in cues:
        if cue_start < end:
            continue
        if "wall" in kinds or "opening" in kinds or "comma" in kinds or "negate" in kinds:
            if "negate" in kinds and text[cue_start:cue_end] == "resolved" and not predicate:
                denied = True
            break
        if "maybe" in kinds:
            return "uncertain"
        if "predicate" in kinds:
            predicate = True
        elif "denied" in kinds and not predicate and not SEEN_ELSEWHERE.match(text, cue_end):
            between = text[end:cue_start]
            denied = denied or "," not in between or " and " in between or " or " in between
            break
        elif "doubted" in kinds or ("either" in kinds and cue_start - 40 < end):
            doubt = True
    if denied:
        return "negative"
    return "uncertain" if doubt else "positive"


@lru_cache(maxsize=50_000)
def read_clause(text: str) -> tuple[tuple[str, str, int, int], ...]:
    """((label, state, start, end)) for every finding that one clause, in lower case, names."""
    found, covered = [], {}
    for label, stems, pattern in NORMAL_ROWS:
        if any(stem in text for stem in stems):
            spans = [match.span() for match in pattern.finditer(text)]
            found += [(label, "negative", start, end) for start, end in spans]
            covered[label] = spans
    open_ones = []
    for label, stems, pattern in FINDING_ROWS:
        if any(stem in text for stem in stems):
            for match in pattern.finditer(text):
                start, end = match.span()
                if not any(start < b and a < end for a, b in covered.get(label, ())):
                    open_ones.append((label, start, end))
    if open_ones:
        cues, first = find_cues(text), min(start for _, start, _ in open_ones)
        for label, start, end in open_ones:
            inside = NEGATION_INSIDE.search(text, start, end)
            state = "negative" if inside else decide(text, start, end, cues, first)
            implied = label in IMPLIED and IMPLIED[label].fullmatch(text, start, end)
            if implied and state == "negative":
                continue
            if state == "positive" and (implied or text.startswith("borderline", start)):
                state = "uncertain"
            if state is not None:
                found.append((label, state, start, end))
    return tuple(found)


def one_line(text: str) -> str:
    """`text` with every run of blanks as one space, as reports wrap within sentences; a blank line becomes " | "."""
    return GLUED.sub(r"\1/", " | ".join(" ".join(part.split()) for part in PARAGRAPH.split(text)))


RANK = {"positive": 3, "uncertain": 2, "negative": 1, "absent": 0}


def lower_case(text: str) -> str:
    """`text` in lower case; a few letters would change their length: they stay, so that positions are those of the text."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def find_clauses(lower: str) -> Iterable[tuple[int, int]]:
    """(start, end) of the clauses of a text of `one_line` in lower case."""
    start = 0
    for cut in itertools.chain(CLAUSE_END.finditer(lower), (None,)):
        yield start, cut.start() if cut else len(lower)
        start = cut.end() if cut else len(lower)


def find_statements(plain: str) -> Iterable[tuple[str, str, int, int]]:
    """(label, state, start, end) of every finding that a text of `one_line` names, clause by clause."""
    lower = lower_case(plain)
    for start, stop in find_clauses(lower):
        clause = lower[start:stop]
        for label, state, a, b in read_clause(clause) if clause.strip() else ():
            yield label, state, start + a, start + b


def label_report(text: str) -> dict[str, Mention]:
    """What a report says of each of the 14 labels.

    In: the findings or the impression, as written or as cleaned by R2Gen. Out: {label: Mention} in CHEXPERT_14 order;
    of several mentions a positive one wins, then an uncertain, then a negative one. No Finding is positive when no
    other label but Support Devices is positive or uncertain, else absent; a blank report has no label at all.
    Errors: InputError when `text` is not a string.
    """
    if not isinstance(text, str):
        raise InputError(f"a report must be text, got {type(text).__name__} {text!r:.40}")
    plain = one_line(text)
    mentions = dict.fromkeys(CHEXPERT_14, ABSENT)
    if not plain.strip():
        return mentions
    for label, state, start, end in find_statements(plain):
        if RANK[state] > RANK[mentions[label].state]:
            mentions[label] = Mention(state, plain[start:end])
    diseases = (m for label, m in mentions.items() if label not in NOT_A_DISEASE)
    if all(m.state in ("negative", "absent") for m in diseases):
        normal = NORMAL_REPORT.search(lower_case(plain))
        mentions[NO_FINDING] = Mention("positive", plain[normal.start() : normal.end()] if normal else "")
    return mentions


def positive_labels(mentions: Mapping[str, Mention], uncertain_positive: bool = True) -> list[int]:
    """[14] of 0/1 in CHEXPERT_14 order; an uncertain finding counts as 1 (u1) or 0 (u0)."""
    counted = ("positive", "uncertain") if uncertain_positive else ("positive",)
    return [int(mentions[label].state in counted) for label in CHEXPERT_14]


def label_values(mentions: Mapping[str, Mention], uncertain: str = "positive") -> list[int]:
    """As `positive_labels`, with the rule by name: positive, negative, or keep, which writes -1 for uncertain."""
    if uncertain not in UNCERTAIN_RULES:
        raise InputError(f"uncertain {uncertain!r}: choose from {', '.join(UNCERTAIN_RULES)}")
    if uncertain != "keep":
        return positive_labels(mentions, uncertain == "positive")
    values = {"positive": 1, "uncertain": -1}
    return [values.get(mentions[label].state, 0) for label in CHEXPERT_14]


def label_reports(texts: Iterable[str], uncertain: str = "positive") -> np.ndarray:
    """int8 [B, 14] in CHEXPERT_14 order for B reports; `uncertain` as in `label_values`."""
    rows = [label_values(label_report(text), uncertain) for text in texts]
    return np.array(rows, dtype=np.int8).reshape(len(rows), len(CHEXPERT_14))
