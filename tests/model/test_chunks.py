"""Where memory does not suffice for a chunk, half of it is asked for."""

import pytest
import torch
from torch import nn

from backdoor_audit.errors import ModelError
from backdoor_audit.model import chunks
from backdoor_audit.model.chunks import TooManyAtOnceError, in_chunks, is_out_of_memory
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.search.goals import goals
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.perturbations import Additive
from tests.subjects import row_images, row_reader, seeded

CPU = torch.device("cpu")
REFUSALS = (
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
)
PROBES = (
    Steering(family=Additive(), steps=4, batch_size=6, measured=20),
    PatchScan(stages=(Stage(4, 2, 4, 3, 0.3), Stage(2, 1, 4, 2, 1.0)), measured=20),
)


@pytest.fixture(autouse=True)
def nothing_refused_yet(monkeypatch):
    monkeypatch.setattr(chunks, "_halved", type(chunks._halved)())


class Cramped(nn.Module):
    """A network for at most so many images at once; ``seen`` holds how many there were each time."""

    def __init__(self, inner, most, refusal):
        super().__init__()
        self.inner, self.most, self.refusal, self.seen = inner, most, refusal, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise self.refusal
        return self.inner(images)


def cramped(most, refusal=REFUSALS[1]):
    roomy = row_reader()
    module = Cramped(roomy.module, most, refusal)
    return Classifier.wrap(module, image_shape=roomy.image_shape)


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_half_as_many_are_asked_for_from_then_on(refusal):
    asked = []

    def work(chunk):
        asked.append(len(chunk))
        if len(chunk) > 3:
            raise refusal
        return chunk * 2

    assert torch.cat(in_chunks(torch.arange(10), 8, CPU, work)).tolist() == list(range(0, 20, 2))
    assert asked == [8, 4, 2, 2, 2, 2, 2]
    asked.clear()
    assert len(in_chunks(torch.arange(5), 8, CPU, work)) == 3
    assert asked == [2, 2, 1]


def test_another_error_is_passed_on_at_once():
    asked = []

    def work(chunk):
        asked.append(len(chunk))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_chunks(torch.arange(10), 8, CPU, work)
    assert asked == [8]
    assert not is_out_of_memory(ValueError("out of memory of mine"))


def test_one_that_does_not_fit_is_told_in_a_line():
    def work(chunk):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TooManyAtOnceError, match=r"^there is not enough memory on cpu for the least .* --device=cpu$"):
        in_chunks(torch.arange(4), 4, CPU, work)


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_scores_are_those_of_a_machine_with_more_memory(refusal):
    small, images = cramped(40, refusal), row_images().images
    assert torch.equal(small.logits(images), row_reader().logits(images))
    assert max(small.module.seen) == len(images)
    small.module.seen.clear()
    small.predict(images)
    assert max(small.module.seen) <= 40


def test_a_model_that_fits_nothing_is_told_with_its_images():
    small = cramped(2)
    small.module.most = 0
    with pytest.raises(ModelError, match=r"takes more memory than there is on cpu for 1 images of 1 x 8 x 8 at once"):
        small.logits(row_images().images)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_search_finds_the_same_with_little_memory(probe):
    small, roomy = cramped(40), row_reader()
    here, there = (
        probe(subject, row_images(), row_images(seed=1), goals(8), generator=seeded()) for subject in (small, roomy)
    )
    assert max(small.module.seen) > 40
    assert torch.allclose(here.margins, there.margins, atol=1e-4)
    assert here.image_passes == there.image_passes


def test_an_inversion_finds_the_same_with_little_memory():
    small, roomy, options = cramped(24), row_reader(), TriggerInversion(steps=12, batch_size=10, extension=0.0)
    here, there = (options(subject, row_images(), classes=[2, 5], generator=seeded()) for subject in (small, roomy))
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one.trigger.mask, other.trigger.mask, atol=1e-4)
