"""Bringing the images of an annotation below OUT/images: links, copies, or smaller JPEG copies. Goes on after a kill."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.images import open_image
from data.preparation.image_files import ImageArchive, ImageFiles, ImageFolder
from modules.artefact import write_atomic, write_json
from modules.errors import InputError
from modules.progress import tracked

JPEG_QUALITY = 95
_BATCH = 256  # images in work at once; what an archive unpacks for a moment


def bring_images(wanted: Mapping[str, str], files: ImageFiles, out: Path, how: str, workers: int) -> dict[str, str]:
    """Make out/images/<target> from each file; returns {target: what is wrong} for those that cannot be read.

    wanted: {target: path in `files`}. how: "link", "copy", or "resize N" (shorter side at most N, JPEG of quality 95).
    An image that is there already is kept: each is written under another name first. What cannot be read also stands in
    out/failed_images.txt. InputError when out/images was made in another way.
    """
    images = out / "images"
    if how == "link":
        if not isinstance(files, ImageFolder):
            raise InputError(
                f"{files.path} is an archive: --symlink needs a folder; leave it out to copy, or unpack it"
            )
        _link(wanted, files, images)
        return {}
    _claim(out, how, files)
    targets = {path: target for target, path in wanted.items() if not (images / target).is_file()}
    for folder in {os.path.dirname(target) for target in targets.values()}:
        (images / folder).mkdir(parents=True, exist_ok=True)
    failed, jobs = {}, _jobs(targets, files, out, how)
    bar = tracked(total=len(targets), desc="images")
    try:
        with ProcessPoolExecutor(workers) as pool, bar:
            while batch := list(islice(jobs, _BATCH)):
                for job, problem in zip(batch, pool.map(_make, batch, chunksize=8)):
                    if problem:
                        failed[job.target.relative_to(images).as_posix()] = problem
                bar.update(len(batch))
    except OSError as error:
        raise InputError(
            f"cannot make the images below {images}: {error}; what is made is kept, start again"
        ) from error
    shutil.rmtree(out / ".unpacked", ignore_errors=True)
    log = out / "failed_images.txt"
    if failed:
        text = "".join(f"{target}: {problem}\n" for target, problem in sorted(failed.items()))
        write_atomic(log, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        log.unlink(missing_ok=True)
    return failed


def _link(wanted: Mapping[str, str], files: ImageFolder, images: Path) -> None:
    """One link to the whole folder where its layout is the annotation's, else one for each image."""
    root = files.path.resolve()
    if all(target == path for target, path in wanted.items()):
        _one_link(images, root)
        return
    if images.is_symlink():
        raise InputError(f"{images} is a link to {images.resolve()}; remove it or choose another --out")
    for folder in {os.path.dirname(target) for target in wanted}:
        (images / folder).mkdir(parents=True, exist_ok=True)
    for target, path in tracked(wanted.items(), desc="links"):
        _one_link(images / target, root / path)


def _one_link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.resolve() == target:
        return
    if link.is_symlink() or link.exists():
        raise InputError(f"{link} is there and is not a link to {target}; remove it or choose another --out")
    link.symlink_to(target)


def _claim(out: Path, how: str, files: ImageFiles) -> None:
    """Note how out/images is made; InputError when it was made in another way or by somebody else."""
    record = out / "images.json"
    facts = {"images": how, "from": str(files.path.resolve())}
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) != facts:
            raise InputError(
                f"{out / 'images'} was made in another way ({record}); remove both or choose another --out"
            )
    elif os.path.lexists(out / "images"):
        raise InputError(f"{out / 'images'} is there and was not made by this command; choose another --out")
    else:
        write_json(record, facts)


class _Job(NamedTuple):
    source: Path
    target: Path
    side: int | None  # shorter side in pixels; None copies the file
    unpacked: bool  # the source is taken away afterwards


def _jobs(targets: Mapping[str, str], files: ImageFiles, out: Path, how: str) -> Iterator[_Job]:
    side = int(how.split()[1]) if how.startswith("resize") else None
    for path, source in files.on_disk(targets, out / ".unpacked"):
        yield _Job(source, out / "images" / targets[path], side, isinstance(files, ImageArchive))


def _make(job: _Job) -> str | None:
    """Make one image, whole or not at all; returns what is wrong with it, or None."""
    temporary = job.target.with_name(f".{job.target.name}.tmp")  # the same name each time: nothing is left over
    try:
        if job.side is None:
            shutil.copyfile(job.source, temporary)
        else:
            _smaller(open_image(job.source), job.side).save(temporary, "JPEG", quality=JPEG_QUALITY)
        os.replace(temporary, job.target)
    except InputError as error:
        return str(error)
    finally:
        if job.unpacked:
            job.source.unlink()
    return None


def _smaller(image: Image.Image, side: int) -> Image.Image:
    """Shorter side `side` pixels where it is longer, aspect ratio kept, one channel where the three are equal."""
    channels = image.split()
    if len({channel.tobytes() for channel in channels}) == 1:
        image = channels[0]
    scale = side / min(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
