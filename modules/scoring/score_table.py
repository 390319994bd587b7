"""The scores of one run as tables for the terminal."""

from collections.abc import Mapping, Sequence

from modules.scoring.metrics import METRICS, REFERENCE_COLUMNS

TITLES = {"BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "ROUGE_L": "ROUGE-L"}


def format_table(metrics: Mapping, published: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The result of score() or scoring.score_all() as Markdown tables that read well as plain text too.

    Rows of the first: this system, its 95% interval and the constant report (`*`) under each protocol, then `published`: name
    of a system -> its values by the names of METRICS (any may be absent), protocol as their papers used it, named where it is
    not r2gen. `n/a`: could not be computed (the reason follows below); `-`: not given. Then clinical F1 and the parts of the
    split, where they are known. Below: distinct reports, lengths, notes.
    """
    lines = [["protocol", "system", *(TITLES.get(name, name) for name in METRICS)]]
    for protocol in REFERENCE_COLUMNS:
        lines += _system_rows(metrics, protocol, [f"{protocol}/{name}" for name in METRICS])
    for name, values in (published or {}).items():
        label = f"published, {values['protocol']}" if "protocol" in values else "published"
        lines.append([label, name, *(_cell(values, metric) for metric in METRICS)])
    tables = [markdown(lines, words=2)]
    averages = [f"{labels}/{average}" for labels in ("14", "5") for average in ("micro", "macro", "example")]
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
    if any(line[1] == "constant report *" for line in lines):
        below.append("* one training report, the best on validation, given to every study.")
    below += [f"{key}: {reason}" for key, reason in metrics["notes"].items()]
    return "\n".join([text, "", *below])


def _system_rows(metrics: Mapping, name: str, keys: Sequence[str]) -> list[list[str]]:
    """Rows of this system, its interval and the constant report under `name`, as far as they are known."""
    rows, between = [], metrics.get("intervals", {})
    for system, prefix in (("this system", ""), ("constant report *", "constant/")):
        if any(prefix + key in metrics for key in keys):
            rows.append([name, system, *(_cell(metrics, prefix + key) for key in keys)])
            if not prefix and any(key in between for key in keys):
                bounds = [
                    " - ".join(f"{bound:.3f}" for bound in between[key]) if key in between else "" for key in keys
                ]
                rows.append([name, "  95% interval", *bounds])
    return rows


def _part_rows(metrics: Mapping) -> list[list[str]]:
    """The parts of the split, chosen by their references: abnormal or not, speaking of earlier studies or not."""
    protocol = next((name for name in REFERENCE_COLUMNS if f"{name}/BLEU_4" in metrics), None)
    labeler = next(iter(metrics.get("by_label", ())), None)
    keys = [f"{protocol}/{name}" for name in ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")]
    keys += [f"ce/{labeler}/14/{average}/u1/f1" for average in ("micro", "macro")]
    heads = [TITLES.get(key.split("/")[1], key.split("/")[1]) for key in keys[:5]] + ["F1 micro", "F1 macro"]
    rows = [[f"references ({protocol})", "system", "studies", *heads]]
    for part in ("abnormal", "normal", "earlier", "not_earlier"):
        values = metrics.get("subsets", {}).get(part, {"studies": 0})
        for system, prefix in (("this system", ""), ("constant report *", "constant/")):
            if any(prefix + key in values for key in keys):
                cells = [_cell(values, prefix + key) for key in keys]
                rows.append([part.replace("_", " "), system, str(values["studies"]), *cells])
    return rows


def _below(metrics: Mapping) -> list[str]:
    """Distinct reports, lengths and sentences about earlier studies in words."""
    sides = ("prediction", "reference")
    lengths = (f"{side} {metrics[f'mean_words_{side}']:.1f}" for side in sides)
    facts = [
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
