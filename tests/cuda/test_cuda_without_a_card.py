"""The searches on a CUDA device that is only pretended: nothing mixes devices, and the loops hardly wait for the card."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS, NeuralCleanse, Relabelling
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.search.scanning import PatchScan
from tests.subjects import seeded
from tests.subjects.pretended_cuda import CUDA, PretendedCuda

CLASSES = 4
IMAGES = CleanSet(torch.rand(16, 3, 6, 6, generator=seeded()), torch.arange(16) % CLASSES)
STAGES = ("stages", "closer")
SEARCHES = {entry.name: entry for entry in DETECTORS if entry.name != "consensus"}


def classifier(mode):
    channels = IMAGES.image_shape[0]
    with mode.fake, CUDA:
        module = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )
        mean, std = torch.zeros(1, channels, 1, 1), torch.ones(1, channels, 1, 1)
    module.eval().requires_grad_(False)
    plain = ((0.0,) * channels, (1.0,) * channels)
    return Classifier(module, IMAGES.image_shape, CLASSES, "small", *plain, CUDA, mean, std)


def searched(detector, times):
    """What the host asked of the card while a detector searched, for ``times`` times its shortest search; and the steps taken."""
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(), PretendedCuda() as mode:
        warnings.simplefilter("ignore")  # autocast: there is no card
        audited = classifier(mode)
        if isinstance(detector, NeuralCleanse):
            TriggerInversion(steps=3 * times, extension=0.0)(audited, IMAGES, generator=generator)
            return mode.asked.total(), 3 * times
        probes = detector.probes if isinstance(detector, Relabelling) else [detector.probe]
        probes = [shortened(probe, times) for probe in probes]
        if isinstance(detector, Relabelling):
            subject = Subject(audited, IMAGES, IMAGES)
            replace(detector, probes=probes).natural([subject], generator=generator)
        else:
            probes[0](audited, IMAGES, IMAGES, detector.contest.goals(CLASSES), generator=generator)
    return mode.asked.total(), sum(map(steps_of, probes))


def shortened(probe, times):
    if not isinstance(probe, PatchScan):
        return replace(probe, steps=2 * times)
    return replace(
        probe, **{name: [replace(stage, steps=2 * times) for stage in getattr(probe, name)] for name in STAGES}
    )


def steps_of(probe):
    if not isinstance(probe, PatchScan):
        return probe.steps
    return sum(stage.steps for name in STAGES for stage in getattr(probe, name))


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="pretended tensors of torch 2.6 draw on a real card")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_of_a_search_waits_for_the_card_once_at_most(name):
    short, few = searched(SEARCHES[name], 1)
    long, many = searched(SEARCHES[name], 2)
    assert many > few
    assert long - short <= many - few


def test_the_pretended_device_refuses_what_a_card_refuses():
    with PretendedCuda() as mode:
        there = torch.zeros(3, device=CUDA)
        assert there.device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            there + torch.zeros(3)
        assert there.cpu().device.type == "cpu"
        assert float(there.sum()) == 0
        assert mode.asked == {"cpu": 1, "__float__": 1}
