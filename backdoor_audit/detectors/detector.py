"""What a detector is: what it says of itself, how it is called, and what it may ask for beside the audited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch

from backdoor_audit.detectors.detection import Detection
from backdoor_audit.detectors.natural import Natural
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.twins import Twins

ImageShape = tuple[int, int, int]

More = Callable[[Sequence[int]], Natural | None]
"""What is natural for these classes; None where there are no twins."""

SEARCHING = 1.2
"""What a pass costs in a search, with what is done to images and triggers, over one of the bare model."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a search in one model: image passes as records count them, and what each costs over one of the bare model.

    ``in_twin`` are the passes in each reference twin where those are fewer: twins are not screened.
    """

    passes: float
    overhead: float = SEARCHING
    in_twin: float | None = None


class Detector(Protocol):
    """A frozen dataclass whose fields are the paper's parameters and whose call is the work.

    Its ``repr`` is one line that makes it again; it stands in the record, and finished work is kept under it. A run calls

    ``detector(subject, reference=reference, found=found, generator=generator, progress=progress)``

    and judges the rows of the `Detection` that comes back, one item for each of `targets`. A detector

    * searches on ``subject.search_set`` and measures on ``subject.held_out``; labels are what images are, and nothing says which
      class an attacker might have chosen. It leaves the model as it found it: weights, mode, hooks, random state;
    * takes all randomness from ``generator``: the same state gives the same detection;
    * asks ``reference`` for what is natural, when it needs that: see `Reference`;
    * reads in ``found`` what the detectors named in `builds_on` found on the same model;
    * shows a bar if ``progress`` says so, and calls `budget.check` in every long loop;
    * gives what it measured of each row as `BySize` or `ByMargin`, which have the rule by which the row is judged. Where there is
      no answer it says why in ``inconclusive`` (`no_answer` makes such a detection), and gives no number that was not measured.
    """

    @property
    def name(self) -> str:
        """Of its items, lower case and an identifier; no two detectors of a run share one."""

    @property
    def rows(self) -> str:
        """What each row is about: ``target``, a class that images are sent to, or ``source``, a class that images leave."""

    @property
    def needs_twins(self) -> bool:
        """Whether it compares the model with reference twins; if so, and it builds on no others, it is a `Compared`."""

    @property
    def builds_on(self) -> Sequence[str]:
        """Names of the detectors whose detections it needs in ``found``; empty for one that looks at the model.

        One that builds on others runs no model: it costs nothing, is not kept, and comes after all others.
        """

    @property
    def least_classes(self) -> int:
        """With fewer classes it is not asked, and its items are inconclusive."""

    @property
    def blind_spots(self) -> Sequence[str]:
        """What it does not see, in words."""

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """The class of every row in their order; None for a row about all classes at once."""

    def with_options(self, options: AuditOptions) -> Detector:
        """The same detector with the effort that the options of a run ask for."""

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of one search in one model, with so many clean images in either half; a plan is made from it."""

    def __call__(
        self,
        subject: Subject,
        *,
        reference: Reference,
        found: Sequence[Detection],
        generator: torch.Generator,
        progress: bool,
    ) -> Detection:
        """Look at one model. Raises `BudgetSpentError` where the time of the run is over."""


class Compared(Detector, Protocol):
    """A detector that does the same search on the audited model and on reference twins; `compared.beside_twins` calls it."""

    def natural(
        self,
        twins: Sequence[Subject],
        *,
        classes: Sequence[int] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Natural:
        """The search on every twin: for these classes, or for those that every model is asked for.

        Raises `DegenerateScoresError` if one of them allows none.
        """

    def look(
        self,
        subject: Subject,
        natural: Natural | None,
        null: SteeringNull,
        *,
        more: More | None = None,
        named: Sequence[int] = (),
        generator: torch.Generator,
        progress: bool = False,
    ) -> Detection:
        """One search on a model, beside what is natural and with indices by ``null``.

        ``natural`` is about the classes that every model is asked for; ``more`` tells it of others that this search names. None
        is enough for a ``null`` that was measured without twins. ``named`` are the classes that an earlier search was about, the
        most extreme first. Raises `DegenerateScoresError` where a twin allows no search.
        """

    def with_effort(self, share: float) -> Compared:
        """The same detector with that share of its steps."""

    def slow(self, detection: Detection) -> bool:
        """Whether a search that has not converged rose so slowly at its end that it has all but looked."""


class Reference(Protocol):
    """What is natural for models like the audited one, on demand: nothing is trained or searched before it is asked for."""

    @property
    def missing(self) -> str:
        """Why there is nothing to compare with; empty if there is. The rest may be asked for only then."""

    @property
    def twins(self) -> Twins:
        """Clean networks trained on the clean images."""

    @property
    def null(self) -> SteeringNull:
        """How far clean models are steered beyond twins of this kind, by which indices are calibrated."""

    def natural(self, detector: Compared, classes: Sequence[int] = ()) -> Natural | None:
        """What the twins show to a detector, once for all models with these images. Raises `DegenerateScoresError`.

        None where there are no twins and the classes of the audited network stand beside each other alone: see ``null``.

        Without ``classes`` it is about those that every model is asked for: all, unless the detector races.
        """

    def close(self, detection: Detection) -> bool:
        """Whether some class lies so near to the limit that luck may decide it: the search is worth doing again."""


def compares(detector: Detector) -> TypeGuard[Compared]:
    """Whether a detector does the same search on reference twins."""
    return detector.needs_twins and not detector.builds_on


def no_answer(detector: Detector, reason: str) -> Detection:
    """A detection that could not be made."""
    return Detection(
        detector=detector.name,
        settings=repr(detector),
        scores=(),
        triggers=(),
        inconclusive=reason,
        rows=detector.rows,
        blind_spots=detector.blind_spots,
    )
