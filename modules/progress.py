"""What a person sees of a long job: a bar on a terminal, a line every 20 seconds in a log, a row for each epoch."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized

from tqdm import tqdm

EVERY = 20.0  # seconds: nothing is silent for 30


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Lines:
    """Used like a tqdm bar where there is no terminal: `what: 120 of 500, 40 s, 2 min left` every EVERY seconds, on stderr.

    A thread of its own writes them, so that one long step is not silent either.
    """

    def __init__(self, items: Iterable | None, desc: str, total: int | None, initial: int) -> None:
        self.items, self.desc, self.n, self.initial = items, desc, initial, initial
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.start, self.over = time.perf_counter(), threading.Event()
        self.watch: threading.Thread | None = None  # from the first step on

    def _watch(self) -> None:
        while not self.over.wait(EVERY):
            print(self.text(), file=sys.stderr, flush=True)

    def text(self) -> str:
        """The line of this moment."""
        gone, done = time.perf_counter() - self.start, self.n - self.initial
        count = f"{self.n:,} of {self.total:,}, " if self.total else ""
        left = f", {duration(gone / done * (self.total - self.n))} left" if self.total and done else ""
        return f"{self.desc}: {count}{duration(gone)}{left}"

    def update(self, count: int = 1) -> None:
        self.__enter__().n += count

    def set_postfix(self, *_, **__) -> None:
        """Nothing: the facts of a step stand in log.jsonl."""

    def close(self) -> None:
        self.over.set()

    def __iter__(self) -> Iterator:
        with self:
            for item in self.items or ():
                yield item
                self.n += 1

    def __enter__(self) -> "Lines":
        if self.watch is None:
            self.watch = threading.Thread(target=self._watch, daemon=True)
            self.watch.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()


def tracked(items: Iterable | None = None, *, desc: str, total: int | None = None, initial: int = 0, hidden: bool = False):
    """`items` as they come, or something to `update`, with its progress shown; the first process shows it."""
    hidden = hidden or os.environ.get("RANK", "0") != "0"
    if hidden or sys.stderr.isatty():
        return tqdm(items, desc=desc, total=total, initial=initial, disable=hidden, leave=False, mininterval=1)
    return Lines(items, desc, total, initial)


def working(desc: str):
    """`with working("scoring"):` shows that a job without steps is at it."""
    return tracked(desc=desc)


class EpochTable:
    """The rows of a training: losses, the chosen metric, its best, speed and time left; a heading above the first."""

    def __init__(self, epochs: int, metric: str) -> None:
        self.epochs, self.metric, self.heading = epochs, metric, ""
        self.start, self.rows = time.perf_counter(), 0

    def row(
        self, epoch: int, losses: dict[str, float], speed: float, *, value: float | None, best: float | None, best_epoch: int
    ) -> str:
        """The text of a finished epoch; value None: it was not validated, or its metric is n/a."""
        self.rows += 1
        left = (time.perf_counter() - self.start) / self.rows * (self.epochs - epoch)
        cells = {"epoch": f"{epoch}/{self.epochs}", **{name: f"{number:.4f}" for name, number in losses.items()}}
        cells[self.metric] = "-" if value is None else f"{value:.4f}"
        cells["best"] = "-" if best is None else f"{best:.4f} ({best_epoch})"
        cells |= {"studies/s": f"{speed:.1f}", "left": duration(left)}
        widths = [max(len(name), 12 if name in ("best", "left") else 8) for name in cells]
        heading = "  ".join(f"{name:>{width}s}" for name, width in zip(cells, widths))
        text = "  ".join(f"{cell:>{width}s}" for cell, width in zip(cells.values(), widths))
        new, self.heading = heading != self.heading, heading
        return f"{heading}\n{text}" if new else text
