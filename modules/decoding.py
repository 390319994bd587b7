"""Generation for every system: greedy, beam search, sampling; batched and cached.

Stops once all reports of the batch have ended.

A system gives `encode(batch) -> memory` (a dict of tensors whose first axis is B, made once per study),
`step(tokens [B, K], memory, cache) -> (logits [B, K, W], cache)` and the ids `bos`, `eos`, `padding`. A cache has
`keep(studies, source)`: which studies go on, and from which beams (WordCache in modules/nets/transformer.py).
A study's report depends on the study alone: not on its neighbours, the batch size or when they end.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

# decoding asks after so many words which reports have ended: on a GPU each question waits for the queue to empty
LOOK_EVERY = {"cpu": 1, "cuda": 8}
BEST = -1.0  # in place of a number in [0, 1): take the best word


@dataclass(frozen=True)
class DecodingSettings:
    """How reports are written; lengths in words (EOS not counted)."""

    beam_size: int = 1
    max_length: int = 127
    min_length: int = 0
    length_penalty: str = "none"
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    block_trigrams: bool = False
    beam_search: str = "ours"
    seed: int = 0
    marks: bool = True  # padding and BOS may come where they are not EOS, as in published code

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_length < 1:
            raise ValueError("beam size and greatest length must be 1 or more")
        if self.min_length > self.max_length:
            raise ValueError(f"the least length {self.min_length} exceeds the greatest, {self.max_length}")
        if self.sample and self.beam_size > 1:
            raise ValueError("sampling goes with --beam_size 1")
        if self.block_trigrams and self.beam_size > 1:
            raise ValueError("--block_trigrams is for greedy decoding: --beam_size 1")
        if self.beam_search != "ours" and self.length_penalty != "none":
            raise ValueError(f"--beam_search {self.beam_search} ranks in its own way: --length_penalty none")

    @classmethod
    def from_flags(cls, args) -> "DecodingSettings":
        return cls(
            beam_size=args.beam_size,
            max_length=args.max_gen_length,
            min_length=args.min_gen_length,
            length_penalty=args.length_penalty,
            sample=args.sample,
            temperature=args.sample_temperature,
            top_k=args.top_k,
            # a preset's block is for beam 1; typed beside a wider beam it is refused
            block_trigrams=args.block_trigrams and (args.beam_size == 1 or "block_trigrams" in args.typed),
            beam_search=args.beam_search,
            seed=args.seed,
        )


@torch.no_grad()
def generate_reports(system, batch, settings: DecodingSettings) -> list[list[int]]:
    """Word ids of each study's report, BOS and EOS left out. The system must be in evaluation mode."""
    memory = system.encode(batch)
    return decode(system, memory, settings, batch.ids)


@torch.no_grad()
def decode(system, memory: dict, settings: DecodingSettings, ids: list[str], *, stop: bool = True) -> list[list[int]]:
    """As generate_reports, from encoded studies. stop=False ignores EOS and returns max_length ids each."""
    if settings.beam_size > 1:
        rule = system.released_search if settings.beam_search == "released" else settings.beam_search
        return SEARCHES[rule](system, memory, settings)
    draws = _draws(settings, ids) if settings.sample else None
    written = _one_beam(system, memory, settings, len(ids), draws, stop).tolist()
    return [_cut(row, system) for row in written] if stop else written


@torch.no_grad()
def draw_reports(
    system, memory: dict, settings: DecodingSettings, names: list[list[str]], *, greedy: bool = False
) -> list[list[tuple[list[int], bool]]]:
    """K samples of each of B studies from one encoding: for each study and sample its word ids, and whether EOS ended it.

    names [B][K]: with settings.seed they seed the samples; equal names give equal samples. greedy: a study has one more
    report after its samples, of the best word at each position under the same limits.
    """
    each = len(names[0]) + greedy
    draws = _draws(settings, [name for row in names for name in row]).unflatten(0, (len(names), -1))
    if greedy:
        draws = torch.cat([draws, torch.full_like(draws[:, :1], BEST)], 1)
    written = _one_beam(system, repeat(memory, each), settings, len(names) * each, draws.flatten(0, 1)).tolist()
    reports = [(_cut(row, system), any(stop in row for stop in _stops(system))) for row in written]
    return [reports[start : start + each] for start in range(0, len(reports), each)]


def words_of(system, ids: torch.Tensor) -> torch.Tensor:
    """Which ids are words, bool of their shape: neither padding, BOS nor EOS."""
    marks = torch.tensor([system.padding, system.bos, system.eos], device=ids.device)
    return ~torch.isin(ids, marks)


def distribution(system, logits: torch.Tensor, settings: DecodingSettings, drawn: torch.Tensor) -> torch.Tensor:
    """Logits of whole reports [N, L, W] -> log-probabilities [N, L, W] of what a draw is from at each position.

    Least length, marks, temperature and top-k are in it, the block of trigrams is not. drawn: the reports' ids [N, L], which
    top-k leaves in, since a logit of a cached pass may differ from this one's by a rounding.
    """
    stops, barred = _limits(system, settings, logits.device)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if settings.min_length:
        early = logits[:, : settings.min_length].index_fill(-1, stops, -math.inf)
        logits = torch.cat([early, logits[:, settings.min_length :]], 1)
    if len(barred):
        logits = logits.index_fill(-1, barred, -math.inf)
    return _shaped(logits, settings, drawn[..., None]).log_softmax(-1)


def repeat(memory: dict, count: int) -> dict:
    """Each study of an encoded batch `count` times, one after another."""
    return {name: value.repeat_interleave(count, 0) for name, value in memory.items()}


def select(memory: dict, rows: torch.Tensor) -> dict:
    """The studies `rows` of an encoded batch."""
    return {name: value.index_select(0, rows) for name, value in memory.items()}


def _one_beam(system, memory, settings, count: int, draws: torch.Tensor | None, stop: bool = True) -> torch.Tensor:
    """Ids [count, max_length] on the device, whatever after the first that ends a report.

    draws: a number for each word [count, max_length], see _draw, BEST for the best word; None: the best words.
    """
    device = next(iter(memory.values())).device
    stops, barred = _limits(system, settings, device)
    alive = torch.arange(count, device=device)
    written = torch.full((count, settings.max_length), system.padding, device=device)
    tokens = torch.full((count, 1), system.bos, device=device)
    cache = None
    draws = draws if draws is None else draws.to(device, non_blocking=True)
    for at in range(settings.max_length):
        logits, cache = system.step(tokens, memory, cache)
        logits = logits[:, 0].float()
        if at < settings.min_length:
            logits[:, stops] = -math.inf
        if len(barred):
            logits[:, barred] = -math.inf
        if settings.block_trigrams and at >= 3:
            _lower_repeats(logits, written[alive, :at])
        tokens = logits.argmax(-1, keepdim=True)
        if draws is not None:
            own = draws[alive, at, None]
            tokens = torch.where(own == BEST, tokens, _draw(logits, settings, own))
        written[alive, at] = tokens[:, 0]
        if not stop or (at + 1) % LOOK_EVERY.get(device.type, 1):
            continue
        words = written[alive, : at + 1]
        going = (~torch.isin(words, stops).any(1)).tolist()
        left = [row for row, goes in enumerate(going) if goes]
        if not left:
            break
        if len(left) <= 0.75 * len(alive):  # finished studies leave the batch, in few large moves rather than one by one
            rows = torch.tensor(left).to(device, non_blocking=True)
            alive, tokens, memory = alive[rows], tokens[rows], select(memory, rows)
            cache.keep(rows)
    return written


def _limits(system, settings: DecodingSettings, device) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids that end a report, and those that may never come."""
    barred = [] if settings.marks else sorted({system.padding, system.bos} - {system.eos})
    stops, never = (torch.tensor(ids, dtype=torch.long).to(device, non_blocking=True) for ids in (_stops(system), barred))
    return stops, never


def _stops(system) -> list[int]:
    """The ids that end a report."""
    return [system.eos, system.padding] if system.padding_ends else [system.eos]


def _cut(row: list[int], system) -> list[int]:
    """Ids before the first one that ends the report."""
    stops = _stops(system)
    for position, number in enumerate(row):
        if number in stops:
            return row[:position]
    return row


def _draws(settings: DecodingSettings, ids: list[str]) -> torch.Tensor:
    """A number in [0, 1) for each word of each study, drawn from the study's own seed: float [B, max_length]."""
    seeds = [zlib.crc32(f"{settings.seed}/{name}".encode()) for name in ids]
    return torch.stack([torch.rand(settings.max_length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _draw(logits: torch.Tensor, settings: DecodingSettings, draws: torch.Tensor) -> torch.Tensor:
    """The id of each row whose share of the probabilities holds the row's number: draws [B, 1] in [0, 1) -> [B, 1]."""
    shares = (_shaped(logits, settings).softmax(-1) * 2.0**40).long().cumsum(-1)  # integers: the same sums on every device
    return torch.searchsorted(shares, (draws.double() * shares[:, -1:]).long(), right=True)


def _shaped(logits: torch.Tensor, settings: DecodingSettings, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Temperature and top-k of a draw: logits [..., W]; keep: ids [..., any] that top-k leaves in."""
    logits = logits / settings.temperature
    if settings.top_k:
        low = logits < logits.topk(min(settings.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(low if keep is None else low.scatter(-1, keep, False), -math.inf)
    return logits


def _lower_repeats(logits: torch.Tensor, written: torch.Tensor) -> None:
    """R2Gen's soft block, in place: a word that would repeat a trigram loses 2 ln 2 for each time it occurred.

    logits [B, W], written [B, at], at >= 3.
    """
    before = (written[:, :-2] == written[:, -2:-1]) & (written[:, 1:-1] == written[:, -1:])
    logits.scatter_add_(1, written[:, 2:], before * (-2 * math.log(2)))


class _Beams:
    """Where a beam search stands: the living studies with `beam_size` beams each, and every study's best ended report.

    All of it stays on the device: nothing waits for a number, but for the question whether studies have stopped (LOOK_EVERY).
    """

    def __init__(self, system, memory: dict, settings: DecodingSettings) -> None:
        first = next(iter(memory.values()))
        count, beams, device = len(first), settings.beam_size, first.device
        self.system, self.memory, self.settings = system, memory, settings
        self.cache: Any = None  # the system's own
        self.best = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
        self.best_written = torch.full((count, settings.max_length), system.eos, device=device)
        self.alive = torch.arange(count, device=device)
        self.tokens = torch.full((count, beams), system.bos, device=device)
        self.sums = torch.full((count, beams), -math.inf, device=device)
        self.sums[:, 0] = 0.0  # all beams start equal: only one may be continued
        self.lengths = torch.zeros(count, beams, dtype=torch.long, device=device)  # for a search that ranks by the mean
        self.written = torch.full((count, beams, settings.max_length), system.eos, device=device)

    def next_words(self, at: int) -> torch.Tensor:
        """Log-probabilities of the next word [B, K, W]; what may not come yet has -inf."""
        logits, self.cache = self.system.step(self.tokens, self.memory, self.cache)
        scores = logits.float().log_softmax(-1)
        if self.system.padding_ends and self.system.padding != self.system.eos:
            scores[..., self.system.padding] = -math.inf
        if at < self.settings.min_length:
            scores[..., self.system.eos] = -math.inf
        return scores

    def store(self, scores: torch.Tensor, source: torch.Tensor) -> None:
        """Candidates for the best ended report: scores [B, any], -inf where none has ended, and the beams that wrote them.

        The earlier of equals stays.
        """
        chosen = scores.argmax(1, keepdim=True)
        scores, beam = scores.double().gather(1, chosen)[:, 0], source.gather(1, chosen)[:, 0]
        written = self.written[torch.arange(len(beam), device=beam.device), beam]
        old = self.best[self.alive]
        self.best[self.alive] = torch.maximum(scores, old)
        self.best_written[self.alive] = torch.where((scores > old)[:, None], written, self.best_written[self.alive])

    def extend(self, at: int, source: torch.Tensor, words: torch.Tensor) -> None:
        """Beam k goes on from beam source[:, k] with the word words[:, k] at position `at`."""
        self.written = self.written.gather(1, source[..., None].expand_as(self.written))
        self.written[:, :, at] = self.tokens = words

    def keep(self, at: int, going: torch.Tensor, source: torch.Tensor) -> bool:
        """Drop the studies that are not `going` (bool [B]), if it is time to look; False when none is left.

        The cache follows the beams that were gone on from.
        """
        stay = None
        if (at + 1) % LOOK_EVERY.get(going.device.type, 1) == 0:
            rows = going.nonzero()[:, 0]
            if not len(rows):
                return False
            if len(rows) < len(self.alive):
                stay, self.alive = rows, self.alive[rows]
                self.tokens, self.sums, self.written = self.tokens[stay], self.sums[stay], self.written[stay]
                self.lengths = self.lengths[stay]
                self.memory, source = select(self.memory, stay), source[stay]
        self.cache.keep(stay, source)
        return True

    def can_improve(self, bound: torch.Tensor) -> torch.Tensor:
        """bool [B]: studies whose best ended report scores below `bound` [B], what a living beam can still reach."""
        return bound > self.best[self.alive]

    def reports(self) -> list[list[int]]:
        return [_cut(row, self.system) for row in self.best_written.tolist()]


def _beam_search(system, memory, settings) -> list[list[int]]:
    """Beam search with finished reports set aside; scores are sums of log-probabilities under --length_penalty.

    A study stops when its best finished report cannot be beaten by a living beam (for "none": log-probabilities only
    fall) or all its beams have ended.
    """
    beams, state, penalty = settings.beam_size, _Beams(system, memory, settings), settings.length_penalty
    for at in range(settings.max_length + 1):
        scores = state.next_words(at)
        if at == settings.max_length:  # at max length: the report ends here
            ending = _penalised(state.sums + scores[..., system.eos], at, penalty)
            state.store(ending, torch.arange(beams, device=ending.device).expand_as(ending))
            break
        width = scores.shape[-1]
        # twice the beams: at most `beams` of the best can be EOS, so as many living ones remain
        top, indices = (state.sums[..., None] + scores).flatten(1).topk(2 * beams)
        source, words = indices // width, indices % width
        ends = words == system.eos
        state.store(_penalised(top, at, penalty).masked_fill(~ends, -math.inf)[:, :beams], source[:, :beams])
        kept = top.masked_fill(ends, -math.inf).topk(beams)
        source, state.sums = source.gather(1, kept.indices), kept.values
        state.extend(at, source, words.gather(1, kept.indices))
        longest = settings.max_length if penalty != "none" else at + 1  # nothing more is lost, and much written
        if not state.keep(at, state.can_improve(_penalised(state.sums[:, 0], longest, penalty)), source):
            break
    return state.reports()


def _released_beam_search(system, memory, settings) -> list[list[int]]:
    """Beam search as in R2Gen's code: an ended report is stored and stays among the beams, its sum lowered by 1000.

    A beam that has max_length words is stored too; the stored one with the largest sum wins, the earlier of equals. The
    published search always takes max_length steps; here a study leaves once no beam's sum exceeds that of its best stored
    report, since sums only fall.
    """
    state = _Beams(system, memory, settings)
    for at in range(settings.max_length):
        scores = state.next_words(at)
        sums, indices = (state.sums[..., None] + scores).flatten(1).topk(settings.beam_size)
        source, words = indices // scores.shape[-1], indices % scores.shape[-1]
        state.extend(at, source, words)
        ended = (words == system.eos) | (at + 1 == settings.max_length)
        own = torch.arange(settings.beam_size, device=sums.device).expand_as(sums)
        state.store(sums.masked_fill(~ended, -math.inf), own)
        state.sums = sums - 1000 * ended
        if not state.keep(at, state.can_improve(state.sums.max(1).values), source):
            break
    return state.reports()


class _Ended:
    """The K best ended reports of every study, best first: scores float64 [B, K] (-inf: none yet), ids [B, K, L]."""

    def __init__(self, beams: _Beams) -> None:
        self.beams = beams
        self.scores = torch.full(beams.sums.shape, -math.inf, dtype=torch.float64, device=beams.sums.device)
        self.written = torch.full_like(beams.written, beams.system.eos)
        self.full = torch.zeros(len(beams.sums), dtype=torch.bool, device=beams.sums.device)  # takes no more

    def add(self, scores: torch.Tensor, source: torch.Tensor) -> None:
        """Candidates of the living studies, in order: scores [B, any], -inf for none, and the beams that wrote them.

        One enters when it scores above the worst of K.
        """
        rows, count = self.beams.alive, self.scores.shape[1]
        scores = scores.double().masked_fill(self.full[rows, None], -math.inf)
        written = self.beams.written.gather(1, source[..., None].expand(-1, -1, self.written.shape[-1]))
        both = torch.cat((self.scores[rows], scores), 1).sort(dim=1, descending=True, stable=True)
        best = both.indices[:, :count, None].expand(-1, -1, self.written.shape[-1])
        self.scores[rows], self.written[rows] = (
            both.values[:, :count],
            torch.cat((self.written[rows], written), 1).gather(1, best),
        )


def _hf_beam_search(system, memory, settings) -> list[list[int]]:
    return [_cut(row, system) for row in hf_ended(system, memory, settings).written[:, 0].tolist()]


def hf_ended(system, memory, settings) -> _Ended:
    """Beam search as in transformers 4.35 (length penalty 1, no early stop), which wrote CvT2DistilGPT2's reports.

    An ended report scores its sum over the ids before its last one, BOS counted. A study stops when the worst of its K
    ended reports is not below the best of 2 K candidates, ended ones included, over one id more. Beams that reach the
    greatest length compete with their sum over all ids, BOS counted.
    """
    beams, state = settings.beam_size, _Beams(system, memory, settings)
    ended = _Ended(state)
    for at in range(settings.max_length):
        scores = state.next_words(at)
        top, indices = (state.sums[..., None] + scores).flatten(1).topk(2 * beams)
        source, words = indices // scores.shape[-1], indices % scores.shape[-1]
        ends = words == system.eos
        # at a lower rank an ended candidate is passed over
        ended.add((top.double() / (at + 1)).masked_fill(~ends, -math.inf)[:, :beams], source[:, :beams])
        ended.full[state.alive] |= ended.scores[state.alive, -1] >= top[:, 0].double() / (at + 2)
        kept = top.masked_fill(ends, -math.inf).topk(beams)
        source, state.sums = source.gather(1, kept.indices), kept.values
        state.extend(at, source, words.gather(1, kept.indices))
        if not state.keep(at, ~ended.full[state.alive], source):
            break
    own = torch.arange(beams, device=state.sums.device).expand_as(state.sums)
    ended.add(state.sums.double() / (settings.max_length + 1), own)
    return ended


def _mean_beam_search(system, memory, settings, *, slots: bool = False) -> list[list[int]]:
    """Beams ranked by the mean of their words' log-probabilities, EOS counted; the first at the end is the report.

    An ended beam competes once with the score it has. A study leaves when all its beams have ended.
    slots: as SGRRG's code. An ended beam competes once, in as many equal copies as there are beams; a copy that is kept gets
    word 1 at no cost and is then a living beam again, whose text stays cut at its first EOS. The lengths stay where
    they are when beams change places: a candidate is divided by the length at its parent's position. So an ended beam that
    comes first decides: all beams become its copies.
    """
    state = _Beams(system, memory, settings)
    for at in range(settings.max_length):
        scores = state.next_words(at)
        ended = (state.tokens == system.eos) & (at > 0)  # BOS and EOS may be one id
        idle = torch.full_like(scores[0, 0], 0.0 if slots else -math.inf)
        idle[system.eos] = 0.0
        sums = state.sums[..., None] + torch.where(ended[..., None], idle, scores)
        lengths = state.lengths + ~ended
        positions = (sums / lengths[..., None]).flatten(1).topk(settings.beam_size).indices
        source, words = positions // scores.shape[-1], positions % scores.shape[-1]
        copied = ended.gather(1, source)
        state.sums = sums.flatten(1).gather(1, positions)
        state.lengths = lengths if slots else lengths.gather(1, source)
        state.extend(at, source, torch.where(copied, 1, words) if slots else words)
        over = (state.tokens == system.eos).all(1) | (copied[:, 0] & slots) | (at + 1 == settings.max_length)
        state.store(torch.zeros_like(state.sums).masked_fill(~over[:, None], -math.inf), torch.zeros_like(source))
        if not state.keep(at, state.best[state.alive] == -math.inf, source):
            break
    return state.reports()


def _penalised(total: torch.Tensor, words: int, kind: str) -> torch.Tensor:
    """Scores that rank finished reports, float64: `words` words and the end mark were predicted."""
    total = total.double()
    if kind == "avg":
        return total / (words + 1)
    if kind == "wu":  # Wu et al. 2016 with alpha 0.7
        return total / ((5 + words + 1) / 6) ** 0.7
    return total


# by --beam_search, or for "released" by the system's `released_search`
SEARCHES: dict[str, Callable[..., list[list[int]]]] = {
    "ours": _beam_search,
    "hf": _hf_beam_search,
    "mean": _mean_beam_search,
    "lowered": _released_beam_search,
    "slots": partial(_mean_beam_search, slots=True),
}
