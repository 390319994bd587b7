"""A report for one new study: images and a checkpoint, nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

import torch

from data.batches import collate
from data.images import (
    Augmentation,
    Reading,
    diagnosis_tensor,
    equalized_share,
    evaluation_kind,
    open_image,
    reading_of,
    settle_equalize,
    square,
    to_tensor,
)
from data.plausible import doubts
from data.views import view_of
from knowledge.diagnose import open_bot
from knowledge.region_boxes import find_boxes
from knowledge.study_page import check_folder, write_study_page
from models import SYSTEMS
from modules.checkpoint import is_ours, load_checkpoint
from modules.decoding import DecodingSettings, decode
from modules.errors import InputError
from modules.flags import parse
from modules.nets.adm import SIDE, apply_mask, classifier_masks
from modules.nets.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.precision import Precision, choose_device
from modules.results_page.evidence import attention_of_words
from modules.run_folder import describe_run


def report_new_study(args, content: dict, kind, decoding, precision, device) -> dict:
    """Print (and return) report, diagnosis with probabilities and expert report of the images of --image.

    --out: a folder for a page of the study (knowledge/study_page.py).
    """
    if args.out:
        check_folder(args.out)
    result = generator(args, content, kind, decoding, precision, device)(args.image, attention=bool(args.out))
    _show(result)
    if args.out:
        print(f"page: {write_study_page(args, result, describe_run(args, device))}")
    return result


def open_checkpoint(path, *flags: str) -> Callable[..., dict]:
    """A checkpoint of ours as a function of one study's image paths, for programs and notebooks.

    flags: words of main_test.py's command line, such as "--beam_size", "3". What the function gives stands at `generator`.
    InputError where the file is none or holds the authors' weights.
    """
    content = load_checkpoint(path)
    carried = content["flags"] if is_ours(content) else None
    args = parse(["--load", str(path), *flags], "test", systems=SYSTEMS, carried=carried)
    device = choose_device(args.device)
    decoding, precision = DecodingSettings.from_flags(args), Precision(args.precision, device)
    return generator(args, content, SYSTEMS[args.model], decoding, precision, device)


def generator(args, content: dict, kind, decoding, precision, device) -> Callable[..., dict]:
    """Builds the checkpoint's system once; the function takes the image paths of one study and gives its results.

    These are "report", "images" and "warnings" (what speaks against a chest radiograph), by system "diagnosis" (a row per
    label) and columns of the predictions file. With attention=True also "words" of the report, "attention" [W, V, h, w], where
    each looked (sums to 1), and "masks", ADM masks of the images where the system has them.
    """
    if not is_ours(content):
        raise InputError(
            f"{args.load} is a released file, which carries no vocabulary and no knowledge; evaluate it on a data "
            "set, or train with --load to make a checkpoint of ours"
        )
    tokenizer = kind.tokenizer_kind.from_state_dict(content["tokenizer"])
    system = kind.build(args, tokenizer, content["parts"])
    system.load_start(content, args.load)
    system = system.to(device).eval()
    rest = (args, content, kind, decoding, precision, device)
    return lambda paths, attention=False: _study(paths, system, tokenizer, *rest, attention=attention)


@torch.no_grad()
def _study(paths, system, tokenizer, args, content, kind, decoding, precision, device, *, attention=False) -> dict:
    parts = content["parts"]
    plain = [open_image(path, Reading(args.dicom)) for path in paths]
    args.equalize = settle_equalize(args.equalize, content["data"].get("equalized"), equalized_share(plain))
    originals = [open_image(path, reading_of(args)) for path in paths]
    if len(originals) > args.max_views:
        print(f"note: the model was trained with {args.max_views} image(s) per study; the rest is not looked at")
        originals = originals[: args.max_views]
    result: dict = {"images": [str(path) for path in paths]}
    doubted = [(path, doubt) for path, image in zip(paths, plain) for doubt in doubts(image)]
    result["warnings"] = [f"{path} is hardly a chest radiograph: {doubt}" for path, doubt in doubted]
    needs = system.needs(training=False)
    item: dict = {"id": Path(paths[0]).stem}
    if "diagnosis" in needs:
        result["diagnosis"], item["diagnosis"] = _diagnose(args, parts, originals[0], device)
    views = kind.views(args)
    masks = []
    if "masked_images" in needs or any(name == "masked" for name, _ in views or ()):
        masks = _masks(args, parts, originals, result, device)
    if views:
        item["images"] = _views(args, views, originals, masks)
    elif "images" in needs:
        form = Augmentation(evaluation_kind(args), args.image_size, args.resize_filter)
        item["images"] = [to_tensor(image) for image in form([*map(form.resize, originals)], random.Random())]
    if "masked_images" in needs:
        item["masked_images"] = _masked(args, originals, masks)
    if "boxes" in needs:
        item["graph"] = _regions(parts, originals[0], args.image_size)
    batch = system.prepare(collate([item]))
    with precision.generation(system), precision.region():
        memory = system.encode(batch.to(device))
        reports = decode(system, memory, decoding, batch.ids)
        result["report"] = tokenizer.decode(reports[0])
        if attention:
            result["masks"] = masks
            result["words"] = result["report"].split()
            result["attention"] = attention_of_words(system, tokenizer, memory, reports)[0]
    columns = {name: values[0] for name, values in system.remarks(batch, memory).items() if name != "labels"}
    return columns | result  # the diagnosis stays that with probabilities


def _diagnose(args, parts, image, device):
    if "diagnosisbot" not in parts and "diagnosisbot" not in args.typed:
        raise InputError(
            "this checkpoint was trained on a label table and carries no DiagnosisBot; give one with --diagnosisbot"
        )
    bot = open_bot(args, parts).to(device)
    probabilities = bot(diagnosis_tensor(square(image, SIDE), bot.side)[None].to(device))
    bits = bot.diagnose(probabilities)[0]
    rows = zip(bot.labels, probabilities[0].tolist(), bot.thresholds.tolist(), bits.tolist())
    facts = [
        {"label": n, "probability": round(p, 4), "threshold": round(t, 4), "positive": bool(b)} for n, p, t, b in rows
    ]
    return facts, bits.cpu()


def _regions(parts, image, side: int) -> dict[str, torch.Tensor]:
    """Boxes of the image's regions, found as those of the training images were."""
    source = parts.get("region_boxes")
    if source is None:
        raise InputError(
            "this checkpoint does not say where regions lie: it was trained on boxes that no atlas was made of"
        )
    regions, boxes = find_boxes(image, source)
    return {"boxes": torch.from_numpy(boxes * side), "box_regions": torch.from_numpy(regions)}


def _masks(args, parts, originals, result, device) -> list:
    """The mask of each image, bool [SIDE, SIDE], by the checkpoint's ADM classifier; None where there is no classifier."""
    if "adm_classifier" in parts and "adm_classifier" not in args.typed:
        classifier = DiagnosisBot.from_state(parts["adm_classifier"])
    elif Path(args.adm_classifier).is_file():
        classifier = load_diagnosisbot(args.adm_classifier, flag="--adm_classifier", side=SIDE)
    else:
        result["note"] = (
            "the checkpoint carries no ADM classifier: the complete image was used where the model expects the masked one"
        )
        return [None] * len(originals)
    classifier = classifier.to(device)
    seen = [diagnosis_tensor(square(image, SIDE), classifier.side)[None].to(device) for image in originals]
    return [classifier_masks(classifier, tensor, args.adm_rule)[0].cpu().numpy() for tensor in seen]


def _masked(args, originals, masks) -> list[torch.Tensor]:
    """EKAGen's masked view of each image."""
    rule = {"theta": args.theta, "gamma": args.gamma, "beta": args.beta}
    squares = [square(image, args.image_size, args.resize_filter) for image in originals]
    return [to_tensor(s if mask is None else apply_mask(s, mask, **rule)) for s, mask in zip(squares, masks)]


def _views(args, wanted, originals, masks) -> list[torch.Tensor]:
    """The views that the system asks for, of the images that are there."""
    made = []
    for kind, number in wanted:
        if number < len(originals):
            mask = masks[number] if kind == "masked" else None
            view = originals[number] if kind == "masked" and mask is None else view_of(originals[number], kind, mask)
            made.append(to_tensor(square(view, args.image_size, args.resize_filter)))
    return made


def _show(result: dict) -> None:
    print(f"images:  {', '.join(result['images'])}")
    for warning in result["warnings"]:
        print(f"warning:   {warning}")
    if "note" in result:
        print(f"note:      {result['note']}")
    print(f"report:    {result['report']}")
    if "diagnosis" in result:
        print("diagnosis:")
        for row in sorted(result["diagnosis"], key=lambda row: -row["probability"]):
            mark = "*" if row["positive"] else " "
            print(f"  {mark} {row['label']:27s} {row['probability']:.3f}  (threshold {row['threshold']:.3f})")
    for name in ("regions", "attributes"):
        if name in result:
            print(f"{name + ':':10s} {result[name] or 'none'}")
    if "knowledge_report" in result:
        distance = result["knowledge_distance"]
        nearest = "" if distance == "0" else f", nearest by {distance} label(s)"
        print(f"knowledge: expert report {result['knowledge_id']}{nearest}:\n  {result['knowledge_report']}")
    print("Research software: not for clinical use.")
