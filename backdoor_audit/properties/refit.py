"""A found trigger made as strong as it gets, and fitted anew to smaller places."""

from __future__ import annotations

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, attack_success_rate
from backdoor_audit.properties.changes import Window
from backdoor_audit.search.steering import Steering
from backdoor_audit.store import generator_for
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.perturbations import Family
from backdoor_audit.triggers.written import DrawnTrigger, Patch, in_whole_numbers

_RATED = 200  # images on which forms of a found trigger are compared


class Refit:
    """A trigger for one class, made stronger or fitted anew on some search images, and its success on more of them."""

    def __init__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        target_class: int,
        *,
        images: int,
        steps: int,
        step_share: float,
        generator: torch.Generator,
    ) -> None:
        """``images`` of ``opt`` are searched on, for ``steps`` steps of ``step_share`` of the budget."""
        self.classifier, self.target_class = classifier, target_class
        self.steps, self.step_share = steps, step_share
        self.fitting, self.rated = opt.sample(images, seed=0), opt.sample(_RATED, seed=0)
        self.random_seed = int(torch.randint(2**31, (1,), generator=generator))
        self.rates: dict[DrawnTrigger, float] = {}

    def rate(self, form: DrawnTrigger) -> float:
        """Success on search images."""
        if form not in self.rates:
            self.rates[form] = float(rate_of(self.classifier, self.rated, form))
        return self.rates[form]

    def strongest(self, family: Family, found: DrawnTrigger) -> DrawnTrigger:
        """The best that more steps give, and for a window a walk from place to place, by ever smaller moves."""
        best = max((found, self.fitted(family)), key=self.rate)
        for pixels in (4, 2, 1) if isinstance(family, Window) else ():
            walking = True
            while walking and isinstance(family, Window):
                tries = {self.fitted(window): window for window in family.moved(pixels, self.classifier.image_shape)}
                better = max(tries, key=self.rate, default=best)
                walking = self.rate(better) > self.rate(best)
                if walking:
                    best, family = better, tries[better]
        return best

    def content(self, patch: Patch) -> Patch:
        """The best colours for a patch of this place and size."""
        rows, columns = patch.colours.shape[1:]
        fitted = self.fitted(Window(top=patch.top, left=patch.left, height=rows, width=columns))
        assert isinstance(fitted, Patch)
        return fitted

    def fitted(self, family: Family) -> DrawnTrigger:
        """The best of a family for the class."""
        steering = Steering(family=family, steps=self.steps, batch_size=16, step_share=self.step_share, measured=8)
        own = generator_for(self.random_seed, repr(family))
        goals = [AllToOne(self.target_class)]
        (trigger,) = steering(self.classifier, self.fitting, self.fitting, goals, generator=own).triggers
        assert trigger is not None
        return in_whole_numbers(trigger)


def rate_of(classifier: Classifier, clean: CleanSet, trigger: DrawnTrigger) -> Rate:
    """The trigger's attack success rate; 0 for one that does not fit the images."""
    try:
        return attack_success_rate(classifier, clean.images, clean.labels, trigger)
    except DataFormatError:  # kept for images of another shape
        return Rate(0, 1)
