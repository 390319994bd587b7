"""Artefacts: a file or folder with a manifest beside it that says what it is and how to make it again.

Everything is written under a temporary name and renamed when whole, so a killed command never leaves half an artefact
that looks like one.
"""

import datetime
import glob
import hashlib
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

from modules.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
ANOTHER_WAY = "remove it, pass --overwrite or another --out (main_train.py: --rebuild, or another --knowledge_dir)"


def sha256(path: str | Path) -> str:
    """Hex digest of a file; of a folder: of its manifest (which holds the digests of its parts)."""
    path = Path(path)
    path = path / "manifest.json" if path.is_dir() else path
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def checksum(*parts) -> int:
    """CRC-32 of bytes, arrays or text, one after another: finds damage (3 GB/s), not forgery.

    Whatever is read again and again (images, masks, rows of diagnoses) is kept with it and compared at each reading; the
    records of a torch file bring theirs (modules/safe_pickle.py).
    """
    found = 0
    for part in parts:
        found = zlib.crc32(part.encode() if isinstance(part, str) else part, found)
    return found


def git_state() -> dict:
    """Commit and whether the work tree has changes; empty outside a checkout."""
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return {"commit": run("rev-parse", "HEAD"), "changed": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename.

    If writing fails (a full disk, say) the temporary file is removed, what stood at `path` stays as it was, and
    InputError says how much room there is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"cannot write {path} ({reason}); {free / 2**20:,.0f} MiB are free there. "
            "What stood there before is untouched: make room and start again (a training: --resume)"
        ) from error


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left half-written beside `path`; what a living one writes stays."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and int(number) != os.getpid() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def read_json(path: str | Path, way_out: str = ""):
    """Content of a JSON file, with or without a byte order mark. InputError with the reason and `way_out`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # a cut file, another encoding, 5,000 digits, 5,000 brackets
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read as JSON ({reason})" + (f"; {way_out}" if way_out else "")) from error


def write_json(path: str | Path, content) -> None:
    """Readable JSON, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def manifest_path(artefact: str | Path) -> Path:
    """Where an artefact's manifest lies: inside a folder, beside a file."""
    artefact = Path(artefact)
    return artefact / "manifest.json" if artefact.is_dir() else artefact.with_name(artefact.name + ".json")


def make_manifest(what: str, **facts) -> dict:
    """A manifest: what it is, the facts given, date, code state."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"what": what, **facts, "date": now, "git": git_state()}


def read_manifest(artefact: str | Path) -> dict | None:
    """The manifest of an artefact, or None where there is none. Raises InputError when it cannot be read."""
    path = manifest_path(artefact)
    if not path.is_file():
        return None
    manifest = read_json(path, f"remove it and build {artefact} again")
    if not isinstance(manifest, dict):
        raise InputError(f"{path} is no manifest; remove it and build {artefact} again")
    return manifest


def differences(theirs: dict, ours: dict) -> list[str]:
    """What differs between two dicts of inputs, for people."""
    names = sorted(set(theirs) | set(ours))
    brief = lambda value: str(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."  # noqa: E731
    return [f"{n} {brief(theirs.get(n))}, now {brief(ours.get(n))}" for n in names if theirs.get(n) != ours.get(n)]


def refuse_or_keep(out: Path, theirs: dict, inputs: dict, *, keep: bool, fixed: tuple[str, ...] = ()) -> None:
    """InputError where an artefact was made from other inputs; with `keep` one line says how they differ, unless it is in what
    is `fixed`."""
    changed = differences(theirs, inputs)
    if changed and (not keep or differences({n: theirs.get(n) for n in fixed}, {n: inputs.get(n) for n in fixed})):
        raise InputError(f"{out} was made from other inputs ({'; '.join(changed)}); {ANOTHER_WAY}")
    if changed:
        print(f"{out}: kept, though it was made with other settings: {'; '.join(changed)}")


def built_already(out: Path, inputs: dict, *, keep: bool = False, fixed: tuple[str, ...] = ()) -> bool:
    """Whether `out` is there and was made from these inputs, which is said; keep, fixed: see `refuse_or_keep`.

    InputError when it was made from others, and when it is not the file that was written (damaged, or exchanged).
    """
    if not out.is_file():
        return False
    found, pending = sha256(out), _pending(out)
    if pending.is_file() and read_json(pending, f"remove it and {out}").get("sha256") == found:
        os.replace(pending, manifest_path(out))  # a kill came between the two renames
    manifest = read_manifest(out) or {}
    refuse_or_keep(out, manifest.get("inputs", {}), inputs, keep=keep, fixed=fixed)
    if manifest.get("sha256") != found:
        raise InputError(f"{out} is not the file that was written with its manifest: it is damaged; {ANOTHER_WAY}")
    if manifest.get("inputs", {}) == inputs:
        print(f"{out} is there and was built from these inputs: kept")
    return True


def write_built(out: Path, write: Callable[[Path], None], what: str, *, inputs: dict, **facts) -> dict:
    """Write a built file with its manifest, which is returned.

    The manifest is on the disk before the file gets its name: killed at any moment, either the old file stands there or
    the new one whose manifest `built_already` finds. An old manifest cannot vouch for the new file: the digest differs.
    """
    manifest = make_manifest(what, inputs=inputs, **facts)

    def write_both(temporary: Path) -> None:
        write(temporary)
        manifest["sha256"] = sha256(temporary)
        write_json(_pending(out), manifest)

    write_atomic(out, write_both)
    os.replace(_pending(out), manifest_path(out))
    return manifest


def _pending(out: Path) -> Path:
    """The manifest of a built file until the file has its name."""
    return out.with_name(f".{out.name}.json.pending")
