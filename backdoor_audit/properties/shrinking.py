"""The smallest form of a trigger that still works: area first, then simpler content, then fainter contrast."""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.triggers.written import WrittenTrigger

Holds = Callable[[WrittenTrigger], bool]
Refit = Callable[[WrittenTrigger], WrittenTrigger]


def shrunk(trigger: WrittenTrigger, holds: Holds, refit: Refit = lambda form: form) -> WrittenTrigger:
    """The smallest form for which ``holds`` is still true, found by trying ever smaller ones; the same every time.

    ``refit`` finds the best content for a form of less area. The form is a local optimum: no single step that is tried here
    makes it smaller.
    """
    smallest = _smallest_area(trigger, holds, refit)
    simplest = next(filter(holds, smallest.simpler()), smallest)
    return _faintest(simplest, holds)


def _smallest_area(trigger: WrittenTrigger, holds: Holds, refit: Refit) -> WrittenTrigger:
    while True:
        tries = (form for smaller in trigger.smaller() for form in (smaller, refit(smaller)))
        found = next(filter(holds, tries), None)
        if found is None:
            return trigger
        trigger = found


def _faintest(trigger: WrittenTrigger, holds: Holds) -> WrittenTrigger:
    """The least strength, in hundredths of the present one, at which it holds, if every larger one holds as well."""
    low, high, faintest = 0, 100, trigger
    while high - low > 1:
        middle = (low + high) // 2
        form = trigger.weaker(middle / 100)
        if form != faintest and holds(form):
            high, faintest = middle, form
        else:
            low = middle
    return faintest
