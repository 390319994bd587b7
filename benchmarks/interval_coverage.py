"""How often the 95% intervals of modules/scoring/resampling.py hold the truth where 1 to 5 rows share a study.

    python -m benchmarks.interval_coverage [--simulations 1000] [--studies 200] [--out FILE]

Each simulated set draws studies with 1 to 5 rows (as the images of MIMIC-CXR's test studies) whose scores are a study's own
level and a row's own, half of the variance each; the truth is the mean over rows of the law they are drawn from. Intervals
draw studies, and rows as if nothing were shared.
"""

import argparse

import numpy as np
import torch

from benchmarks.measure import report
from modules.scoring.resampling import intervals, mean_statistic

ROWS = np.array([1, 2, 3, 4, 5])
SHARES = np.array([1130, 952, 237, 27, 1]) / 2347  # of MIMIC-CXR's test studies


def coverage(
    simulations: int, studies: int, resamples: int = 1000, seed: int = 0, shares: np.ndarray = SHARES
) -> dict[str, float]:
    """{"study", "row": share of simulated sets whose interval holds the truth, which is 0}."""
    draw = np.random.default_rng(seed)
    held = dict.fromkeys(("study", "row"), 0)
    for _ in range(simulations):
        units = np.repeat(np.arange(studies), draw.choice(ROWS, studies, p=shares))
        values = draw.normal(size=studies)[units] + draw.normal(size=len(units))
        for name, drawn in (("study", units), ("row", None)):
            low, high = intervals({"x": mean_statistic(values)}, resamples, drawn)["x"]
            held[name] += low <= 0 <= high
    return {name: count / simulations for name, count in held.items()}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args(argv)
    rows = []
    for name, shares in (("as MIMIC-CXR's test studies", SHARES), ("1 to 5 rows alike", np.full(5, 0.2))):
        found = coverage(args.simulations, args.studies, args.resamples, shares=shares)
        rows += [(f"{name}: studies drawn", found["study"], ""), (f"{name}: rows drawn", found["row"], "")]
    report(
        f"coverage of 95% intervals, {args.simulations:,d} sets of {args.studies} studies",
        rows,
        args,
        torch.device("cpu"),
    )


if __name__ == "__main__":
    main()
