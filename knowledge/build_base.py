"""Build the knowledge base of a data set: one expert report per label vector (or per disease), from training reports.

    python -m knowledge.build_base --dataset_name iu_xray
    python -m knowledge.build_base --dataset_name iu_xray --show Cardiomegaly "Pleural Effusion"

Per group of training reports with one label vector: PKS = mean embedding of the reports, RKS = the real report nearest
to it in Euclidean distance. Two passes, so that no more than a group's sum is held: 270,790 reports fit in little memory.
"""

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch

from data.studies import read_annotation
from knowledge.command import out, read_beside_training
from models import SYSTEMS
from modules.artefact import built_already, read_manifest, sha256, write_built
from modules.checkpoint import is_ours, load_checkpoint
from modules.errors import InputError, entry
from modules.flags import Flag
from modules.nets.knowledge_base import KnowledgeBase, embed
from modules.nets.transformer import Embedding
from modules.progress import tracked
from modules.safe_pickle import load_pickle
from modules.text.labels import CHEXPERT_14, NO_FINDING, read_label_table
from modules.text.tokenizer import Tokenizer

VERSION = 2  # raise it when the same inputs give another base
FIXED = ("version", "annotation_sha256", "shape", "threshold", "limit")  # a base of others is not kept: it does not fit
BLOCK = 512  # reports embedded at once


def groups_of(vectors: list[list[int]], kind: str) -> dict[tuple[int, ...], list[int]]:
    """{key: numbers of the reports that belong to it}. vector: the whole vector; disease: one key per positive label."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, vector in enumerate(vectors):
        if kind == "vector":
            groups[tuple(vector)].append(number)
        else:
            for place, bit in enumerate(vector):
                if bit:
                    groups[tuple(int(place == k) for k in range(len(vector)))].append(number)
    return dict(groups)


@torch.no_grad()
def build(ids: torch.Tensor, vectors: list[list[int]], layer: dict, *, kind: str, progress: bool = True) -> dict:
    """The entries: {key: {"report": number of the expert, "distance", "next": (number, distance), "size"}}.

    ids: int [N, L] token ids of the training reports. layer: the generator's embedding layer (modules.nets.knowledge_base.embed).
    Memory: one sum [L, D] per group in the first pass and one block of embeddings in the second; the sums of as many
    groups as fit in 2 GB are kept at once.
    """
    groups = groups_of(vectors, kind)
    entry_bytes = ids.shape[1] * layer["word"].shape[1] * 4
    at_once = max(1, (2 << 30) // entry_bytes)
    result, keys = {}, sorted(groups)
    with tracked(total=2 * sum(map(len, groups.values())), desc="building the base", hidden=not progress) as bar:
        for first in range(0, len(keys), at_once):
            for key in keys[first : first + at_once]:
                result[key] = _expert(ids, groups[key], layer, bar)
    return result


def _expert(ids, members: list[int], layer, bar) -> dict:
    """The report of one group nearest to the group's mean; equal texts tie, the first of them wins."""
    blocks = [members[start : start + BLOCK] for start in range(0, len(members), BLOCK)]
    total = torch.zeros(ids.shape[1], layer["word"].shape[1], dtype=torch.float64)
    for block in blocks:
        total += embed(ids[block].long(), layer).double().sum(0)
        bar.update(len(block))
    mean = (total / len(members)).float()
    nearest: list[tuple[float, int]] = []
    for block in blocks:
        distances = (embed(ids[block].long(), layer) - mean).flatten(1).norm(dim=1)
        nearest = sorted([*nearest, *zip(distances.tolist(), block)])[:2]
        bar.update(len(block))
    best = nearest[0]
    other = nearest[1] if len(nearest) > 1 else (math.nan, None)
    return {"report": best[1], "distance": best[0], "next": other[::-1], "size": len(members)}


def embedding_layer(args, tokenizer: Tokenizer) -> tuple[dict, str]:
    """The generator's embedding layer and where it comes from: a checkpoint, or the fresh generator of --seed."""
    if args.embedding:
        content = load_checkpoint(args.embedding)
        state = (
            content["model"]
            if is_ours(content)
            else SYSTEMS[args.model].released_state(content.get("model", content))
        )
        names = {"word": "word.weight", "position": "position.weight", "weight": "norm.weight", "bias": "norm.bias"}
        layer = {name: state[f"embedding.{key}"] for name, key in names.items()}
        if layer["word"].shape[0] != tokenizer.vocab_size:
            raise InputError(
                f"--embedding {args.embedding} knows {layer['word'].shape[0]} ids, this vocabulary {tokenizer.vocab_size}"
            )
        return layer, f"checkpoint {sha256(args.embedding)}"
    torch.manual_seed(args.seed)
    fresh = Embedding(tokenizer.vocab_size, args.max_seq_length, args.d_model, 0.0)
    return fresh.tensors(), f"fresh generator, seed {args.seed}"


def make_base(args, flags) -> KnowledgeBase:
    """Read, group, embed; InputError for labels that are missing, or a split other than the training split."""
    studies, labels = read_annotation(flags.ann_path, flags.limit)["train"], flags.labels_path
    table = read_label_table(flags.labels_path, uncertain=args.uncertain)
    missing = [study.id for study in studies if study.id not in table]
    if missing and not flags.skip_broken:
        raise InputError(
            f"{flags.labels_path} lacks {len(missing)} training studies, such as {missing[:3]}; --skip_broken leaves them out"
        )
    studies = [study for study in studies if study.id in table]
    tokenizer = SYSTEMS[flags.model].make_tokenizer([study.report for study in studies], flags)
    flags.seed, flags.embedding = args.seed, args.embedding
    layer, source = embedding_layer(flags, tokenizer)
    # words without marks: position t of the decoder predicts word t, so the expert's word t stands beside it
    words = [tokenizer.encode(study.report)[1:-1][: flags.max_seq_length] for study in studies]
    ids = torch.full((len(words), flags.max_seq_length), tokenizer.padding, dtype=torch.int32)
    for row, numbers in enumerate(words):
        ids[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
    found = build(ids, [table[study.id] for study in studies], layer, kind=args.knowledge_key)
    facts = {
        "data_set": flags.dataset_name,
        "split": "train",
        "annotation_sha256": sha256(flags.ann_path),
        "training_reports": len(studies),
        "left_out": missing,
        "labels": list(CHEXPERT_14),
        "label_source": {"path": str(labels), "sha256": sha256(labels), **(read_manifest(labels) or {})},
        "tokenizer": tokenizer.fingerprint,
        "embedding": source,
    }
    reports = [
        {"id": studies[row["report"]].id, "report": studies[row["report"]].report, "distance_to_mean": row["distance"],
         "next_id": None if row["next"][0] is None else studies[row["next"][0]].id,
         "next_distance": row["next"][1] if row["next"][0] is not None else None}
        for row in found.values()
    ]  # fmt: skip
    return KnowledgeBase(
        torch.tensor(list(found)),
        ids=ids[[row["report"] for row in found.values()]],
        layer=layer,
        sizes=[row["size"] for row in found.values()],
        kind=args.knowledge_key,
        reports=reports,
        facts=facts,
    )


def show(base: KnowledgeBase, names: list[str]) -> str:
    """One entry for a person: label vector, group, expert report, its distance, the next nearest."""
    unknown = [name for name in names if name not in CHEXPERT_14]
    if unknown:
        raise InputError(f"--show {', '.join(unknown)}: unknown label; choose from {', '.join(CHEXPERT_14)}")
    vector = torch.tensor([int(label in names) for label in CHEXPERT_14])
    expert = base.expert(vector)
    labels = [label for label, bit in zip(CHEXPERT_14, expert["key"]) if bit]
    lines = [
        f"asked:   {', '.join(names) or 'no label'}",
        f"entry:   {', '.join(labels) or 'no label'}"
        + (f"  (nearest, {expert['distance']} labels differ)" if expert["distance"] else ""),
        f"group:   {expert['group']} training reports",
    ]
    if "report" in expert:
        lines += [
            f"expert:  {expert['id']}, distance to the group's mean {expert['distance_to_mean']:.3f}",
            f"         {expert['report']}",
            f"next:    {expert['next_id'] or 'none'}"
            + ("" if expert["next_id"] is None else f", distance {expert['next_distance']:.3f}"),
        ]
    return "\n".join(lines)


# fmt: off
OWN = (
    Flag("base", "uncertain", str, "positive", "what -1 in --labels_path counts as", choices=("positive", "negative")),
    Flag("base", "knowledge_key", str, "vector", "one entry per label vector, or per disease", choices=("vector", "disease")),
    Flag("base", "embedding", str, None, "checkpoint whose embedding layer is used [a fresh generator of --seed]"),
    Flag("base", "show", str, None, "print the entry that serves these labels, and leave", nargs="*"),
    *out("base.pt", "base"),
)
# fmt: on


def read_flags(argv):
    """This command's own flags and, for the generator's shape and the data's place, those of training."""
    args, flags = read_beside_training(argv, "build_base", __doc__.split("\n")[0], OWN, SYSTEMS)
    args.seed = flags.seed
    return args, flags


@entry
def main(argv=None) -> None:
    args, flags = read_flags(argv)
    path = Path(args.out)
    if args.show is not None:
        content = load_pickle(path)
        if not isinstance(content, dict) or content.get("what") != "knowledge base":
            raise InputError(f"{path} is not a knowledge base of ours")
        print(show(KnowledgeBase.from_state(content), args.show))
        return
    inputs = {
        "version": VERSION,
        "annotation_sha256": sha256(flags.ann_path) if Path(flags.ann_path).is_file() else None,
        "labels_sha256": sha256(flags.labels_path) if Path(flags.labels_path).is_file() else None,
        "key": args.knowledge_key, "uncertain": args.uncertain, "embedding": args.embedding or f"seed {args.seed}",
        "shape": [flags.max_seq_length, flags.d_model], "threshold": flags.threshold,
    }  # fmt: skip
    inputs |= {"limit": flags.limit} if flags.limit else {}
    if not args.overwrite and built_already(path, inputs, keep=args.keep, fixed=FIXED):
        return
    base = make_base(args, flags)
    sizes = dict(sorted(Counter(base.sizes.tolist()).items()))
    facts = {"entries": len(base.keys), "group_sizes": sizes, **base.facts}
    write_built(path, lambda temporary: torch.save(base.state(), temporary), "knowledge base", inputs=inputs, **facts)
    reports, size = base.facts["training_reports"], path.stat().st_size / 2**20
    print(f"{path}: {len(base.keys)} entries from {reports:,} training reports, {size:.1f} MiB")
    print(show(base, [NO_FINDING]))


if __name__ == "__main__":
    main(sys.argv[1:])
