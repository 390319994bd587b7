"""Reading pickles and torch files from the internet without running them: data only, everything else is refused.

A pickle is a program for a small stack machine. This reader runs that machine with the instructions that make data and
with no way to a function of Python: what a file names is looked up in the table of recipes below, arrays and tensors are
noted as plain numbers, and made from bytes of the file once their sizes have been checked. It can ever build:

- None, bool, int, float, str, bytes, list, tuple, dict. A dict's key is one of these without containers, or a tuple of
  such. An OrderedDict and an argparse.Namespace become a dict, a torch.Size a tuple, a bytearray bytes, a torch.device
  text; attributes of a dict (the versions that torch hangs on a state_dict) are dropped.
- numpy arrays and scalars of kind bool, int, float, complex, bytes and text; never of objects or of fields.
- dense torch tensors on the CPU, views of storages that hold every element (a Parameter becomes a tensor); torch.dtype.

Three containers: a plain pickle, torch's zip file (the CRC-32 of each record is compared, so a flipped bit is noticed) and
torch's format before 1.6. Values are at most DEPTH deep, no storage is larger than the file, all copies together are at
most COPIES times as large.
"""

import io
import math
import mmap
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modules.errors import InputError

DEPTH = 64  # containers in containers
AXES = 32
COPIES = 8
SCALARS = (type(None), bool, int, float, str, bytes)
NUMPY_KIND = re.compile(r"[biufcSU]\d{1,6}")
STORAGES = {
    "UntypedStorage": torch.uint8, "BoolStorage": torch.bool, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Program(Exception):
    """The file asks for something that is not data; text: module.name of it."""


class _Recipe:
    """What a name in a pickle stands for: a function of this file. None: the name is only mentioned, as an argument."""

    def __init__(self, make) -> None:
        self.make = make


class _NumpyType:
    """Stands in for numpy.dtype: its code, then its byte order."""

    def __init__(self, code, *_) -> None:
        if not (type(code) is str and NUMPY_KIND.fullmatch(code)):
            raise ValueError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def fill(self, state) -> None:
        _, order, *fields = state[:5]
        if order not in ("<", ">", "|", "=") or fields != [None] * 3:
            raise ValueError("an array with fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray until its contents are known."""

    def __init__(self, *_) -> None:
        self.value: np.ndarray | None = None

    def fill(self, state) -> None:
        _, shape, kind, fortran, data = state
        self.value = _array(data, kind, shape, "F" if fortran else "C")


class _Namespace(dict):
    """Stands in for argparse.Namespace."""


def _numbers(values) -> tuple[int, ...]:
    """A shape or stride, checked."""
    if not (type(values) is tuple and len(values) <= AXES and all(type(n) is int and n >= 0 for n in values)):
        raise ValueError("a shape that is none")
    return values


def _array(data, kind, shape, order="C") -> np.ndarray:
    if not (type(data) is bytes and type(kind) is _NumpyType and order in ("C", "F")):
        raise ValueError("an array that is not made of bytes")
    if math.prod(_numbers(shape)) * kind.dtype.itemsize != len(data):
        raise ValueError("an array with another number of bytes")
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order).copy(order)


def _tensor(storage, offset, size, stride, *_) -> torch.Tensor:
    """A view of a storage, all of it inside."""
    if not (type(storage) is torch.Tensor and storage.dim() == 1 and type(offset) is int and offset >= 0):
        raise ValueError("a tensor without a storage")
    if len(_numbers(size)) != len(_numbers(stride)):
        raise ValueError("a tensor whose shape and stride disagree")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count > max(len(storage), 1 << 20) or (count and last >= len(storage)):
        raise ValueError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def _bytes(data=b"", encoding="latin1") -> bytes:
    """Stands in for bytes and for codecs.encode, which is how old pickles write bytes."""
    if type(data) is str and encoding == "latin1":
        return data.encode(encoding)
    if type(data) is not bytes:
        raise ValueError(f"bytes of a {type(data).__name__}")
    return data


def _dict(pairs=()) -> dict:
    """A dict of pairs; ValueError for a key that is not plain: hashing it could run something, or never end."""
    made = {}
    for key, value in pairs:
        for part in key if type(key) is tuple else (key,):
            if not (type(part) in SCALARS or isinstance(part, np.generic)):
                raise ValueError(f"a {type(part).__name__} in the key of a dict")
        made[key] = value
    return made


def _storage(data) -> torch.Tensor:
    """Stands in for torch.storage._load_from_bytes: a storage inside a plain pickle, in torch's format before 1.6."""
    file = io.BytesIO(_bytes(data))
    if _Reader(file, len(data)).value() != torch.serialization.MAGIC_NUMBER:
        raise ValueError("a storage that is none")
    return _old_torch(file, len(data))


def _recipes() -> dict:
    table: dict[tuple[str, str], object] = {
        ("_codecs", "encode"): _Recipe(_bytes),
        ("collections", "OrderedDict"): _Recipe(_dict),
        ("argparse", "Namespace"): _Recipe(lambda: _Namespace()),
        ("numpy", "ndarray"): _Recipe(None),
        ("numpy", "dtype"): _Recipe(_NumpyType),
        ("torch", "Size"): _Recipe(lambda numbers=(): _numbers(tuple(numbers))),
        ("torch", "device"): _Recipe(lambda kind, *index: ":".join(str(part) for part in (kind, *_numbers(index)))),
        ("torch._utils", "_rebuild_tensor_v2"): _Recipe(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Recipe(lambda tensor, *_: tensor),
        ("torch.storage", "_load_from_bytes"): _Recipe(_storage),
    }
    for module in ("builtins", "__builtin__"):
        table[module, "bytes"] = table[module, "bytearray"] = _Recipe(_bytes)
    for package in ("numpy.core", "numpy._core"):
        table[f"{package}.multiarray", "_reconstruct"] = _Recipe(_Array)
        table[f"{package}.multiarray", "scalar"] = _Recipe(lambda kind, data: _array(data, kind, (1,))[0])
        table[f"{package}.numeric", "_frombuffer"] = _Recipe(_array)
    for name, dtype in STORAGES.items():
        table["torch", name] = table["torch.storage", name] = table["torch", str(dtype)[len("torch.") :]] = dtype
    return table


RECIPES = _recipes()
P = pickle
INSTRUCTIONS = (
    P.PROTO, P.FRAME, P.STOP, P.MARK, P.POP, P.POP_MARK, P.DUP, P.NONE, P.NEWTRUE, P.NEWFALSE, P.INT, P.BININT, P.BININT1,
    P.BININT2, P.LONG, P.LONG1, P.LONG4, P.FLOAT, P.BINFLOAT, P.STRING, P.BINSTRING, P.SHORT_BINSTRING, P.UNICODE,
    P.BINUNICODE, P.SHORT_BINUNICODE, P.BINUNICODE8, P.BINBYTES, P.SHORT_BINBYTES, P.BINBYTES8, P.EMPTY_TUPLE, P.TUPLE,
    P.TUPLE1, P.TUPLE2, P.TUPLE3, P.EMPTY_LIST, P.LIST, P.EMPTY_DICT, P.MEMOIZE, P.PUT, P.BINPUT, P.LONG_BINPUT, P.GET,
    P.BINGET, P.LONG_BINGET, P.GLOBAL, P.STACK_GLOBAL, P.BINPERSID,
)  # fmt: skip


class _Instructions(dict):
    """From an instruction's code to its method."""

    def __missing__(self, code):
        raise ValueError(f"an instruction that makes no data ({code})")


class _Reader(pickle._Unpickler):
    """The stack machine: the standard library's instructions, in Python, for plain data; ours for the rest.

    storage_of: (dtype, key, count) -> 1-D tensor, for the references of torch's files.
    """

    stack: list  # with the next two, what the standard library's type stubs leave out
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list]
    dispatch = _Instructions({code[0]: pickle._Unpickler.dispatch[code[0]] for code in INSTRUCTIONS})

    def __init__(self, file, size: int, storage_of=None) -> None:
        super().__init__(file)
        self.room, self.storage_of = COPIES * size, storage_of

    def value(self):
        """The next value of the file, plain data."""
        return _plain(self.load(), 0, {})[0]

    def find_class(self, module: str, name: str):
        if (module, name) not in RECIPES:
            raise Program(f"{module}.{name}")
        return RECIPES[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        if not (self.storage_of and kind == "storage" and type(dtype) is torch.dtype and view in ([], [None])):
            raise ValueError("a reference to something outside")
        if not (type(key) is str and type(count) is int and count >= 0):
            raise ValueError("a storage that is none")
        return self.storage_of(dtype, key, count)

    def spend(self, parts) -> None:
        """Count what a recipe may copy: a file names the same bytes as often as it likes."""
        self.room -= sum(len(part) for part in parts if type(part) in (bytes, str, tuple, list))
        if self.room < 0:
            raise ValueError("more copies than data")

    def _reduce(self) -> None:
        arguments, recipe = self.stack.pop(), self.stack.pop()
        if not (type(recipe) is _Recipe and recipe.make and type(arguments) is tuple):
            raise ValueError("a call of something that is no function")
        self.spend(arguments)
        self.stack.append(recipe.make(*arguments))

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) in (_Array, _NumpyType):
            self.spend(state)
            made.fill(state)
        elif type(made) is _Namespace and type(state) is dict:
            made.update(state)
        elif type(made) is not dict:
            raise ValueError(f"attributes of a {type(made).__name__}")

    def _extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items of something that is no list")
        self.stack[-1].extend(values)

    def _update(self, items: list) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError("items of something that is no dict")
        self.stack[-1].update(_dict(zip(items[::2], items[1::2], strict=True)))

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _whole_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._update(items)

    def _byte_array(self) -> None:
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch |= {
        P.REDUCE[0]: _reduce, P.NEWOBJ[0]: _reduce, P.BUILD[0]: _build, P.APPEND[0]: _append, P.APPENDS[0]: _appends,
        P.SETITEM[0]: _set_item, P.SETITEMS[0]: _set_items, P.DICT[0]: _whole_dict, P.BYTEARRAY8[0]: _byte_array,
    }  # fmt: skip


def _plain(value, depth: int, known: dict) -> tuple:
    """(the value without stand-ins, how many containers deep it is); known: the same by the id of a container.

    ValueError when it is deeper than DEPTH, contains itself or is no plain data.
    """
    if type(value) in SCALARS or isinstance(value, (np.generic, np.ndarray, torch.Tensor, torch.dtype)):
        return value, 0
    if type(value) is _Array and value.value is not None:
        return value.value, 0
    if depth >= DEPTH:
        raise ValueError(f"values nested more than {DEPTH} deep")
    if id(value) not in known:
        if type(value) in (dict, _Namespace):
            parts = [_plain(part, depth + 1, known) for part in value.values()]
            made = dict(zip(value, (part for part, _ in parts)))
        elif type(value) in (list, tuple):
            parts = [_plain(part, depth + 1, known) for part in value]
            made = type(value)(part for part, _ in parts)
        else:
            raise ValueError(f"a {type(value).__name__.strip('_')}, which is no plain data")
        known[id(value)] = made, 1 + max((height for _, height in parts), default=0)
    if depth + known[id(value)][1] > DEPTH:
        raise ValueError(f"values nested more than {DEPTH} deep")
    return known[id(value)]


def _old_torch(file, size: int):
    """The rest of a file in torch's format before 1.6: facts, the value, then the bytes of its storages."""
    tensors: dict[str, torch.Tensor] = {}
    used = 0

    def storage_of(dtype, key, count):
        nonlocal used
        if key not in tensors:
            used += count * dtype.itemsize
            _within(used, size)
            tensors[key] = torch.empty(count, dtype=dtype)
        return _same(tensors[key], dtype, count)

    version, system = _Reader(file, size).value(), _Reader(file, size).value()
    if version != torch.serialization.PROTOCOL_VERSION or not system["little_endian"]:
        raise ValueError(f"torch's old format in a version that is not read ({version!r})")
    value = _Reader(file, size, storage_of).value()
    keys = _Reader(file, size).value()
    if sorted(keys) != sorted(tensors):
        raise ValueError("other storages than the value has")
    for key in keys:
        count, own = int.from_bytes(file.read(8), "little"), tensors[key].view(torch.uint8).numpy()
        data = file.read(len(own))
        if count != len(tensors[key]) or len(data) != len(own):
            raise ValueError("a storage of another size")
        own[:] = np.frombuffer(data, np.uint8)
    return value


def _zipped_torch(file, size: int):
    """A torch file since 1.6: a zip of data.pkl and one stored record per storage, each with its CRC-32."""
    records = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
    _within(sum(info.file_size for info in records.values()), size)  # none stands for the bytes of another
    tensors: dict[str, torch.Tensor] = {}

    def record(name: str) -> torch.Tensor:
        """The bytes of a record, uint8."""
        info = records[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {name} is compressed")
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # past the record's name
        data = torch.empty(info.file_size, dtype=torch.uint8)
        count = file.readinto(data.numpy())
        if count != len(data) or zlib.crc32(data.numpy().data) != info.CRC:
            raise ValueError(f"record {name} is damaged: its checksum differs")
        return data

    def storage_of(dtype, key, count):
        if key not in tensors:
            data = record(f"{root}data/{key}")
            if len(data) != count * dtype.itemsize:
                raise ValueError("a storage of another size")
            tensors[key] = data.view(dtype)
        return _same(tensors[key], dtype, count)

    root = next((name[: -len("data.pkl")] for name in records if name.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("a zip file that torch did not write")
    if records.get(f"{root}byteorder") and record(f"{root}byteorder").numpy().tobytes() != b"little":
        raise ValueError("written on a machine with another byte order")
    text = record(f"{root}data.pkl").numpy().tobytes()
    return _Reader(io.BytesIO(text), len(text), storage_of).value()


def _within(count: int, most: int) -> None:
    if count > most:
        raise ValueError("more data than the file has")


def _same(tensor: torch.Tensor, dtype, count: int) -> torch.Tensor:
    if tensor.dtype != dtype or len(tensor) != count:
        raise ValueError("one storage with two sizes")
    return tensor


def load_pickle(path: str | Path):
    """Content of a pickle or torch file that holds plain data, arrays and tensors (on the CPU); see above.

    Raises InputError for a missing, broken or damaged file and for one that asks for anything else; nothing of it is run.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if held[:4] == b"PK\x03\x04":
                return _zipped_torch(file, len(held))
            value = _Reader(held, len(held)).value()
            is_torch = type(value) is int and value == torch.serialization.MAGIC_NUMBER
            return _old_torch(held, len(held)) if is_torch else value
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except Program as error:
        raise InputError(
            f"{path} wants to run {error}: a pickle is a program, and this one is not plain data. Nothing of it was executed"
        ) from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, ValueError, TypeError,
            AttributeError, ArithmeticError, LookupError, NotImplementedError, MemoryError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as data: {reason}") from error
