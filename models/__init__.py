"""The published systems. A new one is a file beside this and a row here (models/system.py says what it gives)."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from models.system import System

_CLASSES = {
    "ekagen": "EKAGen",
    "csr_lmca": "CSRLMCA",
    "r2gen": "R2Gen",
    "r2gencmn": "R2GenCMN",
    "sgrrg": "SGRRG",
    "xpronet": "XProNet",
    "cvt2distilgpt2": "CvT2DistilGPT2",
}


class Systems(Mapping[str, type[System]]):
    """--model -> class, from models/<name>.py; a file is imported when it is asked for."""

    def __getitem__(self, name: str) -> type[System]:
        title = _CLASSES[name]  # KeyError for a system that is not in the table
        return getattr(import_module(f"models.{name}"), title)

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


SYSTEMS = Systems()
