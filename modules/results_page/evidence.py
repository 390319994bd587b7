"""What the results page shows beside the predictions: images, ADM masks, and where each written word looked.

A run keeps it in `evidence_<split>.jsonl`, one study a row, so the page can be made anew without the model:

    {"id", "images": [{"path", "seen", "jpeg", "note", "mask", "mask_share", "mask_used"}],
     "attention": {"text", "grid": [V, h, w], "full_grid": [h, w], "peak": [W], "maps": W * V * h * w bytes},
     "graph": {"boxes": {region: [x0, y0, x1, y1]}, "truth": {region: [attributes]} or null}}

`graph` is there where the system reads scene graphs: boxes of the first image in fractions of it, and what the report
speaks of. seen is null where nobody knows what the system was given (a scored file of another program). jpeg, mask and maps
are base64; a mask is MASK_SIDE x MASK_SIDE packed bits; W counts the words of the prediction.
A map is scaled to its own peak (255), `peak` is the share of the attention that fell on that patch. `text` is the report
that was written: the page shows no attention beside another one.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from modules.artefact import write_atomic
from modules.errors import InputError

MASK_SIDE = 100
ATTENTION_BYTES = 60_000_000  # all maps of a page together, base64; larger sets get coarser maps
WORDS = 60  # of a report, to plan with
PIXELS = 200_000_000  # of all images together; larger sets get smaller images
LARGEST, SMALLEST = 768, 224  # longest side of an image
AT_MOST = 150_000_000  # bytes of a file; the studies after that have no images on the page


def map_side(studies: int, views: int = 1) -> int:
    """Longest side of a stored map, so that those of all studies stay below ATTENTION_BYTES (at least 4)."""
    return max(4, int(math.sqrt(ATTENTION_BYTES * 3 / 4 / (studies * views * WORDS))))


def image_side(images: int) -> int:
    """Longest side of a stored image, so that all together have about PIXELS."""
    return max(SMALLEST, min(LARGEST, int(math.sqrt(PIXELS / max(1, images)))))


def word_of_each_token(tokenizer, ids: list[int]) -> list[int]:
    """For each id the number of the word it belongs to: a tokenizer may need several ids for a word, or none."""
    return [max(0, len(tokenizer.decode(ids[: place + 1]).split()) - 1) for place in range(len(ids))]


@torch.no_grad()
def attention_of_words(system, tokenizer, memory: dict, reports: list[list[int]]) -> list[torch.Tensor]:
    """Where each word of the generated reports (ids) looked: for each report [W, V, h, w], sums to 1 per word.

    One teacher-forced pass by `System.attention`; a word of several ids gets the mean of theirs.
    """
    longest = max(map(len, reports))
    if not longest:
        return [torch.zeros(0, 1, 1, 1) for _ in reports]
    tokens = torch.full((len(reports), longest), system.padding)
    for row, ids in enumerate(reports):
        given = [system.bos, *ids][: len(ids)]  # what stood before each word when it was chosen
        tokens[row, : len(given)] = torch.tensor(given, dtype=torch.long)
    shares = system.attention(memory, tokens.to(next(iter(memory.values())).device)).float().cpu()
    return [_joined(share[: len(ids)], word_of_each_token(tokenizer, ids)) for ids, share in zip(reports, shares)]


def _joined(shares: torch.Tensor, words: list[int]) -> torch.Tensor:
    """shares [L, V, h, w] of the ids, the word of each -> their means [W, V, h, w]."""
    if not words:
        return shares
    number = torch.tensor(words)
    joined = torch.zeros(words[-1] + 1, *shares.shape[1:]).index_add(0, number, shares)
    return joined / torch.bincount(number)[:, None, None, None].clamp(min=1)


class Attention:
    """Collects where the words looked while reports are written (`watch` of modules/generation.py).

    The system may have `attention(memory, tokens [B, L]) -> [B, L, V, h, w]`; without it nothing is kept.
    """

    def __init__(self, system, tokenizer, *, studies: int, views: int) -> None:
        self.system, self.tokenizer, self.side = system, tokenizer, map_side(studies, views)
        self.look = getattr(system, "attention", None)
        self.rows: dict[str, dict] = {}

    @torch.no_grad()
    def __call__(self, batch, memory: dict, reports: list[list[int]]) -> None:
        """One more batch, what the system encoded, the word ids written for each study."""
        if self.look is None:
            return
        shares = attention_of_words(self.system, self.tokenizer, memory, reports)
        for name, ids, share in zip(batch.ids, reports, shares):
            if ids:
                self.rows[name] = attention_row(self.tokenizer.decode(ids), share, self.side)


def attention_row(text: str, shares: torch.Tensor, side: int) -> dict:
    """Where the words of one report looked, [W, V, h, w], as evidence; maps of at most `side` patches a side."""
    peak = shares.amax((1, 2, 3))
    height, width = shares.shape[-2:]
    if max(height, width) > side:
        shares = F.adaptive_avg_pool2d(shares, (min(height, side), min(width, side)))
    scaled = (255 * shares / shares.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)).round().to(torch.uint8)
    return {
        "text": text,
        "grid": list(shares.shape[1:]),
        "full_grid": [height, width],
        "peak": [round(value, 4) for value in peak.tolist()],
        "maps": base64.b64encode(scaled.numpy().tobytes()).decode(),
    }


def image_row(path: str, *, seen: bool | None, side: int, dataset, open_image: Callable) -> dict:
    """An image of a study for the page; one that cannot be read gives a note in its place."""
    row: dict = {"path": path, "seen": seen}
    try:
        image = dataset.augment.frame(open_image(f"{dataset.image_dir}/{path}")).convert("L")
    except InputError as error:
        return {**row, "note": str(error)}
    image.thumbnail((side, side))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=72)
    row["jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
    rule = dataset.mask_rule
    if seen and rule is not None and "masked_images" in dataset.needs:
        mask = rule.masks.get(path)
        small = np.asarray(Image.fromarray(mask).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST))
        row["mask"] = base64.b64encode(np.packbits(small).tobytes()).decode()
        row["mask_share"] = round(float(mask.mean()), 4)
        row["mask_used"] = bool(mask.mean() > rule.theta)
    return row


def graph_row(dataset, image: str) -> dict:
    """Boxes of the regions of an image, and what its report says of them where the file of scene graphs knows."""
    graph, layout = dataset.scene_graphs.of(image), dataset.scene_graphs.layout
    names = [layout.regions[number] for number in graph.regions]
    truth = None
    if dataset.scene_graphs.with_attributes:
        truth = {
            name: [text for text, there in zip(layout.attributes[number], row) if there]
            for name, number, row, spoken in zip(names, graph.regions, graph.attributes, graph.spoken)
            if spoken
        }
    return {"boxes": {name: [round(float(x), 4) for x in box] for name, box in zip(names, graph.boxes)}, "truth": truth}


def write_evidence(path: str | Path, dataset, attention: dict[str, dict], open_image: Callable) -> None:
    """Write evidence_<split>.jsonl of the studies of `dataset` (data/batches.py), in their order.

    attention: the `rows` of Attention. open_image: path -> PIL image, InputError when it cannot be read. Images
    that the system was not given (beyond --max_views) are there too, marked so.
    """
    side = image_side(sum(len(study.images) for study in dataset.studies))

    def row(study) -> dict:
        facts = {"side": side, "dataset": dataset, "open_image": open_image}
        shown = [image_row(p, seen=n < dataset.max_views, **facts) for n, p in enumerate(study.images)]
        content = {"id": study.id, "images": shown, "attention": attention.get(study.id)}
        if "boxes" in dataset.needs:
            content["graph"] = graph_row(dataset, study.images[0])
        return content

    write_rows(path, dataset.studies, row)


def write_images(path: str | Path, images: Mapping[str, Sequence[str]], folder: str | Path, open_image: Callable) -> None:
    """Evidence of a scored file: the images of its studies, {id: paths in `folder`}; one that cannot be read leaves a note."""
    side = image_side(sum(map(len, images.values())))
    whole = SimpleNamespace(frame=lambda image: image)
    plain = SimpleNamespace(augment=whole, image_dir=folder, mask_rule=None, needs=())

    def row(name: str) -> dict:
        shown = [image_row(p, seen=None, side=side, dataset=plain, open_image=open_image) for p in images[name]]
        return {"id": name, "images": shown, "attention": None}

    write_rows(path, list(images), row)


def write_study(path: str | Path, name: str, images: Sequence[dict], attention: dict | None, *, theta: float, open_image) -> None:
    """Evidence of one new study. images: {"path", "mask": its ADM mask, bool, or None}; attention: as attention_row gives it."""
    shown = []
    for image in images:
        file, mask = Path(image["path"]), image["mask"]
        rule = None if mask is None else SimpleNamespace(masks={file.name: mask}, theta=theta)
        whole = SimpleNamespace(frame=lambda image: image)
        one = SimpleNamespace(augment=whole, image_dir=file.parent, mask_rule=rule, needs={"masked_images"})
        shown.append(image_row(file.name, seen=True, side=image_side(1), dataset=one, open_image=open_image))
    write_rows(path, [name], lambda study: {"id": study, "images": shown, "attention": attention})


def write_rows(path: str | Path, studies: Sequence, row: Callable[..., dict]) -> None:
    """One row of evidence per study, in order, until the file holds AT_MOST bytes."""

    def line(study) -> str:
        return json.dumps(row(study), separators=(",", ":")) + "\n"

    def write(temporary: Path) -> None:
        size = 0
        with open(temporary, "w", encoding="utf-8") as file, ThreadPoolExecutor(4) as pool:
            for start in range(0, len(studies), 64):
                for text in pool.map(line, studies[start : start + 64]):
                    file.write(text)
                    size += len(text)
                if size > AT_MOST:
                    break

    write_atomic(path, write)


def annotation_images(path: str | Path, split: str, folder: str | Path) -> dict[str, list[str]]:
    """{id: image files} of a split of an annotation, as far as any of a study's lie in `folder`; it was read before."""
    rows = json.loads(Path(path).read_text(encoding="utf-8")).get(split, [])
    found = {str(row["id"]): _paths(row.get("image_path")) for row in rows}
    return {name: paths for name, paths in found.items() if any((Path(folder) / one).is_file() for one in paths)}


def _paths(value) -> list[str]:
    """An annotation's image_path: a list, one path, or nothing."""
    return [value] if isinstance(value, str) else [one for one in value or [] if isinstance(one, str)]


def read_evidence(path: str | Path) -> Iterable[tuple[str, str]]:
    """(study id, its row as JSON text) of every study of an evidence file; none where there is no file."""
    path = Path(path)
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)["id"], line.strip()
            except (json.JSONDecodeError, KeyError) as error:
                raise InputError(f"{path}, line {number} is no row of evidence: {error}; test again") from error
