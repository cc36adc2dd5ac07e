"""A found trigger made as strong as it gets, and fitted anew to smaller places."""

from __future__ import annotations

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.search.steering import Steering
from backdoor_audit.store import generator_for
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.perturbations import Family
from backdoor_audit.triggers.written import WrittenTrigger

_RATED = 200  # images on which forms of a found trigger are compared


class Refit:
    """A trigger for one class, made stronger or fitted anew on some search images, and its success on more of them."""

    def __init__(
        self,
        subject: Subject,
        target_class: int,
        *,
        images: int,
        steps: int,
        step_share: float,
        generator: torch.Generator,
    ) -> None:
        """So many ``images`` of the search set are searched on, for ``steps`` steps of ``step_share`` of the budget."""
        self.classifier, self.target_class = subject.classifier, target_class
        self.steps, self.step_share = steps, step_share
        self.fitting, self.rated = (subject.search_set.sample(count, seed=0) for count in (images, _RATED))
        self.random_seed = int(torch.randint(2**31, (1,), generator=generator))
        self.rates: dict[WrittenTrigger, float] = {}

    def rate(self, form: WrittenTrigger) -> float:
        """Success on search images."""
        if form not in self.rates:
            self.rates[form] = float(rate_of(self.classifier, self.rated, form))
        return self.rates[form]

    def strongest(self, family: Family, found: WrittenTrigger) -> WrittenTrigger:
        """The best that more steps give, and for a family with a place a walk from one to the next, by ever smaller moves."""
        best = max((found, self.fitted(family)), key=self.rate)
        for pixels in (4, 2, 1):
            walking = True
            while walking:
                tries = {self.fitted(place): place for place in family.moved(pixels, self.classifier.image_shape)}
                better = max(tries, key=self.rate, default=best)
                walking = self.rate(better) > self.rate(best)
                if walking:
                    best, family = better, tries[better]
        return best

    def content(self, form: WrittenTrigger) -> WrittenTrigger:
        """The best content for the place of this form; itself if it has no place."""
        family = form.family()
        return form if family is None else self.fitted(family)

    def fitted(self, family: Family) -> WrittenTrigger:
        """The best of a family for the class."""
        steering = Steering(family=family, steps=self.steps, batch_size=16, step_share=self.step_share, measured=8)
        own = generator_for(self.random_seed, repr(family))
        goals = [AllToOne(self.target_class)]
        (trigger,) = steering(self.classifier, self.fitting, self.fitting, goals, generator=own, watched=False).triggers
        assert trigger is not None
        return trigger.in_whole_numbers()


def rate_of(classifier: Classifier, clean: CleanSet, trigger: WrittenTrigger) -> Rate:
    """The trigger's attack success rate; 0 for one that does not fit the images."""
    try:
        return attack_success_rate(classifier, clean.images, clean.labels, trigger)
    except DataFormatError:  # kept for images of another shape
        return Rate(0, 1)
