"""RadGraph F1 and the metrics of RadEval, through the packages of their authors, for those who have them.

`--extra_metrics radgraph radeval:ratescore`. Neither package nor weights are needed by anything else: where one is missing, or
fails, the metric is n/a with the reason. Metrics that send reports to a service are refused: nothing leaves the machine.
"""

import importlib.util
import os
from collections.abc import Sequence

import numpy as np

from modules.errors import InputError
from modules.scoring.resampling import Statistic, mean_statistic

RADGRAPH_LEVELS = ("simple", "partial", "complete")
SERVICES = ("crimson", "mammo_green", "radfact_ct")  # of RadEval: they ask a language model over the network


def check_extra(names: Sequence[str]) -> None:
    """InputError for a name that is no extra metric, or one that would send reports away."""
    for name in names:
        package, _, metric = name.partition(":")
        if package not in ("radgraph", "radeval") or (package == "radeval" and not metric):
            raise InputError(f"--extra_metrics {name}: known are radgraph[:MODEL] (radgraph-xl) and radeval:METRIC")
        if package == "radeval" and metric in SERVICES:
            raise InputError(
                f"--extra_metrics {name}: it sends reports to a service, and nothing is sent anywhere here"
            )


def extra_statistics(
    names: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    offline: bool = False,
    radgraph_dir: str | None = None,
) -> tuple[dict[str, Statistic | None], dict[str, str]]:
    """{key: mean over studies, or None} and why those that are None are so; raw texts on both sides.

    Keys: `radgraph/<model>/<simple|partial|complete>`, `radeval/<the package's key>`. radgraph_dir: folder with one folder
    per model (config.json, weights.th, vocabulary); None: the package's own cache, filled from the network unless offline.
    """
    check_extra(names)
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    statistics, notes = {}, {}
    for name in names:
        package, _, metric = name.partition(":")
        keys = [f"radgraph/{metric or 'radgraph-xl'}/{level}" for level in RADGRAPH_LEVELS]
        keys = keys if package == "radgraph" else [f"radeval/{metric}"]
        statistics.update(dict.fromkeys(keys))
        if importlib.util.find_spec(package) is None:
            notes[name] = f"the optional package {package} is not installed (pip install {package})"
            continue
        try:
            if package == "radgraph":
                values = radgraph_values(metric or "radgraph-xl", references, hypotheses, radgraph_dir)
                found = dict(zip(keys, values))
            else:
                found = {f"radeval/{key}": value for key, value in _radeval(metric, references, hypotheses).items()}
            columns = {key: np.array(value, dtype=np.float64) for key, value in found.items()}
            wrong = [key for key, column in columns.items() if column.shape != (len(references),)]
            if wrong or not columns or not all(np.isfinite(column).all() for column in columns.values()):
                raise ValueError(f"it does not give one number per study ({', '.join(wrong or columns)})")
        except Exception as error:  # whatever goes wrong in a package of others is a reason, never the end of a run
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            continue
        for key in keys:
            statistics.pop(key)
        statistics.update({key: mean_statistic(column) for key, column in columns.items()})
    return statistics, notes


def radgraph_values(model: str, references: Sequence[str], hypotheses: Sequence[str], folder: str | None) -> Sequence:
    """RadGraph F1 per study at its three levels (Delbrouck et al. 2022)."""
    from radgraph import F1RadGraph

    if folder is not None and not os.path.isfile(os.path.join(folder, model, "weights.th")):
        raise FileNotFoundError(f"--radgraph_dir {folder} has no {model}/weights.th")
    scorer = F1RadGraph(reward_level="all", model_type=model, model_cache_dir=folder)
    _, values, _, _ = scorer(refs=list(references), hyps=list(hypotheses))
    return values


def _radeval(metric: str, references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Sequence]:
    """One metric of RadEval 2 per study, under the package's keys."""
    from radeval import RadEval

    return RadEval(metrics=[metric], per_sample=True, show_progress=False)(refs=list(references), hyps=list(hypotheses))
