"""What papers print of a data set's test split (results/published.json), shown only beside the same studies."""

import json
from collections.abc import Mapping

from modules.artefact import ROOT


def published_rows(data_set: str | None, metrics: Mapping) -> tuple[dict[str, dict], str | None]:
    """({name of a system: its values by the names of METRICS}, a line that says why not or what is not known of them).

    metrics: what score_all gives of the scored studies; their ids must be those of the published split.
    """
    known = json.loads((ROOT / "results" / "published.json").read_text(encoding="utf-8")).get(data_set)
    if known is None:
        return {}, None
    split, studies = known["split"], metrics.get("studies", 0)
    if studies != split["studies"] or split["ids_sha256"] not in (None, metrics.get("ids_sha256")):
        count = f"{studies:,d} studies scored, {split['studies']:,d} in the test split of the papers"
        return {}, f"Published rows are not shown: {count}, and the ids are not the same."
    if split["ids_sha256"] is None:
        return known["rows"], "Published rows: the ids of their split are not known here, only that it has as many studies."
    return known["rows"], None
