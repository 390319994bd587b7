"""How the project says that an input is wrong: one clear message, exit code 2, no traceback."""

import functools
import os
import sys
import time


class InputError(ValueError):
    """What is wrong, where, and what to do. Entry points print it and leave with exit code 2."""


class Problems:
    """Collects everything that is wrong with a run, so that the user hears it once, before the first batch."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)

    def check(self, holds: bool, text: str) -> bool:
        """Note `text` unless `holds`; returns `holds`."""
        if not holds:
            self.add(text)
        return bool(holds)

    def stop_if_any(self, heading: str = "cannot start") -> None:
        """Raises InputError that lists all problems noted so far."""
        if self.texts:
            raise InputError(heading + ":\n" + "\n".join(f"  - {text}" for text in self.texts))


def entry(main):
    """Decorator of a command's `main`: an InputError becomes its message on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            if os.environ.get("RANK", "0") != "0":
                time.sleep(3)  # where the first process says the same, torchrun ends this one meanwhile
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except RuntimeError as error:
            from modules import processes  # here, so that a command without PyTorch starts without it

            if not processes.lost_another(error):
                raise
            processes.ended()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
