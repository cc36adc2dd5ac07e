"""What is foretold of a property is about what it then takes."""

import pytest

from backdoor_audit.model.subject import Subject
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.properties import HarmlessChanges, NothingSteers, SmallPatches
from backdoor_audit.run.effort import of_property
from tests.subjects import row_images, row_reader, seeded


@pytest.mark.parametrize(
    "claim",
    [NothingSteers(changes=SmallPatches(), examples=12, steps=3, batch_size=6), HarmlessChanges(examples=12)],
    ids=["steering", "harmless"],
)
def test_a_property_takes_about_the_passes_that_were_foretold(claim):
    search_set, held_out = row_images().split(0)
    classifier, meter = row_reader(), Meter()
    with watched_by(meter):
        claim(Subject(classifier, search_set, held_out), generator=seeded(), natural=lambda target: 1.0)
    assert of_property(claim, classifier.num_classes, len(search_set)) == pytest.approx(meter.passes[""], rel=0.5)
