"""How well a trained system predicts the scene graph of an image: regions and attributes against the file's.

    python -m knowledge.check_graphs --load results/sgrrg_miniature/best.pt --split test

Needs a file of scene graphs with attributes. Regions: AUC of the probabilities, and precision, recall and F1 of the
sub-graphs chosen at --region_threshold. Attributes: the pairs (region, attribute) of all chosen sub-graphs at
--attribute_threshold, against those of the report. Beside both stands a guess that does not look at the image: every
pair seen in more than a share of the training images, the share being the one with the best F1 in training.
"""

from pathlib import Path

import numpy as np
import torch

from data.batches import make_loader
from data.prepare import make_dataset, open_data
from data.scene_graphs import SceneGraphs
from data.studies import Study
from knowledge.classifier.metrics import macro_auroc
from models import SYSTEMS
from modules.artefact import write_json
from modules.checkpoint import is_ours, load_checkpoint
from modules.errors import InputError, Problems, entry
from modules.flags import parse
from modules.precision import Precision, choose_device
from modules.text.tokenizer import Tokenizer


def rates(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of all bits together; found, truth: bool of one shape."""
    hit, count, there = int((found & truth).sum()), int(found.sum()), int(truth.sum())
    precision, recall = hit / max(count, 1), hit / max(there, 1)
    f1 = 2 * hit / max(count + there, 1)
    return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4), "there": there}


def bits_of(graphs: SceneGraphs, studies: list[Study]) -> tuple[np.ndarray, np.ndarray]:
    """(regions spoken of, bool [N, R]; pairs of region and attribute, bool [N, R, M]) of the studies' first images."""
    found = [graphs.of(study.images[0]) for study in studies]
    pairs = np.zeros((len(found), len(graphs.layout.regions), max(graphs.layout.heads)), bool)
    for row, graph in zip(pairs, found):
        np.logical_or.at(row, graph.regions, graph.attributes & graph.spoken[:, None])
    return np.stack([graph.region_labels for graph in found]), pairs


def blind_guess(training: np.ndarray) -> tuple[np.ndarray, float]:
    """(bits to guess always, share) for bool [N, ...]: those more frequent than the share that does best in training."""
    often = training.mean(0)
    cuts = np.unique(often[often > 0])
    scores = [rates(np.broadcast_to(often >= cut, training.shape), training)["f1"] for cut in cuts]
    cut = cuts[int(np.argmax(scores))]
    return often >= cut, float(cut)


@torch.no_grad()
def predicted(system, loader, device, precision, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities of regions [N, R], chosen bool [N, R], pairs bool [N, R, M]) of a loader's studies."""
    likely, chosen, pairs = [], [], []
    for batch in loader:
        batch = batch.to(device)
        with precision.region():
            memory = system.encode(batch)
        likely.append(memory["regions"].float().sigmoid().cpu().numpy())
        row, box = (places.cpu().numpy() for places in memory["chosen"].nonzero(as_tuple=True))
        of = batch.box_regions.cpu().numpy()[row, box]
        here, names = np.zeros((len(batch), shape[0]), bool), np.zeros((len(batch), *shape), bool)
        here[row, of] = True
        if len(row):
            sure = (memory["attributes"] > system.attribute_threshold).cpu().numpy()[row, box]
            np.logical_or.at(names[..., : sure.shape[-1]], (row, of), sure)
        chosen.append(here)
        pairs.append(names)
    return np.concatenate(likely), np.concatenate(chosen), np.concatenate(pairs)


def measure(system, loader, studies, training, graphs: SceneGraphs, device, precision) -> dict:
    """The figures of the head of this file, for the studies of a loader."""
    heads = graphs.layout.heads
    likely, chosen, pairs = predicted(system, loader, device, precision, (len(heads), max(heads)))
    truth, true_pairs = bits_of(graphs, studies)
    used = likely.shape[1]  # --regions takes the first so many
    trained, trained_pairs = bits_of(graphs, training)
    guess, guess_pairs = blind_guess(trained)[0], blind_guess(trained_pairs)[0]
    each = {}
    for number, name in enumerate(graphs.layout.regions[:used]):
        auc = macro_auroc(truth[:, [number]].astype(int), likely[:, [number]])
        each[name] = None if np.isnan(auc) else round(auc, 4)
    known = [auc for auc in each.values() if auc is not None]
    return {
        "studies": len(studies),
        "region_auc": round(float(np.mean(known)), 4) if known else None,
        "regions_with_both": len(known),
        "region_auc_of": each,
        "regions": rates(chosen, truth),
        "regions_guessed": rates(np.broadcast_to(guess, truth.shape), truth),
        "attributes": rates(pairs, true_pairs),
        "attributes_guessed": rates(np.broadcast_to(guess_pairs, true_pairs.shape), true_pairs),
    }


def show(result: dict) -> str:
    """The figures for people."""
    lines = [f"{result['studies']} studies; AUC of regions, mean over the {result['regions_with_both']} that some reports "
             f"speak of and some do not: {result['region_auc']}"]  # fmt: skip
    lines += [f"  {name:24s} {'-' if auc is None else format(auc, '.3f')}" for name, auc in result["region_auc_of"].items()]
    for name in ("regions", "regions_guessed", "attributes", "attributes_guessed"):
        words = name.replace("_guessed", ", not looking at the image")
        row = [f"{figure} {value:.3f}" for figure, value in result[name].items() if figure != "there"]
        lines.append(f"{words:40s} {'  '.join(row)}  ({result[name]['there']} there)")
    return "\n".join(lines)


@entry
def main(argv: list[str] | None = None) -> None:
    args = parse(argv, "test", systems=SYSTEMS)
    if not args.load:
        raise InputError("--load: give a checkpoint of ours (results/<run>/best.pt)")
    content = load_checkpoint(args.load)
    if not is_ours(content) or "scene_graphs" not in content["parts"]:
        raise InputError(f"--load {args.load} is no checkpoint of ours that reads scene graphs")
    args = parse(argv, "test", systems=SYSTEMS, carried=content["flags"])
    if getattr(args, "oracle_graph", False):
        raise InputError("--oracle_graph: the true graph has nothing to be measured against")
    kind, problems, device = SYSTEMS[args.model], Problems(), choose_device(args.device)
    kind.check(args, problems, training=False, carried=True)
    inputs = kind.inputs(args, training=False)
    data = open_data(args, {"train": {"scene_graphs"}, args.split: inputs}, problems)
    graphs = data.scene_graphs
    problems.check(
        graphs is None or graphs.with_attributes,
        f"--scene_graphs {args.scene_graphs} has boxes alone: nothing to measure the predicted graph against",
    )
    problems.stop_if_any()
    assert graphs is not None  # else that was one of the problems
    tokenizer = Tokenizer.from_state_dict(content["tokenizer"])
    system = kind.build(args, tokenizer, content["parts"])
    system.load_start(content, args.load)
    system = system.to(device).eval()
    dataset = make_dataset(args, data, args.split, system.needs(training=False), tokenizer, training=False)
    loader = make_loader(dataset, batch_size=args.batch_size, num_workers=args.num_workers, shuffle=False)
    studies, training = data.studies[args.split], data.studies["train"]
    result = measure(system, loader, studies, training, graphs, device, Precision(args.precision, device))
    print(show(result))
    out = Path(args.load).parent / f"graphs_{args.split}.json"
    facts = {"boxes_from": graphs.manifest["boxes_from"], "attributes_from": graphs.manifest["attributes_from"]}
    write_json(out, {"split": args.split, **facts, **result})
    print(f"{out} holds these figures")


if __name__ == "__main__":
    main()
