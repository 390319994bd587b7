"""How the project says that an input is wrong: one clear message, exit code 2, no traceback."""

import errno
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


def leave(text: str) -> None:
    """Print the message of an error and end with exit code 2."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)  # where the first process says the same, torchrun ends this one meanwhile
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


WAYS_OUT = {
    errno.EACCES: "change its rights or choose another place", errno.EPERM: "change its rights or choose another place",
    errno.EROFS: "choose another place", errno.ENOSPC: "make room", errno.EDQUOT: "make room",
    errno.ENOTDIR: "a part of this path is a file, not a folder", errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter path", errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many files are open: ulimit -n 4096, or fewer --num_workers",
    errno.ENOMEM: "fewer --num_workers or a smaller --batch_size",
}  # fmt: skip


def _of_the_system(error: OSError) -> str:
    """One sentence about an error of the operating system: which file, what is wrong, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    way_out = WAYS_OUT.get(error.errno) if error.errno else None
    text = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
    return ": ".join([*names, text]) + (f"; {way_out}" if way_out else "")


def entry(main):
    """Decorator of a command's `main`: an InputError or an error of the operating system becomes one message on stderr and
    exit code 2. Anything else is a bug and shows its traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        if hasattr(sys.stdout, "reconfigure"):  # a console of ASCII shows what it can of a path or a report
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            value = main(*args, **kwargs)
            sys.stdout.flush()  # so that a closed pipe is noticed here
            return value
        except InputError as error:
            leave(str(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
            leave("the program that read the output has closed it; what was to come is not printed")
        except OSError as error:
            leave(_of_the_system(error))
        except RuntimeError as error:
            from modules import processes  # here, so that a command without PyTorch starts without it

            if not processes.lost_another(error):
                raise
            processes.ended()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
