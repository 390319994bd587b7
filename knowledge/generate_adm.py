"""Make the ADM masks of a data set: where the classifier looks for the labels it diagnoses (see modules/adm.py).

    python -m knowledge.generate_adm --dataset_name iu_xray                     # make the store (or keep a made one)
    python -m knowledge.generate_adm --dataset_name mimic_cxr --sample 200      # time and disk, writes nothing
    python -m knowledge.generate_adm --dataset_name iu_xray --overlays DIR      # pictures for people
    python -m knowledge.generate_adm --dataset_name iu_xray --export_tree DIR   # the authors' .npy tree from the store
    python -m knowledge.generate_adm --dataset_name iu_xray --import_tree DIR   # a store from the authors' .npy tree

The store is a folder: masks.bits (packed bits, one row per picture), pictures.json, manifest.json. It is made in
`.<name>.unfinished` beside --out and renamed when whole; kill the command and run it again to go on.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.pictures import diagnosis_tensor, open_picture, square
from data.studies import SPLITS, check_studies, read_annotation, without_broken
from knowledge.classifier_training import SHARED, add_shared, report_cleaning, with_defaults
from modules import flags
from modules.adm import SIDE, MaskTree, PackedMasks, apply_mask, classifier_masks, gradcam, row_bytes
from modules.artefact import ANOTHER_WAY, differences, make_manifest, read_manifest, sha256, write_atomic, write_json
from modules.diagnosisbot import DiagnosisBot, load_diagnosisbot
from modules.errors import InputError, Problems, entry
from modules.precision import choose_device

MIMIC_PICTURES = 377_110
FLUSH_SECONDS = 5.0
UNFINISHED, WHOLE = "unfinished adm masks", "adm masks"
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # bits set in each byte
PRESETS = {"mimic_cxr": {"num_workers": 8, "picture_check": "quick", "batch_size": 64}}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command. Unknown ones are answered with the nearest names (exit code 2)."""
    parser = flags.Parser(
        prog="python -m knowledge.generate_adm", argument_default=argparse.SUPPRESS, description=__doc__
    )
    shared = {"data": (*SHARED["data"], "max_views"), "run": ("knowledge_dir", "device", "num_workers")}
    for group, names in shared.items():
        add_shared(parser, group, names)
    new = parser.add_argument_group("masks")
    whole = flags.positive_int
    new.add_argument(
        "--classifier",
        help="ADM classifier: ours or the authors' MIMIC_best_weight.pth [<knowledge_dir>/adm_classifier.pt]",
    )
    new.add_argument("--out", help="store to write [<knowledge_dir>/adm_masks]")
    new.add_argument("--overwrite", action="store_true", help="make the store anew where --out already stands")
    new.add_argument(
        "--rule",
        choices=("released", "cam"),
        help="how a map becomes a mask: released (as the published masks) or cam (map > 0.6) [released]",
    )
    new.add_argument("--splits", nargs="+", choices=SPLITS, help="splits to make masks for [train val test]")
    new.add_argument("--batch_size", type=whole, help="pictures per forward pass [16]")
    new.add_argument("--sample", type=whole, help="measure speed and disk on this many pictures, write nothing")
    new.add_argument("--export_tree", help="folder to write the store to as <picture path>.npy, as released")
    new.add_argument("--import_tree", help="folder of such .npy files to pack into --out, instead of a classifier")
    new.add_argument("--overlays", help="folder for PNGs: picture, map with mask outline, masked picture")
    new.add_argument("--overlay_count", type=whole, help="how many of them, spread over the pictures [20]")
    typed = vars(parser.parse_args(argv))
    own = {"classifier": None, "out": None, "overwrite": False, "rule": "released", "splits": list(SPLITS), "sample": None,
           "batch_size": 16, "export_tree": None, "import_tree": None, "overlays": None, "overlay_count": 20}  # fmt: skip
    args = with_defaults(typed, tuple(name for names in shared.values() for name in names), own, PRESETS)
    args.classifier = args.classifier or str(Path(args.knowledge_dir) / "adm_classifier.pt")
    args.out = args.out or str(Path(args.knowledge_dir) / "adm_masks")
    args.splits = [split for split in SPLITS if split in args.splits]
    return args


def open_adm_classifier(path: str | Path) -> DiagnosisBot:
    """The ADM classifier, ours or released; InputError where it cannot give Grad-CAM maps without a backward pass."""
    bot = load_diagnosisbot(path, flag="--classifier", side=SIDE)
    if not isinstance(getattr(bot.classifier.net, "fc", None), torch.nn.Linear):
        raise InputError(f"--classifier {path} is a {bot.backbone}: ADM needs one that ends in a pooled linear layer; "
                         "train one with python -m knowledge.train_adm_classifier")  # fmt: skip
    return bot


def pictures_of(args) -> list[str]:
    """The pictures that get a mask, in the annotation's order, each once. InputError lists every broken study."""
    problems = Problems()
    studies = {split: rows for split, rows in read_annotation(args.ann_path).items() if split in args.splits}
    problems.check(any(studies.values()), f"{args.ann_path} has no studies in {' '.join(args.splits)}")
    if problems.check(Path(args.image_dir).is_dir(), f"--image_dir: no folder {args.image_dir}"):
        settings = {"cleaning": report_cleaning(args.dataset_name), "max_views": args.max_views}
        broken = check_studies(studies, args.image_dir, depth=args.picture_check, **settings)
        studies = without_broken(studies, broken, skip=args.skip_broken, problems=problems)
        if broken and args.skip_broken:
            shown = [f"  {name}: {reason}" for name, reason in list(broken.items())[:20]]
            more = [f"  ... and {len(broken) - 20} more"] if len(broken) > 20 else []
            print("\n".join([f"{len(broken)} broken studies are skipped:", *shown, *more]))
        problems.check(any(studies.values()), "every study is broken")
    problems.stop_if_any()
    listed = [picture for rows in studies.values() for study in rows for picture in study.pictures[: args.max_views]]
    return list(dict.fromkeys(listed))


def picture_set_hash(pictures: list[str], image_dir: str | Path) -> str:
    """Hash of picture paths and file sizes."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture} {os.path.getsize(f'{image_dir}/{picture}')}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- making masks


class SquarePictures(Dataset):
    """Pictures as the classifier sees them: (float [3, S, S], "") or (zeros, what is wrong with the file)."""

    def __init__(self, pictures: list[str], image_dir: str | Path, side: int) -> None:
        self.pictures, self.image_dir, self.side = pictures, str(image_dir), side

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, str]:
        try:
            picture = open_picture(f"{self.image_dir}/{self.pictures[place]}")
        except InputError as error:
            return torch.zeros(3, self.side, self.side), str(error)
        return diagnosis_tensor(square(picture, SIDE), self.side), ""


def packed(masks: np.ndarray) -> np.ndarray:
    """bool [N, side, side] -> uint8 [N, row_bytes(side)], as PackedMasks reads them."""
    return np.packbits(masks.reshape(len(masks), -1), axis=1)


@torch.no_grad()
def packed_batches(bot: DiagnosisBot, pictures: list[str], image_dir, *, rule, device, batch_size, num_workers):
    """Yields (packed masks uint8 [n, row_bytes], {place in the batch: what is wrong}) in the order of `pictures`."""
    bot = bot.to(device).eval()
    bot.classifier.to(memory_format=torch.channels_last)
    dataset = SquarePictures(pictures, image_dir, bot.side)
    for tensors, wrong in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers):
        masks = classifier_masks(bot, tensors.to(device), rule).cpu().numpy()
        yield packed(masks), {place: text for place, text in enumerate(wrong) if text}


class StoreWriter:
    """A mask store in the making, in `.<name>.unfinished` beside `out`; continues one of the same inputs.

    inputs: what the masks depend on, plain JSON values. pictures: one row each, in this order. side: of a mask.
    """

    def __init__(self, out: str | Path, inputs: dict, pictures: list[str], side: int = SIDE) -> None:
        self.out, self.inputs, self.pictures, self.side = Path(out), inputs, pictures, side
        self.folder = self.out.with_name(f".{self.out.name}.unfinished")
        self.width = row_bytes(side)
        self.done, self.broken, self.message = 0, {}, ""
        self.flushed = time.monotonic()
        self._continue_or_start()
        self.file = open(self.folder / "masks.bits.partial", "r+b")
        self.file.seek(self.done * self.width)

    def _continue_or_start(self) -> None:
        found = self._progress()
        if found and not (changed := differences(found["inputs"], self.inputs)):
            self.done, self.broken = found["done"], dict(found["broken"])
            os.truncate(self.folder / "masks.bits.partial", self.done * self.width)
            self.message = f"continuing {self.folder} after {self.done} of {len(self.pictures)} masks"
            return
        if self.folder.exists():
            why = f"it belongs to other inputs: {'; '.join(changed)}" if found else "it cannot be read"
            self.message = f"{self.folder} is not continued ({why}); starting anew"
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True)
            (self.folder / "masks.bits.partial").touch()
        except OSError as error:
            raise InputError(f"--out: cannot write beside {self.out}: {error}") from error
        self._note()

    def _progress(self) -> dict | None:
        """The progress noted in the folder, if it can be trusted."""
        try:
            found = read_manifest(self.folder) if self.folder.is_dir() else None
            size = (self.folder / "masks.bits.partial").stat().st_size if found else 0
            fits = found and found["what"] == UNFINISHED and size >= found["done"] * self.width and "inputs" in found
        except (InputError, OSError, KeyError, TypeError):
            return None
        return found if fits and isinstance(found.get("broken"), dict) else None

    def _note(self) -> None:
        facts = {"inputs": self.inputs, "done": self.done, "broken": self.broken}
        write_json(self.folder / "manifest.json", {"what": UNFINISHED, **facts})
        self.flushed = time.monotonic()

    def add(self, rows: np.ndarray, wrong: dict[int, str] | None = None) -> None:
        """Append packed masks [n, row_bytes]; wrong: rows without a mask, by place. Noted on disk every few seconds."""
        try:
            self.file.write(rows.tobytes())
            self.broken |= {self.pictures[self.done + place]: text for place, text in (wrong or {}).items()}
            self.done += len(rows)
            if time.monotonic() - self.flushed > FLUSH_SECONDS:
                self.flush()
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 2**20
            need = (len(self.pictures) - self.done) * self.width / 2**20
            raise InputError(
                f"cannot write {self.folder} ({error.strerror}): {free:,.0f} MiB are free, {need:,.0f} are still needed; "
                "make room and run the command again, it goes on from here"
            ) from error

    def flush(self) -> None:
        """Everything added so far outlives a kill."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._note()

    def close(self) -> None:
        """Note what is there and let go of the file."""
        if not self.file.closed:
            self.flush()
            self.file.close()

    def finish(self, **facts) -> dict:
        """Name the folder `out`, in place of what stood there; facts go into the manifest. Returns the manifest.

        Pictures noted as broken are left out. InputError when masks are missing.
        """
        self.close()
        if self.done != len(self.pictures):
            raise InputError(f"{self.folder} holds {self.done} of {len(self.pictures)} masks")
        partial, bits = self.folder / "masks.bits.partial", self.folder / "masks.bits"
        kept = [picture for picture in self.pictures if picture not in self.broken]
        if self.broken:
            rows = np.memmap(partial, np.uint8, "r", shape=(len(self.pictures), self.width))
            with open(bits, "wb") as file:
                for picture, row in zip(self.pictures, rows):
                    if picture not in self.broken:
                        file.write(row.tobytes())
            partial.unlink()
        else:
            os.replace(partial, bits)
        text = json.dumps(kept, ensure_ascii=False)
        write_atomic(self.folder / "pictures.json", lambda path: path.write_text(text, encoding="utf-8"))
        shares = kept_shares(bits, self.side)
        manifest = make_manifest(
            WHOLE,
            side=self.side,
            pictures=len(kept),
            left_out=self.broken,
            mean_kept_share=round(float(shares.mean()), 4) if len(shares) else None,
            empty_masks=int((shares == 0).sum()),
            inputs=self.inputs,
            sha256={name: sha256(self.folder / name) for name in ("masks.bits", "pictures.json")},
            command=" ".join(sys.argv),
            **facts,
        )
        write_json(self.folder / "manifest.json", manifest)
        old = self.out.with_name(f".{self.out.name}.{os.getpid()}.tmp")
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.folder, self.out)
        shutil.rmtree(old, ignore_errors=True)
        return manifest


def kept_shares(bits: Path, side: int) -> np.ndarray:
    """Share of True pixels of every mask in a file of packed rows, float [N]."""
    width = row_bytes(side)
    count = bits.stat().st_size // width
    if not count:
        return np.zeros(0)
    rows = np.memmap(bits, np.uint8, "r", shape=(count, width))
    return np.concatenate([ONES[rows[at : at + 4096]].sum(1) for at in range(0, count, 4096)]) / side**2


def kept_store(out: Path, inputs: dict) -> dict | None:
    """Manifest of the store in `out` if it was made from these inputs, None where nothing is; else InputError."""
    if not out.exists():
        return None
    manifest = (read_manifest(out) if out.is_dir() else None) or {}
    if manifest.get("what") != WHOLE:
        raise InputError(f"--out {out} stands there already and is no mask store of ours; {ANOTHER_WAY}")
    changed = differences(manifest.get("inputs", {}), inputs)
    if changed:
        raise InputError(f"--out {out} was made from other inputs ({'; '.join(changed)}); {ANOTHER_WAY}")
    PackedMasks(out)  # its file has the size that its list asks for
    return manifest


def make_store(args, bot: DiagnosisBot, pictures: list[str], device) -> dict:
    """Make the store --out of `pictures`, or keep one of the same inputs. Returns its manifest."""
    inputs = {
        "classifier_sha256": sha256(args.classifier),
        "fingerprint": bot.fingerprint(),
        "backbone": bot.backbone,
        "labels": list(bot.labels),
        "thresholds": [round(value, 8) for value in bot.thresholds.tolist()],
        "classifier_side": bot.side,
        "rule": args.rule,
        "side": SIDE,
        "splits": args.splits,
        "max_views": args.max_views,
        "pictures_sha256": picture_set_hash(pictures, args.image_dir),
    }
    out = Path(args.out)
    manifest = None if args.overwrite else kept_store(out, inputs)
    if manifest:
        print(f"{out}: kept, it was made from these inputs")
        return manifest
    check_room(out, len(pictures) * row_bytes(SIDE))
    store = StoreWriter(out, inputs, pictures)
    if store.message:
        print(store.message)
    settings = {"rule": args.rule, "device": device, "batch_size": args.batch_size, "num_workers": args.num_workers}
    start = time.perf_counter()
    rest = pictures[store.done :]
    try:
        with tqdm(total=len(pictures), initial=store.done, desc="masks", unit="picture", mininterval=1) as bar:
            for rows, wrong in packed_batches(bot, rest, args.image_dir, **settings):
                if wrong and not args.skip_broken:
                    raise InputError(
                        "a picture turned out broken on the way; mend it and begin anew, or pass --skip_broken to go on "
                        "without it (--picture_check full finds such pictures at the start):\n  - "
                        + "\n  - ".join(wrong.values())
                    )
                store.add(rows, wrong)
                bar.update(len(rows))
    finally:
        store.close()
    facts = {"rule": args.rule, "classifier": str(args.classifier), "dataset": args.dataset_name}
    manifest = store.finish(seconds=round(time.perf_counter() - start, 1), **facts)
    print_store(out, manifest)
    return manifest


def print_store(out: Path, manifest: dict) -> None:
    """One line about a finished store."""
    size = os.path.getsize(out / "masks.bits")
    print(
        f"{out}: {manifest['pictures']} masks, {size / 2**20:,.1f} MiB, mean kept share {manifest['mean_kept_share']}, "
        f"{manifest['empty_masks']} empty, {len(manifest['left_out'])} left out"
    )


def check_room(out: Path, need: int) -> None:
    """InputError when the disk has less room than the store will take."""
    place = next(folder for folder in (out, *out.parents, Path(".")) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < need * 1.05:
        raise InputError(f"--out {out}: the masks take {need / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free there")


def measure_speed(args, bot: DiagnosisBot, pictures: list[str], device) -> dict:
    """Make the masks of the first --sample pictures, keep nothing, and print what the rest would take."""
    chosen = pictures[: args.sample]
    settings = {"rule": args.rule, "device": device, "batch_size": args.batch_size, "num_workers": args.num_workers}
    next(packed_batches(bot, chosen[: args.batch_size], args.image_dir, **settings | {"num_workers": 0}))  # warm up
    start = time.perf_counter()
    count = sum(len(rows) for rows, _ in packed_batches(bot, chosen, args.image_dir, **settings))
    speed, width = count / (time.perf_counter() - start), row_bytes(SIDE)
    print(f"measured: {count} pictures, {speed:.1f} pictures/s on {device}, {bot.backbone}, batches of {args.batch_size}")
    for name, number in ((f"{args.dataset_name}, {' '.join(args.splits)}", len(pictures)), ("MIMIC-CXR", MIMIC_PICTURES)):
        tree = number * (SIDE * SIDE + 128)
        print(f"computed: {number:,d} pictures ({name}): {number / speed / 3600:.2f} h, {number * width / 1e9:.2f} GB packed "
              f"(as .npy files {tree / 1e9:.2f} GB)")  # fmt: skip
    return {"pictures_per_s": speed, "bytes_per_mask": width}


# ---------------------------------------------------------------- trees of .npy files


def export_tree(store: PackedMasks, root: str | Path) -> int:
    """Write every mask of a store as <root>/<picture path>.npy, the authors' layout; returns how many."""
    root = Path(root)
    taken = {}
    for picture in store.rows:
        path = Path(picture).with_suffix(".npy")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{store.root}: picture {picture} leaves the folder it belongs to")
        if taken.setdefault(path, picture) != picture:
            raise InputError(f"{picture} and {taken[path]} would share the file {path}")
    for picture in tqdm(store.rows, desc="writing .npy files", mininterval=1):
        path = root / Path(picture).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary := path.with_name(f".{path.name}.{os.getpid()}.tmp"), "wb") as file:
            np.save(file, store.get(picture))
        os.replace(temporary, path)
    return len(store.rows)


def import_tree(args, pictures: list[str]) -> dict:
    """Pack the .npy tree --import_tree into the store --out; returns its manifest.

    InputError when pictures have no mask (all in one message; --skip_broken goes on without) or masks differ in size.
    """
    tree, out = MaskTree(args.import_tree), Path(args.out)
    if not tree.root.is_dir():
        raise InputError(f"--import_tree: no folder {tree.root}")
    missing = [picture for picture in pictures if not tree.has(picture)]
    if missing and (not args.skip_broken or len(missing) == len(pictures)):
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        hint = "" if len(missing) == len(pictures) else "; pass --skip_broken to go on without"
        raise InputError(f"--import_tree {tree.root} has no mask for {len(missing)} of {len(pictures)} pictures{hint}: {shown}")
    present = [picture for picture in pictures if tree.has(picture)]
    digest = hashlib.sha256()
    for picture in present:
        path = tree.root / Path(picture).with_suffix(".npy")
        digest.update(f"{picture} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    inputs = {"tree": str(tree.root.resolve()), "files_sha256": digest.hexdigest()}
    manifest = None if args.overwrite else kept_store(out, inputs)
    if manifest:
        print(f"{out}: kept, it was packed from this tree")
        return manifest
    shape = tree.get(present[0]).shape
    if shape[0] != shape[1]:
        raise InputError(f"--import_tree {tree.root}: masks of {shape} pixels are not square")
    check_room(out, len(present) * row_bytes(shape[0]))
    store = StoreWriter(out, inputs, present, shape[0])
    if store.message:
        print(store.message)
    try:
        for picture in tqdm(present[store.done :], desc="packing", mininterval=1):
            mask = tree.get(picture)
            if mask.shape != shape:
                raise InputError(f"--import_tree: the mask of {picture} has {mask.shape} pixels, that of {present[0]} {shape}")
            store.add(packed(mask[None]))
    finally:
        store.close()
    manifest = store.finish(rule="imported", dataset=args.dataset_name, without_mask=missing)
    print_store(out, manifest)
    return manifest


# ---------------------------------------------------------------- pictures for people


@torch.no_grad()
def overlay(bot: DiagnosisBot, picture: Image.Image, mask: np.ndarray, device) -> Image.Image:
    """Three panels: the picture; the largest map of the diagnosed labels over it with the mask's outline; the picture
    as the generator gets it with theta 0 and gamma 0.4. picture: RGB, SIDE x SIDE; mask: bool [h, w]."""
    maps, chances = gradcam(bot, diagnosis_tensor(picture, bot.side)[None].to(device), SIDE)
    said = [k for k, bit in enumerate(bot.diagnose(chances)[0].tolist()) if bit]
    heat = maps[0, said].amax(0).cpu().numpy() if said else np.zeros((SIDE, SIDE), np.float32)
    pixels = np.asarray(picture, np.float32)
    heated = pixels * (1 - 0.5 * heat[..., None]) + 0.5 * heat[..., None] * np.array([255, 60, 0], np.float32)
    if mask.shape != heat.shape:
        mask = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    heated[mask & ~inner] = (255, 255, 0)
    panels = Image.new("RGB", (3 * SIDE + 20, SIDE + 30))
    masked = apply_mask(picture, mask, theta=0, gamma=0.4)
    for place, panel in enumerate((picture, Image.fromarray(heated.astype(np.uint8)), masked)):
        panels.paste(panel, (place * (SIDE + 10), 0))
    names = ", ".join(f"{bot.labels[k]} {chances[0, k]:.2f}" for k in said) or "no label diagnosed"
    ImageDraw.Draw(panels).text((4, SIDE + 8), f"{names}   kept {mask.mean():.0%}", fill=(255, 255, 255))
    return panels


def write_overlays(args, bot: DiagnosisBot, store: PackedMasks, device) -> None:
    """--overlay_count PNGs into --overlays, of pictures spread over the store."""
    folder, listed = Path(args.overlays), list(store.rows)
    folder.mkdir(parents=True, exist_ok=True)
    places = sorted(set(np.linspace(0, len(listed) - 1, min(args.overlay_count, len(listed))).astype(int).tolist()))
    bot = bot.to(device).eval()
    for place in places:
        picture = square(open_picture(f"{args.image_dir}/{listed[place]}"), SIDE)
        name = str(Path(listed[place]).with_suffix("")).replace("/", "_")
        image = overlay(bot, picture, store.get(listed[place]), device)
        write_atomic(folder / f"{name}.png", lambda path, image=image: image.save(path, "PNG"))
    print(f"{folder}: {len(places)} overlays (picture | map and mask outline | masked picture)")


@entry
def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of this file."""
    args = parse(argv)
    device = choose_device(args.device)
    only_export = args.export_tree and not (args.import_tree or args.sample or args.overlays or args.overwrite)
    if only_export and Path(args.out).is_dir():  # the store is there: neither classifier nor pictures are needed
        print(f"{args.export_tree}: {export_tree(PackedMasks(args.out), args.export_tree)} .npy files")
        return
    bot = None if args.import_tree and not args.overlays else open_adm_classifier(args.classifier)
    pictures = pictures_of(args)
    if args.sample:
        measure_speed(args, bot, pictures, device)
        return
    if args.import_tree:
        import_tree(args, pictures)
    else:
        make_store(args, bot, pictures, device)
    store = PackedMasks(args.out)
    if args.overlays:
        write_overlays(args, bot, store, device)
    if args.export_tree:
        print(f"{args.export_tree}: {export_tree(store, args.export_tree)} .npy files")


if __name__ == "__main__":
    main()
