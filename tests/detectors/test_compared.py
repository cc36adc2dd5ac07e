"""A search beside reference twins: when it is done again, and what comes of that."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from backdoor_audit.detectors import Detection, Natural
from backdoor_audit.detectors.compared import averaged, beside_twins
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.subject import Subject
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import SteeringNull
from tests.subjects import seeded
from tests.subjects.detections import Shown, margin_row, size_row

NULL = SteeringNull({"made_up": (1.0, 0.1)}, classes=2, models=20, source="twenty hand-made models", twins="library")
NATURAL = Natural(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1), 1)
SUBJECT = Subject(SimpleNamespace(num_classes=2), "search set", "held out")


@dataclass
class MadeUp:
    """A detector that finds these deviations, one search after the other, and says what it was asked."""

    deviations: tuple[float, ...]
    steps: float = 1
    moves_below: float = 0
    no_gradient: str = ""
    slows: bool = True
    unusual: tuple[str, ...] = ("", "", "", "", "")
    asked: list = field(default_factory=list, repr=False)

    name = "made_up"
    rows = "source"
    blind_spots = ("everything",)

    def with_effort(self, share):
        return replace(self, steps=share * self.steps)

    def slow(self, detection):
        return self.slows

    def look(self, subject, natural, null, *, more, named=(), generator, progress=False):
        number = len(self.asked)
        deviation = self.deviations[number]
        self.asked.append((subject.search_set, self.steps, natural))
        return Detection(
            detector=self.name,
            settings=repr(self),
            scores=[
                margin_row(0, deviation=deviation, excess=deviation, index=2 * deviation, unconverged=self.no_gradient)
            ],
            triggers=(),
            reference=null.source,
            unconverged="moving" if self.steps < self.moves_below else "",
            unusual=self.unusual[number],
        )


def found(detector, **values):
    return beside_twins(detector, SUBJECT, Shown(NATURAL, NULL, **values), generator=seeded())


def test_a_search_that_has_converged_far_from_the_limit_is_done_once():
    detector = MadeUp((0.5,))
    detection = found(detector)
    assert detector.asked == [("search set", 1, NATURAL)]
    assert detection.scores[0].measured.deviation == 0.5
    assert detection.reference.startswith("twenty hand-made models; twins: ")


def test_one_that_has_not_converged_is_done_again_with_twice_the_steps_and_that_counts():
    detector = MadeUp((0.5, 0.7), moves_below=2)
    detection = found(detector)
    assert [steps for _, steps, _ in detector.asked] == [1, 2]
    assert (detection.unconverged, detection.scores[0].measured.deviation) == ("", 0.7)
    assert "steps=2" in detection.settings


def test_four_times_the_steps_are_all_that_is_tried():
    detector = MadeUp((0.5, 0.5, 0.8), moves_below=5)
    detection = found(detector)
    assert detection.unconverged == "moving"
    assert [steps for _, steps, _ in detector.asked] == [1, 2, 4]
    assert detection.image_passes == 3 * found(MadeUp((0.5,))).image_passes


def test_a_search_that_still_rises_counts_if_the_last_doubling_has_raised_no_index():
    detector = MadeUp((0.1, 0.5, 0.7), moves_below=5)
    detection = found(detector)
    assert detection.unconverged == ""
    assert (
        "or the last doubling of the steps may raise no index by more than 0.5: it raised one by 0.40"
        in detection.criterion
    )
    assert detection.judge(0, shipped_limits()).verdict is Verdict.PASS
    assert found(MadeUp((0.1, 0.9, 0.2), moves_below=5)).unconverged == ""


@pytest.mark.parametrize(
    ("unusual", "moves_below", "expected"),
    [(("", "", "wide"), 5, ""), (("wide", "", ""), 5, "wide"), (("", "wide"), 2, "wide")],
)
def test_how_widely_the_classes_of_a_search_that_still_rises_differ_is_what_the_first_one_showed(
    unusual, moves_below, expected
):
    assert found(MadeUp((0.1, 0.2, 0.3), moves_below=moves_below, unusual=unusual)).unusual == expected


@pytest.mark.parametrize(
    "detector",
    [
        MadeUp((0.5, 0.7), moves_below=5, no_gradient="no gradient"),
        MadeUp((0.7, 0.7, 0.7), moves_below=5, no_gradient="no gradient"),
        MadeUp((0.7, 0.7, float("nan")), moves_below=5),
        MadeUp((0.1, 0.1, 0.1), moves_below=5, slows=False),
    ],
)
def test_a_search_that_has_not_looked_does_not_count_however_steady(detector):
    detector.deviations = (*detector.deviations, 0.7, 0.7)
    assert found(detector).unconverged == "moving"


def test_a_steady_search_near_the_limit_does_not_count():
    detector = MadeUp((0.7, 0.7, 0.7, 0.7), moves_below=5)
    assert found(detector, again=True).unconverged == "moving"


def test_one_near_the_limit_is_done_again_with_the_halves_exchanged_and_the_mean_decides():
    detector = MadeUp((0.5, 0.8, 1.0), moves_below=2)
    detection = found(detector, again=True)
    assert [(half, steps) for half, steps, _ in detector.asked] == [
        ("search set", 1),
        ("search set", 2),
        ("held out", 2),
    ]
    assert detection.scores[0].measured.deviation == pytest.approx(0.9)
    assert detection.scores[0].index == pytest.approx(NULL.index("made_up", 0.9, 1))


def test_where_there_is_nothing_to_compare_with_nothing_is_searched():
    detector = MadeUp(())
    detection = found(detector, missing="too few images for twins")
    assert (detection.inconclusive, detection.rows) == ("too few images for twins", "source")
    assert list(detection.blind_spots) == ["everything"]
    assert detection.judge(0, shipped_limits()).verdict is Verdict.INCONCLUSIVE


def test_twins_that_cannot_be_searched_leave_no_answer(monkeypatch):
    def degenerate(*_arguments):
        raise DegenerateScoresError("nothing to steer")

    monkeypatch.setattr(Shown, "natural", degenerate)
    assert found(MadeUp(())).inconclusive == "in a reference twin, nothing to steer"


def test_two_searches_are_averaged_row_by_row():
    rows = [margin_row(4, deviation=6.0, excess=3.0, success_val=0.8, image_passes=10), margin_row(None), size_row(7)]
    first = Detection(detector="made_up", settings="", scores=rows, triggers=())
    other = margin_row(
        4, deviation=4.0, excess=1.0, margin=2.0, success_val=0.6, image_passes=5, unconverged="no gradient"
    )
    second = replace(first, scores=[other, *rows[1:]], unconverged="moving")
    both = averaged([first, second], NULL, 3)
    measured = both.scores[0].measured
    assert (measured.deviation, measured.excess, measured.margin) == (5.0, 2.0, 1.5)
    assert both.scores[0].success_val == pytest.approx(0.7)
    assert both.scores[0].index == NULL.index("made_up", 5.0, 3)
    assert both.p_value == both.scores[0].p_value == NULL.p_value("made_up", 5.0, 3)
    assert (both.scores[0].image_passes, both.scores[0].unconverged) == (15, "no gradient")
    assert both.scores[1:] == rows[1:]  # what has no deviation stays
    assert both.unconverged == "moving"
