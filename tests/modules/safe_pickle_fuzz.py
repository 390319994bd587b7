"""Child process of test_safe_pickle.py: reads pickles while every call out, large allocation and other error ends it.

`--folder F` reads its files and prints each refusal. `--mutations N --seed S` mutates valid and hostile files N times and
prints how many were read and how many refused.
"""

import argparse
import codecs
import io
import pickle
import pickletools
import random
import resource
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]
from modules.errors import InputError  # noqa: E402
from modules.safe_pickle import load_pickle  # noqa: E402

MEMORY = 256 << 20  # beyond what the process has at its start
FORBIDDEN = ("exec", "compile", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.find_class", "code.",
             "marshal.", "builtins.input", "pty.", "sys.", "winreg.", "urllib.")  # fmt: skip


reading: list[str] = []  # the path while one is read


def hook(event: str, arguments) -> None:
    """While a file is read, whatever runs code or opens another file ends the process with code 3."""
    other_file = event == "open" and str(arguments[0]) not in reading
    if reading and (event.startswith(FORBIDDEN) or other_file):
        reading.clear()
        print(f"called {event} {arguments}", flush=True)
        sys.exit(3)


def read(path: Path) -> str | None:
    """Reads the file; the refusal or None. Any exception but InputError, and any call, ends the process."""
    reading.append(str(path))
    try:
        load_pickle(path)
        return None
    except InputError as error:
        return str(error)
    finally:
        reading.clear()


def seeds() -> list[bytes]:
    from test_safe_pickle import HOSTILE, torch_bytes

    content = {(0, 1): torch.arange(6.0), (np.int64(1), 0): np.ones((2, 3), np.float32), "s": np.float64(2)}
    content |= {"t": [1, b"x"], "n": argparse.Namespace(a=1), "w": np.array(["a", "b"]), "v": torch.zeros(2, 2).t()}
    made = [pickle.dumps(content, protocol) for protocol in range(2, 6)]
    made += [torch_bytes(content, _use_new_zipfile_serialization=new) for new in (True, False)]
    return made + [data for data in HOSTILE.values() if len(data) < 2_000]


CODES = [code.code.encode("latin1") for code in pickletools.opcodes]
NAMES = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"ctorch\nload\n",
         b"cnumpy.core.multiarray\nscalar\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x8c\x01O")  # fmt: skip


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to four changes: a byte, a bit, an instruction, a name, a part left out, doubled or taken from another file."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(made) + 1)
        kind = draw.randrange(7)
        if kind == 0:
            made[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            made[at:at] = draw.choice(CODES) + draw.randbytes(draw.randrange(3))
        elif kind == 3:
            made[at:at] = draw.choice(NAMES) + draw.choice((b"", b")R", b"]R", b"}b", b"\x85R"))
        elif kind == 4:
            del made[at : at + draw.randrange(16)]
        elif kind == 5:
            made[at : at + 8] = draw.choice((b"\xff" * 8, b"\x00" * 8, (1 << 40).to_bytes(8, "little")))
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            made[at:at] = other[start : start + draw.randrange(64)]
    return bytes(made)


def mutated_zip(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The pickle inside a torch file mutated, with the right checksum."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            record = old.read(info)
            new.writestr(info.filename, mutated(record, others, draw) if info.filename.endswith(".pkl") else record)
    return made.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mutations", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, others, draw = Path(folder) / "mutation", seeds(), random.Random(args.seed)
        for codec in ("cp437", "raw_unicode_escape", "unicode_escape"):
            codecs.lookup(codec)
        for data in others[:6]:  # what numpy and torch import on first use is imported here
            path.write_bytes(data)
            load_pickle(path)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        sys.addaudithook(hook)
        for file in sorted(args.folder.iterdir()) if args.folder else ():
            print(read(file))
        if args.mutations:
            print(*mutate(args.mutations, path, others, draw))


def mutate(mutations: int, path: Path, others: list[bytes], draw: random.Random) -> list[int]:
    """How many mutations were read, how many refused. SystemExit when one takes more memory than it may."""
    counts = [0, 0]
    tracemalloc.start()
    for number in range(mutations):
        seed = others[number % 6 if number % 2 else number // 2 % len(others)]  # the first six are valid
        zipped = seed[:2] == b"PK" and draw.random() < 0.8
        data = (mutated_zip if zipped else mutated)(seed, others, draw)
        path.write_bytes(data)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        refusal = read(path)
        peak = tracemalloc.get_traced_memory()[1] - before
        counts[refusal is not None] += 1
        if peak > (1 << 20) + 400 * len(data) or (refusal and "MemoryError" in refusal):
            raise SystemExit(f"mutation {number} of {len(data)} bytes took {peak} bytes: {refusal}")
    return counts


if __name__ == "__main__":
    main()
