"""Where a data set's image files lie: a folder, or an archive (.tgz, .tar, .zip) that is read without unpacking it whole."""

import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from modules.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".dcm")


def _stem(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in ENDINGS else name


class ImageFolder:
    """Image files below a folder. Paths are relative to it, with "/" between folders."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"no image folder {path}")
        self._listed: tuple[str | None, dict[str, str]] = (None, {})

    def find(self, path: str) -> str | None:
        """The file at `path`, else the one of another ending (.jpg, .jpeg, .png, .dcm; the first of these), or None."""
        folder, _, name = path.rpartition("/")
        if self._listed[0] != folder:  # readers ask study by study, so that one folder at a time is enough
            self._listed = (folder, self._names(folder))
        found = self._listed[1].get(name) or self._listed[1].get(_stem(name))
        return None if found is None else f"{folder}/{found}" if folder else found

    def _names(self, folder: str) -> dict[str, str]:
        try:
            names = os.listdir(self.path / folder)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        rank = {ending: number for number, ending in enumerate(ENDINGS)}
        images = [name for name in names if os.path.splitext(name)[1].lower() in rank]
        images.sort(key=lambda name: rank[os.path.splitext(name)[1].lower()], reverse=True)
        return {_stem(name): name for name in images} | {name: name for name in images}

    def on_disk(self, paths: Collection[str], folder: Path) -> Iterator[tuple[str, Path]]:
        """(path, file) of each path; nothing is copied."""
        del folder
        for path in paths:
            yield path, self.path / path


class ImageArchive:
    """Image files in one archive; a path may leave out the folders above a name that stands there once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        images = [name for name, _ in self._members(None) if name.lower().endswith(ENDINGS)]
        alone = Counter(_stem(os.path.basename(name)) for name in images)
        self._names = {_stem(os.path.basename(name)): name for name in images}
        self._names = {stem: name for stem, name in self._names.items() if alone[stem] == 1}
        whole = {name.removeprefix("./"): name for name in images}
        self._names |= {_stem(name): member for name, member in whole.items()} | whole

    def find(self, path: str) -> str | None:
        """The archive's member at this path, whatever its ending; else the only one of this name; or None."""
        keys = (path, _stem(path), _stem(os.path.basename(path)))
        return next((self._names[key] for key in keys if key in self._names), None)

    def on_disk(self, paths: Collection[str], folder: Path) -> Iterator[tuple[str, Path]]:
        """(path, file) of each path in the archive's order, unpacked into `folder`; the caller takes the file away."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, stream) in enumerate(self._members(set(paths))):
            target = folder / f"{number}{os.path.splitext(name)[1]}"
            assert stream is not None  # `_members` opens what is wanted
            with open(target, "wb") as file:
                shutil.copyfileobj(stream, file)
            yield name, target

    def _members(self, wanted: set[str] | None) -> Iterator[tuple[str, IO[bytes] | None]]:
        """(name, None) of all files, or (name, stream) of the wanted ones. InputError where the archive is broken."""
        try:
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    for name in archive.namelist():
                        if wanted is None:
                            yield name, None
                        elif name in wanted:
                            with archive.open(name) as stream:
                                yield name, stream
                return
            with tarfile.open(self.path) as archive:
                for member in archive:
                    if member.isfile() and (wanted is None or member.name in wanted):
                        yield member.name, None if wanted is None else archive.extractfile(member)
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} cannot be read as an archive: {error}; fetch it again") from error


ImageFiles = ImageFolder | ImageArchive


def open_images(path: str | Path) -> ImageFiles:
    """The image files at `path`, a folder or an archive."""
    if Path(path).is_file():
        return ImageArchive(path)
    return ImageFolder(path)
