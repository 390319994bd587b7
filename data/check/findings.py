"""The lines of a check."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from modules.artefact import write_json

FOUND, MISSING, WRONG, UNUSUAL = "found", "missing", "wrong", "unusual"
SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """One item of the check.

    group: raw files, annotation, images, artefacts, weights or machine. status: found, missing, wrong or unusual. what:
    what was looked at, and `facts` what was there and what was expected. todo: the way out. names: ids or files concerned.
    note: printed only (free disk and the like, which differ from day to day).
    """

    group: str
    status: str
    what: str
    facts: str
    todo: str = ""
    names: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Findings:
    """All items, in the order of the check."""

    items: list[Finding] = field(default_factory=list)

    def add(self, group: str, status: str, what: str, facts: str, todo: str = "", names: Iterable[str] = (), note=""):
        self.items.append(Finding(group, status, what, facts, todo, tuple(names), note))

    def judge(self, group: str, what: str, bad: Iterable[str], status: str, good: str, facts: str, todo: str) -> None:
        """`status` with the names of `bad`, and their number before `facts`, or found with `good` when there are none."""
        bad = list(bad)
        if bad:
            self.add(group, status, what, f"{len(bad):,d} {facts}", todo, bad)
        else:
            self.add(group, FOUND, what, good)

    def exit_code(self, strict: bool = False) -> int:
        """0 = ready, 1 = something is missing or wrong, 2 = ready but unusual (1 when strict)."""
        statuses = {item.status for item in self.items}
        if {MISSING, WRONG} & statuses:
            return 1
        return 0 if UNUSUAL not in statuses else 1 if strict else 2

    def lines(self) -> list[str]:
        """One line per item; the first 20 names below it."""
        made = []
        for item in self.items:
            note = f" ({item.note})" if item.note else ""
            todo = f"; {item.todo}" if item.todo else ""
            made.append(f"{item.status:8s} {item.group}: {item.what}: {item.facts}{note}{todo}")
            made += [f"           {name}" for name in item.names[:SHOWN]]
            if len(item.names) > SHOWN:
                made.append(f"           ... and {len(item.names) - SHOWN:,d} more")
        return made

    def write(self, path, settings: dict) -> None:
        """Every item with all its names as JSON; the same input gives the same file."""
        keys = ("group", "status", "what", "facts", "todo", "names")
        items = [{key: getattr(item, key) for key in keys} for item in self.items]
        write_json(path, {"what": "data check", "settings": settings, "items": items})
