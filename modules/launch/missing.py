"""Print the lines of a requirements file that this Python does not satisfy; exit code 0 when there is none.

    python modules/launch/missing.py requirements.txt

Runs before anything is installed, so with Python's own library alone.
"""

import importlib.metadata
import re
import sys
from pathlib import Path


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])


def missing(requirements: str) -> list[str]:
    """Lines `name>=version` whose package is not there or is older; comments and blank lines are passed over."""
    found = []
    for line in requirements.splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        name, least = (line.split(">=") + [""])[:2]
        try:
            if numbers(importlib.metadata.version(name.split("[")[0])) < numbers(least):
                found.append(line)
        except importlib.metadata.PackageNotFoundError:
            found.append(line)
    return found


if __name__ == "__main__":
    rows = ["Python>=3.10"] if sys.version_info < (3, 10) else missing(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(" ".join(f"'{row}'" for row in rows))
    sys.exit(bool(rows))
