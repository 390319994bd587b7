"""The scores of one run as tables for the terminal."""

from collections.abc import Mapping, Sequence

from modules.scoring.baselines import footnotes, prefixes, title
from modules.scoring.clinical import LEADING
from modules.scoring.metrics import METRICS, REFERENCE_COLUMNS

TITLES = {"BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "ROUGE_L": "ROUGE-L"}
FINDINGS = "F1: of the 13 findings without No Finding, uncertain ones counted (other label sets and rules: `ce/...`)."


def format_table(metrics: Mapping, published: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The result of score() or scoring.score_all() as Markdown tables that read well as plain text too.

    The first is the headline: this system, its 95% interval and the baselines (`*`), on all studies and on the abnormal ones.
    Then the text metrics under each protocol with `published`: name of a system -> its values by the names of METRICS (any
    may be absent), protocol as their papers used it, named where it is not r2gen. `n/a`: could not be computed (the reason
    follows below); `-`: not given. Then clinical F1 and the parts of the split. Below: distinct reports, lengths, notes.
    """
    lines = [["protocol", "system", *(TITLES.get(name, name) for name in METRICS)]]
    for protocol in REFERENCE_COLUMNS:
        lines += _system_rows(metrics, protocol, [f"{protocol}/{name}" for name in METRICS])
    for name, values in (published or {}).items():
        label = f"published, {values['protocol']}" if "protocol" in values else "published"
        lines.append([label, name, *(_cell(values, metric) for metric in METRICS)])
    head = _headline(metrics)
    tables = [markdown(head, words=1)] if head else []
    tables.append(markdown(lines, words=2))
    averages = [f"{labels}/{average}" for labels in ("13", "14", "5") for average in ("micro", "macro", "example")]
    clinical = [["F1 of labels", "system", *(name.replace("/", " ") for name in averages)]]
    for labeler in metrics.get("by_label", ()):
        for rule in ("u0", "u1"):
            clinical += _system_rows(
                metrics, f"{labeler} {rule}", [f"ce/{labeler}/{name}/{rule}/f1" for name in averages]
            )
    extra = sorted(key for key in metrics if key.startswith(("radgraph/", "radeval/")))
    parts = _part_rows(metrics)
    tables += [markdown(table, words=2) for table in (clinical, parts) if len(table) > 1]
    text = "\n\n".join("\n".join(table) for table in tables)
    below = [f"{key}: {_cell(metrics, key)}" for key in extra] + _below(metrics)
    below += footnotes([prefix[:-1] for prefix in prefixes(metrics)])
    below += [f"{key}: {reason}" for key, reason in metrics["notes"].items()]
    return "\n".join([text, "", *below])


def _system_rows(metrics: Mapping, name: str, keys: Sequence[str]) -> list[list[str]]:
    """Rows of this system, its interval and the baselines under `name`, as far as they are known."""
    rows = []
    for prefix in prefixes(metrics):
        if any(prefix + key in metrics for key in keys):
            rows.append([name, title(prefix), *(_cell(metrics, prefix + key) for key in keys)])
            if not prefix and any(key in metrics.get("intervals", {}) for key in keys):
                rows.append([name, "  95% interval", *_bounds(metrics, keys)])
    return rows


def _bounds(metrics: Mapping, keys: Sequence[str]) -> list[str]:
    between = metrics.get("intervals", {})
    return [" - ".join(f"{bound:.3f}" for bound in between[key]) if key in between else "" for key in keys]


def leading_keys(metrics: Mapping) -> tuple[list[str], list[str]]:
    """The figures that stand for all: keys of text metrics (first protocol) and of clinical F1 (first labeler); none is []."""
    protocol = next((name for name in REFERENCE_COLUMNS if f"{name}/BLEU_4" in metrics), None)
    labeler = next(iter(metrics.get("by_label", ())), None)
    texts = [f"{protocol}/{name}" for name in ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")] if protocol else []
    return texts, [f"ce/{labeler}/{LEADING}", f"ce/{labeler}/{LEADING}".replace("micro", "macro")] if labeler else []


def _headline(metrics: Mapping) -> list[list[str]]:
    """This system and the baselines in the leading figures: of all studies, and of those with any finding."""
    texts, clinical = leading_keys(metrics)
    part = metrics.get("subsets", {}).get("abnormal", {})
    if not (texts and clinical and part):
        return []
    keys, also = [*texts, *clinical], [texts[-1], clinical[0]]
    names = [TITLES.get(key.split("/")[1], key.split("/")[1]) for key in texts]
    few = f"{part['studies']:,d} abnormal"
    of = f"{metrics['studies']:,d} studies, {texts[0].split('/')[0]}"
    rows = [[of, *names, "F1 micro", "F1 macro", f"{few}: CIDEr", "F1 micro", "distinct"]]
    for prefix in prefixes(metrics):
        facts = metrics["baselines"][prefix[:-1]] if prefix else metrics
        cells = [_cell(metrics, prefix + key) for key in keys] + [_cell(part, prefix + key) for key in also]
        rows.append([title(prefix), *cells, str(facts["distinct_reports"])])
        if not prefix and metrics.get("intervals"):
            rows.append(["  95% interval", *_bounds(metrics, keys), *_bounds(part, also), ""])
    return rows


def _part_rows(metrics: Mapping) -> list[list[str]]:
    """The parts of the split, chosen by their references: abnormal or not, speaking of earlier studies or not."""
    texts, clinical = leading_keys(metrics)
    keys = [*texts, *clinical]
    heads = [TITLES.get(key.split("/")[1], key.split("/")[1]) for key in texts] + ["F1 micro", "F1 macro"][: len(clinical)]
    rows = [[f"references ({texts[0].split('/')[0] if texts else '-'})", "system", "studies", *heads]]
    for part in ("abnormal", "normal", "earlier", "not_earlier"):
        values = metrics.get("subsets", {}).get(part, {"studies": 0})
        for prefix in prefixes(values):
            if any(prefix + key in values for key in keys):
                cells = [_cell(values, prefix + key) for key in keys]
                rows.append([part.replace("_", " "), title(prefix), str(values["studies"]), *cells])
    return rows


def _below(metrics: Mapping) -> list[str]:
    """Distinct reports, lengths and sentences about earlier studies in words."""
    sides = ("prediction", "reference")
    lengths = (f"{side} {metrics[f'mean_words_{side}']:.1f}" for side in sides)
    facts = [FINDINGS] if metrics.get("by_label") else []
    facts += [
        f"{metrics['studies']} studies; {metrics['distinct_reports']} distinct reports, the commonest is "
        f"{metrics['commonest_share']:.1%} of all; mean words: {', '.join(lengths)}."
    ]
    bootstrap = metrics.get("bootstrap", {})
    if metrics.get("intervals") and bootstrap.get("unit", "row") != "row":
        facts.append(f"Intervals: {drawn(bootstrap['unit'], bootstrap['units'])} (--resample_by), since rows share them.")
    if "earlier" in metrics:
        shares = (f"{side} {metrics['earlier'][side]['sentences']:.1%}" for side in sides)
        facts.append(f"Sentences about earlier studies: {', '.join(shares)}.")
    return facts


def drawn(unit: str, count: int) -> str:
    """What a resample draws, for people."""
    name = {"row": "rows", "study": "studies", "patient": "patients"}[unit]
    return f"{count:,d} {name} drawn"


def markdown(lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """The lines of a Markdown table with even columns; the first `words` columns are words, the others numbers."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < words else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [texts[0], rule, *texts[1:]]


def _cell(values: Mapping[str, float | None], key: str) -> str:
    if key not in values:
        return "-"
    return "n/a" if values[key] is None else f"{values[key]:.4f}"
