import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs import DistilledUnlearning
from backdoor_audit.repairs.distilled_unlearning import _between
from tests.subjects import seeded
from tests.subjects.textured import SHAPE, backdoored, corner_patch, repair


def lies_between(images, ends):
    """Whether each image lies on the line from one of the ends to another."""
    for image in images.flatten(1):
        away = image - ends.flatten(1)
        cosines = functional.normalize(away, dim=1) @ functional.normalize(away, dim=1).T
        if not (bool((away.norm(dim=1) < 1e-4).any()) or float(cosines.min()) < -0.999):
            return False
    return True


def test_what_lies_between_images_is_drawn_anew_from_the_generator():
    images = torch.rand(30, 2, 4, 4, generator=seeded(1))
    between = _between(images, seeded(2))
    assert between.shape == images.shape
    assert lies_between(between, images)
    assert not lies_between(torch.rand(30, 2, 4, 4, generator=seeded(3)), images)
    assert not torch.equal(between, images)
    assert torch.equal(_between(images, seeded(2)), between)
    assert not torch.equal(_between(images, seeded(4)), between)


class Watched(nn.Module):
    """A linear classifier that keeps the batches it is asked about while it is no copy in training."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.seen = []

    def forward(self, images):
        if not self.training and len(images) > 2:
            self.seen.append(images.detach().clone())
        return self.linear(images.flatten(1))

    def __deepcopy__(self, memo):
        copy = Watched()
        copy.load_state_dict(self.state_dict())
        return copy


@pytest.mark.parametrize("mixed", [True, False])
def test_the_model_is_asked_for_its_answers_to_clean_images_and_to_what_lies_between_them(mixed):
    model = Classifier.wrap(Watched(), image_shape=SHAPE)
    repair(DistilledUnlearning(mixed=mixed, epochs=1, batch_size=25), model)
    batches = [images for images in model.module.seen if len(images) in (25, 50)]
    halves = [images.tensor_split(2) for images in batches if len(images) == 50]
    asked = [ends for ends in halves if lies_between(ends[1], ends[0])]
    assert len(asked) == (4 if mixed else 0)


@pytest.mark.parametrize("mixed", [True, False])
def test_the_trigger_is_unlearned_with_images_between_and_without(mixed):
    outcome = repair(DistilledUnlearning(mixed=mixed), backdoored(), trigger=corner_patch()).outcome
    assert outcome.before.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= 0.15
    assert f"mixed={mixed}" in outcome.settings
    assert ("between" in outcome.note) is mixed
