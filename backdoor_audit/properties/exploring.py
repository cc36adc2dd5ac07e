"""Hypothesis as a search inside the library: settings spelled out, no files, one seed, the same examples in every process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st

from backdoor_audit import progress
from backdoor_audit.errors import AuditError

Example = TypeVar("Example")

LEAST_EXAMPLES = 0.5
"""A search that looked at a smaller share of the examples that it was meant to has not converged."""

LAST_EXAMPLES = 0.25
"""The share of a search's examples that must bring nothing which, coming once more, would pass a limit."""

MOST_AGAIN = 3
"""So often a search that has not converged goes on for as long again."""

_FLOOR = -1e9  # what a score that is not finite counts


class RefutedError(AssertionError):
    """An example for which the property does not hold."""


def explore(
    strategy: st.SearchStrategy[Example],
    look: Callable[[Example], tuple[Mapping[str, float], bool]],
    *,
    examples: int,
    random_seed: int,
) -> int:
    """Look at up to ``examples`` examples until one refutes the property; the number of different ones looked at.

    ``look`` gives the scores to climb by, under their labels (Löscher and Sagonas, "Targeted property-based testing", ISSTA
    2017), and whether the example refutes the property. It must depend on the example alone, whose repr tells it from others.
    An `AuditError` that it raises ends the search and is raised here.

    Nothing is shrunk here: a model takes so long that shrinking knows better what to try. Nor does the database of Hypothesis
    or the profile of the caller's project play a part.
    """
    seen: dict[str, tuple[Mapping[str, float], bool]] = {}
    ended: list[AuditError] = []

    @seed(random_seed)
    @settings(
        max_examples=examples,
        derandomize=False,  # the seed is given
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.target),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        print_blob=False,
        backend="hypothesis",
    )
    @given(strategy)
    def holds(example: Example) -> None:
        if ended:
            return
        if repr(example) not in seen:
            try:
                seen[repr(example)] = look(example)
            except AuditError as error:
                ended.append(error)
                return
        scores, refuted = seen[repr(example)]
        for label, score in scores.items():
            target(score if math.isfinite(score) else _FLOOR, label=label)
        if refuted:
            raise RefutedError(repr(example))

    with suppress(RefutedError):
        holds()
    if ended:
        raise ended[0]
    return len(seen)


def explore_on(
    strategy: st.SearchStrategy[Example],
    look: Callable[[Example], tuple[Mapping[str, float], bool]],
    *,
    examples: int,
    random_seed: int,
    unfinished: Callable[[int], bool],
) -> tuple[int, int]:
    """`explore`, and as much again by other random numbers, up to `MOST_AGAIN` times while the search is ``unfinished``.

    That is told how many examples were asked for so far. Gives the number looked at and the number asked for.
    """
    tried, asked = explore(strategy, look, examples=examples, random_seed=random_seed), examples
    for again in range(1, MOST_AGAIN + 1):
        if not unfinished(asked):
            break
        progress.again()
        tried += explore(strategy, look, examples=examples, random_seed=random_seed + again)
        asked += examples
    return tried, asked


def still_climbing(looks: Sequence[Mapping[int, float]], limit: Callable[[int], float], *, examples: int) -> str:
    """Why a search that refuted nothing has not come to its end, in words; empty if it has.

    ``looks`` are the rates that each example reached, by class, in the order of the search. It has converged if it looked at
    `LEAST_EXAMPLES` of the ``examples`` at least, and the last quarter of them came no nearer to a limit, or so little nearer
    that as much again would not pass it. Chosen on the zoo's development half (`python -m benchmarks.convergence`).
    """
    if len(looks) < LEAST_EXAMPLES * examples:
        return f"it looked at {len(looks)} different examples of {examples}"
    last = max(1, int(LAST_EXAMPLES * len(looks)))
    excess = [max(rate - limit(target) for target, rate in look.items()) for look in looks]
    before, nearest = max(excess[:-last], default=-math.inf), max(excess)
    if nearest > before and nearest + (nearest - before) > 0:
        return f"the last {last} of {len(looks)} examples came so much nearer to the limit that as much again would pass it"
    return ""


def number(low: int, high: int) -> st.SearchStrategy[int]:
    """Whole numbers, of which neighbours differ in one bit, so that climbing reaches them by one step.

    Made of booleans: into its integers Hypothesis mixes constants of the modules that happen to be loaded, and a search would
    depend on more than its seed.
    """
    count = high - low + 1
    bits = (count - 1).bit_length() + 1 if count > 1 else 0
    return st.tuples(*[st.booleans()] * bits).map(partial(scaled, low=low, count=count))


def choice(options: tuple[Example, ...]) -> st.SearchStrategy[Example]:
    """One of these, drawn as `number` draws."""
    return number(0, len(options) - 1).map(options.__getitem__)


def scaled(bits: tuple[bool, ...], *, low: int, count: int) -> int:
    """The Gray code of bits, highest first, scaled to ``count`` numbers from ``low``."""
    value, last = 0, False
    for bit in bits:
        last = last != bit
        value = 2 * value + int(last)
    return low + value * count // int(2 ** len(bits))
