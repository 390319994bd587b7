"""Build the prototypes of XProNet: per label, clusters of the image and text features of the training studies.

    python -m knowledge.build_prototypes --dataset_name iu_xray [--visual_extractor efficientnet_lite0]
    python -m knowledge.build_prototypes --dataset_name iu_xray --chexbert_path chexbert.pth --chexbert_vocab vocab.txt

A study's features: text and image joined. Image: the ImageNet network of --visual_extractor, mean over the patches of
all views. Text: CheXbert's BERT when it is given, else a stand-in that needs no download (see stand_in_text). As published,
half of a label's prototypes come from the images and half from their mirror images. Other flags are those of training.
"""

import math
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from data.batches import StudyDataset, make_loader
from data.prepare import open_data
from data.studies import card_text
from knowledge.command import out, read_beside_training
from models import SYSTEMS
from modules.artefact import built_already, read_manifest, sha256, write_built
from modules.errors import Problems, entry
from modules.flags import Flag
from modules.nets.pretrained import load_backbone, weights_problem
from modules.nets.visual_extractor import VisualExtractor
from modules.precision import choose_device
from modules.progress import tracked
from modules.text.chexbert import CheXbertLabeler
from modules.text.cleaning import clean_report
from modules.text.labels import CHEXPERT_14, NO_FINDING

VERSION = 1  # raise it when the same inputs give other prototypes
FIXED = ("version", "network", "shape", "limit")  # prototypes of others are not kept: they do not fit
STAND_IN = "stand-in: tf-idf of the words, randomly projected, scaled to the images' features; not CheXbert"


@torch.no_grad()
def image_features(flags, studies, device, *, mirror: bool) -> list[torch.Tensor]:
    """[N, C] of the images, and with `mirror` [N, C] of their mirror images."""
    extractor = VisualExtractor(flags.visual_extractor, freeze="none", dilate=flags.dilate)
    where = {"weights_dir": flags.weights_dir, "offline": flags.offline}
    load_backbone(extractor.body, flags.visual_extractor, flags.extractor_weights, **where)
    extractor = extractor.to(device).eval()
    shape = {"image_size": flags.image_size, "max_views": flags.max_views, "resize_filter": flags.resize_filter}
    dataset = StudyDataset(studies, flags.image_dir, needs={"images"}, **shape)
    loader = make_loader(dataset, batch_size=flags.batch_size, num_workers=flags.num_workers, shuffle=False)
    rows: list[list[torch.Tensor]] = [[], []] if mirror else [[]]
    for batch in tracked(loader, desc="looking at images"):
        batch = batch.to(device)
        for number, kind in enumerate(rows):
            images = batch.images.flip(-1) if number else batch.images
            means = extractor(images.flatten(0, 1)).mean((2, 3)).unflatten(0, images.shape[:2])
            real = means.new_ones(means.shape[:2]) if batch.view_mask is None else batch.view_mask
            kind.append(((means * real[..., None]).sum(1) / real.sum(1, keepdim=True)).cpu())
    return [torch.cat(kind) for kind in rows]


def stand_in_text(reports: list[str], cleaning: str, width: int, seed: int) -> torch.Tensor:
    """Text features without a language model: tf-idf of the cleaned words, projected by a Gaussian matrix, of length 1.

    Reports with the same findings share words, so they lie close; nothing is known about words that mean the same.
    """
    texts = [Counter(clean_report(report, cleaning).split()) for report in reports]
    found = Counter(word for words in texts for word in words)
    places = {word: place for place, word in enumerate(sorted(found))}
    table = torch.randn(len(places), width, generator=torch.Generator().manual_seed(seed))
    rows = torch.zeros(len(texts), width)
    for row, words in enumerate(texts):
        weights = [count * math.log(len(texts) / found[word]) for word, count in words.items()]
        rows[row] = torch.tensor(weights) @ table[[places[word] for word in words]]
    return F.normalize(rows, dim=-1)


@torch.no_grad()
def chexbert_text(reports: list[str], path: str, vocab: str, device, batch_size: int = 32) -> torch.Tensor:
    """The last state at [CLS] of CheXbert's BERT, [N, width]."""
    labeler = CheXbertLabeler(path, vocab, device)
    labeler.model.linear_heads = nn.ModuleList([nn.Identity()])  # the state itself instead of labels
    coded = [labeler.tokenizer.encode(report) for report in reports]
    rows = []
    for start in tracked(range(0, len(coded), batch_size), desc="reading reports"):
        part = [torch.tensor(ids) for ids in coded[start : start + batch_size]]
        lengths = torch.tensor([len(ids) for ids in part])
        padded = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=labeler.tokenizer.ids["[PAD]"])
        rows.append(labeler.model(padded.to(device), lengths.to(device))[0].cpu())
    return torch.cat(rows)


def kmeans(points: torch.Tensor, count: int, *, seed: int, rounds: int = 100) -> torch.Tensor:
    """Centres [count, D] of points [N, D]: k-means++ starts, then Lloyd's steps until nothing moves.

    No more points than centres: the points themselves, in turn. An empty cluster takes the point farthest from its centre;
    where none is off its centre (equal points) it stays where it is.
    """
    if len(points) <= count:
        return points[torch.arange(count) % len(points)]
    draw = torch.Generator().manual_seed(seed)
    centres = points[torch.randint(len(points), (1,), generator=draw)]
    nearest = torch.cdist(points, centres)[:, 0]
    while len(centres) < count:
        probabilities = nearest.square()
        probabilities = probabilities if probabilities.sum() > 0 else torch.ones_like(probabilities)
        centres = torch.cat([centres, points[torch.multinomial(probabilities, 1, generator=draw)]])
        nearest = torch.minimum(nearest, torch.cdist(points, centres[-1:])[:, 0])
    before = None
    for _ in range(rounds):
        distances = torch.cdist(points, centres)
        nearest, owner = distances.min(1)
        for empty in sorted(set(range(count)) - set(owner.tolist())):
            far = int(nearest.argmax())
            if nearest[far] > 0:
                owner[far], nearest[far] = empty, 0.0
        if before is not None and torch.equal(owner, before):
            break
        before = owner
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def cluster(features: list[torch.Tensor], labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Prototypes [K * count, D], label after label. features: [N, D] per kind of image (as it is, mirrored), labels [N, K].

    A study without a label counts as No Finding. A label without a study gets the clusters of all studies.
    """
    labels = labels == 1
    labels[~labels.any(1), CHEXPERT_14.index(NO_FINDING)] = True
    shares = [count // len(features) + (number < count % len(features)) for number in range(len(features))]
    rows = []
    for k in tracked(range(labels.shape[1]), desc="clustering"):
        members = labels[:, k] if labels[:, k].any() else torch.ones(len(labels), dtype=torch.bool)
        rows += [kmeans(kind[members], share, seed=seed) for kind, share in zip(features, shares) if share]
    return torch.cat(rows)


def build(args, flags) -> tuple[torch.Tensor, dict]:
    """The prototypes and the facts of their manifest; everything that is wrong with the inputs in one message."""
    problems = Problems()
    text = weights_problem(flags.visual_extractor, flags.extractor_weights, flags.weights_dir, flags.offline)
    problems.check(text is None, text or "")
    for name in ("chexbert_path", "chexbert_vocab"):
        path = getattr(args, name)
        problems.check(not path or Path(path).is_file(), f"--{name}: no file {path}")
    problems.check(
        bool(args.chexbert_path) == bool(args.chexbert_vocab), "--chexbert_path and --chexbert_vocab: give both"
    )
    data = open_data(flags, {"train": {"labels"}}, problems)
    problems.stop_if_any()
    print(card_text(data.card))
    studies, device = data.studies["train"], choose_device(flags.device)
    reports = [study.report for study in studies]
    images = image_features(flags, studies, device, mirror=args.mirror)
    if args.chexbert_path:
        texts, source = (
            chexbert_text(reports, args.chexbert_path, args.chexbert_vocab, device),
            "CheXbert's BERT, [CLS]",
        )
    else:
        print(f"text features: {STAND_IN}")
        texts, source = stand_in_text(reports, flags.cleaning, flags.d_txt_ebd, flags.seed), STAND_IN
        texts = texts * images[0].norm(dim=-1).mean()
    labels = torch.tensor([data.tables["labels"][study.id] for study in studies])
    rows = cluster([torch.cat([texts, kind], 1) for kind in images], labels, flags.num_prototypes, flags.seed)
    facts = {
        "data_set": flags.dataset_name,
        "split": "train",
        "studies": len(studies),
        "studies_by_label": dict(zip(CHEXPERT_14, (labels == 1).sum(0).tolist())),
        "text_features": {"source": source, "width": texts.shape[1]},
        "image_features": {"network": flags.visual_extractor, "width": images[0].shape[1], "mirrored": args.mirror},
        "label_source": read_manifest(flags.labels_path) or {},
    }
    return rows, facts


OWN = (
    Flag("prototypes", "chexbert_path", str, None, "CheXbert's weights, to read the reports [a stand-in without download]"),
    Flag("prototypes", "chexbert_vocab", str, None, "vocab.txt of bert-base-uncased, with --chexbert_path"),
    Flag("prototypes", "mirror", bool, True, "half of the prototypes from mirrored images, as published"),
    *out("prototypes.pt", "prototypes"),
)


def read_flags(argv):
    """This command's own flags and those of training."""
    reader = next(name for name, kind in SYSTEMS.items() if any(flag.name == "prototypes" for flag in kind.flags))
    first = ("--model", reader, "--no-image_cache")  # images are read once
    return read_beside_training(argv, "build_prototypes", __doc__.split("\n")[0], OWN, SYSTEMS, *first)


@entry
def main(argv=None) -> None:
    args, flags = read_flags(argv)
    path = Path(args.out)
    digest = {
        name: sha256(file) if file and Path(file).is_file() else None
        for name, file in (("annotation", flags.ann_path), ("labels", flags.labels_path), ("text", args.chexbert_path))
    }
    shape = [flags.num_prototypes, flags.d_txt_ebd, flags.image_size, flags.max_views, flags.resize_filter]
    inputs = {"version": VERSION, "sha256": digest, "network": [flags.visual_extractor, flags.extractor_weights],
              "shape": shape, "mirror": args.mirror, "seed": flags.seed}  # fmt: skip
    inputs |= {"limit": flags.limit} if flags.limit else {}
    if not args.overwrite and built_already(path, inputs, keep=args.keep, fixed=FIXED):
        return
    rows, facts = build(args, flags)
    content = {"what": "prototypes", "labels": list(CHEXPERT_14), "prototypes": rows}
    write_built(path, lambda temporary: torch.save(content, temporary), "prototypes", inputs=inputs, **facts)
    print(f"{path}: {len(rows)} prototypes of {rows.shape[1]} columns from {facts['studies']:,} training studies")


if __name__ == "__main__":
    main(sys.argv[1:])
