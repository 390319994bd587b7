"""Reading pickles from the internet without running them: data only, everything else is refused."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import torch

from modules.errors import InputError


def _storage(data: bytes):
    """Stands in for torch.storage._load_from_bytes: a storage pickled by torch, read with weights_only."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for codecs.encode: how old pickles write the bytes of an array."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode(encoding)


_ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "device"): torch.device,
}


def _numpy_names() -> dict:
    import numpy as np

    try:
        from numpy._core import multiarray
        from numpy._core.numeric import _frombuffer
    except ImportError:  # numpy 1
        from numpy.core import multiarray
        from numpy.core.numeric import _frombuffer
    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for package in ("numpy.core", "numpy._core"):
        names[(f"{package}.multiarray", "_reconstruct")] = multiarray._reconstruct
        names[(f"{package}.multiarray", "scalar")] = multiarray.scalar
        names[(f"{package}.numeric", "_frombuffer")] = _frombuffer
    return names


class _DataOnly(pickle.Unpickler):
    """An unpickler that knows numbers, containers, numpy arrays and tensors."""

    def __init__(self, file, path: Path) -> None:
        super().__init__(file)
        self.path, self.names = path, {**_ALLOWED, **_numpy_names()}

    def find_class(self, module: str, name: str):
        if (module, name) in self.names:
            return self.names[(module, name)]
        raise InputError(
            f"{self.path} wants to run {module}.{name}: a pickle is a program, and this one is not plain data. "
            "Nothing of it was executed"
        )


def load_pickle(path: str | Path):
    """Content of a pickle that holds dicts, tuples, numbers, arrays and tensors (moved to the CPU), or of a torch file.

    Raises InputError for a missing or broken file and for one that asks for anything else; nothing of it is run.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        with open(path, "rb") as file:
            content = _DataOnly(file, path).load()
        if isinstance(content, int) and content == torch.serialization.MAGIC_NUMBER:  # torch's format before 1.6
            return torch.load(path, map_location="cpu", weights_only=True)
        return content
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except InputError:
        raise
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, AttributeError,
            ImportError, IndexError, KeyError, MemoryError) as error:  # fmt: skip
        raise InputError(
            f"{path} cannot be read as data: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
