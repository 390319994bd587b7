"""What a data set gives to who trains nothing: the constant reports, the nearest study's report, the consensus of the nearest.

    python -m benchmarks.baselines --data_dir ../iu_xray --visual_extractor efficientnet_lite0 --image_size 160

The extractor is ImageNet's, or that of --extractor_weights; both views, as R2GenCMN reads the set. The folder of --out is one
that --table takes. Further flags are those of main_train.py.
"""

import argparse
import time
from pathlib import Path

import torch

from data.studies import read_annotation
from knowledge.retrieve import retrieved_reports
from models import SYSTEMS
from modules.flags import parse
from modules.nets.pretrained import load_backbone
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import Precision, choose_device
from modules.run_folder import describe_run
from modules.scoring.commands import print_scores
from modules.scoring.constant_report import constant_reports
from modules.scoring.predictions import R2GenReferences, unit_columns, write_predictions
from modules.scoring.score_all import score_all, write_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="results/baselines")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    own, rest = parser.parse_known_args()
    args = parse(["--model", "r2gencmn", *rest], "train", systems=SYSTEMS)
    args.baselines, args.split, device = "all", own.split, choose_device(args.device)
    everything = read_annotation(args.ann_path)
    extractor = VisualExtractor(args.visual_extractor, freeze="all", dilate=args.dilate).eval()
    where = {"weights_dir": args.weights_dir, "offline": args.offline}
    load_backbone(extractor.body, args.visual_extractor, args.extractor_weights, **where)
    texts = {split: [study.report for study in rows] for split, rows in everything.items()}
    rule = {"rule": args.cleaning, "threshold": args.reference_threshold, "max_words": args.reference_words}
    references = R2GenReferences(texts["train"], **rule)
    clock = [time.perf_counter()]
    constants = constant_reports(texts["train"], texts["val"], references)
    clock.append(time.perf_counter())
    how = {"device": device, "precision": Precision(args.precision, device)}
    found = retrieved_reports(args, extractor, everything["train"], everything[own.split], references, **how)
    clock.append(time.perf_counter())
    studies = everything[own.split]
    rows = [
        references.row(study.id, study.report, found[study.id]["consensus"], **constants, **found[study.id], **units)
        for study, units in zip(studies, unit_columns(studies))
    ]
    scores = score_all(rows, expected_ids=[study.id for study in studies])
    facts = {"name": "consensus", "split": own.split, "data_set": args.dataset_name, "run": describe_run(args, device)}
    folder = Path(own.out)
    write_predictions(folder / f"predictions_{own.split}.csv", rows)
    write_scores(folder, own.split, scores, facts)
    print_scores(args.dataset_name, scores.metrics)
    first, second = (b - a for a, b in zip(clock, clock[1:]))
    threads = f"{torch.get_num_threads()} thread(s) on {device}"
    print(f"constants {first:.1f} s; features, nearest and consensus {second:.1f} s; {threads}")


if __name__ == "__main__":
    main()
