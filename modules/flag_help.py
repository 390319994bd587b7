"""What a user reads about flags: the help of a command, and answers to flags that it does not know.

A row is a Flag of modules/flags.py; `Theirs` is a flag of the published code of a system.
"""

import difflib
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, COLUMN = 118, 30
COMMON = frozenset(
    "model dataset_name data_dir save_dir seed device num_workers dry_run resume load offline weights_dir limit from_scratch "
    "rebuild visual_extractor extractor_weights image_size max_views batch_size accumulate epochs lr_ve lr_ed early_stop "
    "monitor_metric beam_size split protocols bootstrap page score reference compare table export image out".split()
)


@dataclass(frozen=True)
class Theirs:
    """A flag of a system's published code. ours: our flag, which takes the same value ("": there is none); why: in short."""

    ours: str
    why: str = ""

    def answer(self) -> str:
        """One clause for people."""
        return f"here {self.ours}" + (f" ({self.why})" if self.why else "") if self.ours else f"no flag here: {self.why}"


# ------------------------------------------------------------------------------------------------------------- help


def row_text(flag, value, *, whole: bool) -> str:
    """One flag: name, what it does, its default; in a line, or with every word and choice."""
    name = f"  --{'[no-]' if flag.kind is bool else ''}{flag.name} "
    default = "" if value in (None, "", ()) else f" [{_shown(value)}]"
    choices = f" ({', '.join(flag.choices)})" if flag.choices and whole else ""
    text = (re.sub(r" \[[^\]]*\]$", "", flag.help) if default else flag.help) + choices
    room = WIDTH - COLUMN
    if not whole:
        lines = [textwrap.shorten(text, room - len(default), placeholder=" ...") + default]
    else:
        lines = textwrap.wrap(text + default, room, break_long_words=False, break_on_hyphens=False)
    if len(name) > COLUMN:
        lines.insert(0, "")
    return "\n".join(f"{'' if n else name:{COLUMN}s}{line}".rstrip() for n, line in enumerate(lines))


def _shown(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def help_text(
    command: str, title: str, known: Iterable, values: Mapping, own: Iterable[str], others: Mapping[str, Iterable], *, whole: bool
) -> str:
    """The help of main_<command>.py for one system and data set.

    known: the rows that are read; values: their defaults under this --model and --dataset_name; own: names that this system
    alone reads; others: {system: rows that it reads beside}, shown in the whole help alone.
    """
    script, own = f"python main_{command}.py", set(own)
    groups: dict[str, list[str]] = {}
    for flag in known:
        if command in flag.of and (whole or flag.name in COMMON | own):
            groups.setdefault(flag.group, []).append(row_text(flag, values[flag.name], whole=whole))
    if whole:
        groups |= {f"--model {name} also reads": [row_text(flag, flag.default, whole=True) for flag in rows if command in flag.of]
                   for name, rows in others.items()}  # fmt: skip
    what = f"--model {values['model']} --dataset_name {values['dataset_name']}"
    head = f"{script} {what} [flags]\n\n{title}. In brackets: the defaults of {what}."
    foot = "" if whole else f"\n\nEvery flag, and those of the other systems: {script} --help_all"
    return head + "".join(f"\n\n{group}\n" + "\n".join(rows) for group, rows in groups.items()) + foot


# ---------------------------------------------------------------------------------------------- unknown flags


def typed_words(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The command line as [(name without --, "" for what stands before any flag, its words)]."""
    rows: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, _, value = word[2:].partition("=")
            rows.append((name, [value] if value else []))
        elif rows:
            rows[-1][1].append(word)
        else:
            rows.append(("", [word]))
    return rows


def answer_unknown(
    argv: Sequence[str], unread: Mapping[str, str], reads: Mapping[str, Iterable[str]],
    published: Mapping[str, Mapping[str, Theirs]], *, script: str, model: str | None,
) -> str:
    """What to say when a command line has flags that are not read, each answered, and the same line as it would be here.

    unread: {name: why, "" = unknown}. reads: {system: names it reads in this command}. published: {system: {name: Theirs}}.
    model: --model where it was typed; else the system whose published code has most of the flags is taken.
    """  # fmt: skip
    rows = typed_words(argv)
    names = dict.fromkeys(name for name, _ in rows)
    counts = {name: len(set(names) & set(flags)) if set(unread) & set(flags) else 0 for name, flags in published.items()}
    likely = [name for name, count in counts.items() if count and count == max(counts.values())]
    system = model if published.get(model or "") else next(iter(likely), None)
    theirs, own = published.get(system or "", {}), set(reads.get(model or system or "", ()))
    named = dict(unread) | {name: "" for name in names if system and name in theirs and name not in own}
    choices, lines = {other for read in reads.values() for other in read}, []
    for name, why in named.items():
        near = [f"--{other}" for other in difflib.get_close_matches(name, choices, n=2)]
        answer = theirs[name].answer() if name in theirs else why
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        lines.append(f"--{name}" + (f": {answer}" if answer else hint))
    known_why = set(named) & set(theirs) or any(named.values())
    heading = "flags that are not read here" if known_why else f"unknown flag{'s' * (len(lines) > 1)}"
    text = f"{heading}: {lines[0]}" if len(lines) == 1 else "\n  - ".join([f"{heading}:", *lines])
    if not set(named) & set(theirs):
        return text
    line = [script] + ([] if model else ["--model", str(system)])
    for name, values in rows:
        ours = name if name in own or not name else theirs[name].ours[2:] if name in theirs else ""
        line += [*([f"--{ours}"] if ours else []), *values] if ours in own or not name else []
    more = f", or --model {' or '.join(likely[1:])}" if not model and likely[1:] else ""
    return f"{text}\nthe same line here{more}:\n  {' '.join(line)}"
