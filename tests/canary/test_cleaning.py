"""What a repair does to a backdoor that nobody told it of, and whether a few stamped images bring a trigger back."""

import pytest
import torch

from backdoor_audit.canary import cleaning
from backdoor_audit.canary.cleaning import learnt_again, stow_away
from backdoor_audit.errors import AttackError
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import FeatureShiftTuning, Unlearning
from tests.subjects import assert_unchanged, seeded, snapshot, square_trigger
from tests.subjects.cornered import OPT, TRIGGER, VAL, corner_reader


@pytest.fixture(scope="module")
def stowaway():
    found = stow_away(Subject(corner_reader(), OPT, VAL), seen_by=("patch_scan",), classes=(2, 0), seed=0)
    assert found is not None
    return found


def success(classifier, trigger):
    return float(attack_success_rate(classifier, VAL.images, VAL.labels, trigger))


def test_a_backdoor_of_another_kind_and_class_is_planted_in_a_copy(stowaway):
    before = snapshot(corner_reader().module)
    assert stowaway.attack.name == "blended"
    assert stowaway.attack.target_class == 1
    assert stowaway.called.startswith("blend of ")
    assert stowaway.called.endswith(" for class 1")
    assert success(stowaway.subject.classifier, stowaway.attack) >= 0.7
    assert success(corner_reader(), stowaway.attack) <= 0.5
    assert_unchanged(before, corner_reader().module)


def test_kinds_that_the_audit_sees_are_not_planted(monkeypatch):
    tried = []

    class Kind(type(cleaning.CANARIES[0])):
        def plant(self, *_arguments, **_more):
            tried.append(self.name)
            raise AttackError("no")

    kinds = [Kind(**{name: getattr(kind, name) for name in kind.__dataclass_fields__}) for kind in cleaning.CANARIES]
    monkeypatch.setattr(cleaning, "CANARIES", kinds)
    subject = Subject(corner_reader(), OPT, VAL)
    assert stow_away(subject, seen_by=("additive",), classes=(), seed=0) is None
    assert set(tried) == {"badnets"}
    tried.clear()
    assert stow_away(subject, seen_by=(), classes=range(5), seed=0) is None
    assert not tried


def test_a_faint_repair_leaves_the_stowaway_and_its_own_trigger_takes_it(stowaway):
    left = stowaway.left(Unlearning(epochs=1, learning_rate=1e-3), (TRIGGER,), generator=seeded(1))
    known = stowaway.left(Unlearning(), (stowaway.attack,), generator=seeded(1))
    assert float(left) >= 0.5
    assert float(known) <= 0.3


def test_a_method_that_does_not_apply_leaves_nothing_to_say(stowaway, monkeypatch):
    monkeypatch.setattr(cleaning, "against_all", lambda *_arguments, **_more: (None, ()))
    assert stowaway.left(FeatureShiftTuning(), (TRIGGER,), generator=seeded(1)) is None


def test_a_model_that_still_has_its_backdoor_learns_it_again_and_the_model_itself_stays():
    subject, before = Subject(corner_reader(), OPT, VAL), snapshot(corner_reader().module)
    assert float(learnt_again(corner_reader(), subject, TRIGGER, seed=0)) >= 0.9
    assert_unchanged(before, corner_reader().module)


def test_a_trigger_that_the_model_never_knew_is_not_learnt_from_five_images():
    subject = Subject(corner_reader(), OPT, VAL)
    unknown = square_trigger((1, 8, 8), target_class=4, top=0, left=0, size=1)
    assert float(learnt_again(corner_reader(), subject, unknown, seed=0)) <= 0.5
    assert torch.equal(OPT.images, subject.search_set.images)
