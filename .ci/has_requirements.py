"""Exit code 0 when this Python satisfies requirements.txt; else says what is missing and exits with 1."""

import importlib.metadata
import re
import sys
from pathlib import Path


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])


missing = [] if sys.version_info >= (3, 10) else ["Python >= 3.10"]
for line in (Path(__file__).parent.parent / "requirements.txt").read_text().splitlines():
    name, least = (line.split(">=") + [""])[:2]
    try:
        if numbers(importlib.metadata.version(name)) < numbers(least):
            missing.append(line)
    except importlib.metadata.PackageNotFoundError:
        missing.append(line)
print(" ".join(missing))
sys.exit(bool(missing))
