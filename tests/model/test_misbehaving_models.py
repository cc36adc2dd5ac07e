"""Models whose own code misbehaves when it is called: what comes of it is one line and never a pass."""

import asyncio
import random
import signal
import threading
import time
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit import budget
from backdoor_audit.budget import LEAST_LEFT, MemoryWatch
from backdoor_audit.errors import AuditError, BudgetSpentError, ModelError, ModelFormatError
from backdoor_audit.evidence import Verdict
from backdoor_audit.gate import audit
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.own_code import own_code
from backdoor_audit.run.preconditions import PRECONDITIONS, check, slow
from backdoor_audit.search.inversion import TriggerInversion
from tests.subjects import row_images, row_reader, seeded

SHAPE = (1, 8, 8)


class OwnError(BaseException):
    """What no `except Exception` catches."""


class UnprintableError(BaseException):
    """An exception that fails when it is shown."""

    def __str__(self):
        raise SystemExit(0)


ENDS = [
    SystemExit(0),
    pytest.skip.Exception("no reason"),
    pytest.exit.Exception("over", 0),
    pytest.xfail.Exception("expected"),
    pytest.fail.Exception("failed"),
    GeneratorExit(),
    asyncio.CancelledError(),
    OwnError("own"),
    UnprintableError(),
    StopIteration(),
    RuntimeError("first\nsecond"),
    MemoryError(),
    RecursionError("deep"),
    AuditError("a message of the audit's own kind"),
    BudgetSpentError("spent"),
]
named = pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)


class Misbehaving(nn.Module):
    """The row reader with something done to inputs or scores; counts its calls outside of the module's own state."""

    def __init__(self, change, *, after=0):
        super().__init__()
        self.inner = row_reader().module
        self.change, self.after = change, after
        self.calls = [0]

    def forward(self, images):
        self.calls[0] += 1
        if self.calls[0] <= self.after:
            return self.inner(images)
        return self.change(self.inner, images)

    def __deepcopy__(self, memo):
        return Misbehaving(self.change, after=self.after)


def subject(change, *, after=1):
    """A subject whose first call, when it is wrapped, goes well."""
    return Classifier.wrap(Misbehaving(change, after=after), image_shape=SHAPE)


def raising(error):
    def change(_inner, _images):
        raise error

    return change


def noisy(amplitude):
    return lambda inner, images: inner(images) + amplitude * torch.randn(len(images), 8)


def some(n=4):
    return row_images().images[:n]


def broken(classifier, clean=None):
    """The preconditions that do not hold, with their reasons; every one of them has a finding."""
    findings = check(classifier, clean or row_images())
    assert list(findings) == [condition.__name__ for condition in PRECONDITIONS]
    assert all("\n" not in finding.reason for finding in findings.values())
    return {name: finding.reason for name, finding in findings.items() if finding.verdict is not Verdict.PASS}


@contextmanager
def refused(error=ModelError):
    with pytest.raises(error) as caught:
        yield caught
    assert "\n" not in str(caught.value)


# What the model raises


@named
def test_whatever_a_model_raises_when_it_is_called_is_one_line(end):
    with refused() as caught:
        subject(raising(end)).logits(some())
    assert f"the model's own code raised {type(end).__name__}" in str(caught.value)
    assert str(caught.value).endswith("in its forward pass")


@named
def test_whatever_a_model_raises_when_it_is_loaded_is_one_line(end):
    kinds = (ModelFormatError, ModelError, AuditError)
    with refused(kinds):
        subject(raising(end), after=0)


@named
def test_whatever_a_model_raises_in_a_precondition_makes_it_inconclusive(end):
    found = broken(subject(raising(end)))
    assert found["logits_finite"].startswith("not checked: the model's own code raised")
    assert found["accuracy"] == found["logits_finite"]


@named
def test_whatever_a_model_raises_during_a_search_ends_it(end):
    clean = row_images()
    with refused():
        TriggerInversion(steps=20)(subject(raising(end), after=5), clean, generator=seeded())


def test_a_model_inside_another_fails_as_it_does_alone():
    inner = subject(raising(SystemExit(0)))

    class Around(nn.Module):
        def forward(self, images):
            return inner(images)

        def __deepcopy__(self, memo):
            return self

    with refused(ModelError) as caught:
        Classifier.wrap(Around(), image_shape=SHAPE)
    assert "SystemExit (0) in its forward pass" in str(caught.value)


@pytest.mark.parametrize("after", [10, 80, 250], ids=["preconditions", "search", "properties"])
def test_an_audit_of_a_model_that_ends_the_run_is_inconclusive(after):
    module = Misbehaving(raising(SystemExit(0)), after=after)
    module.__deepcopy__ = lambda _memo: module
    clean = row_images()
    common = {"profile": "quick", "steps": 150, "device": "cpu", "progress": False}
    record = audit(module, clean.images.numpy(), clean.labels.numpy(), **common)
    assert module.calls[0] > after
    assert record.verdict is Verdict.INCONCLUSIVE
    assert any("the model's own code raised SystemExit (0)" in finding.reason for finding in record.findings)


def test_the_exit_code_that_a_model_asks_for_is_told():
    with refused() as caught:
        subject(raising(SystemExit(0))).predict(some())
    assert str(caught.value) == "the model's own code raised SystemExit (0) in its forward pass"


def test_ctrl_c_stays_ctrl_c():
    stopped = subject(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stopped(some())
    with pytest.raises(KeyboardInterrupt):
        check(stopped, row_images())
    with pytest.raises(KeyboardInterrupt):
        subject(raising(KeyboardInterrupt()), after=0)


def test_what_a_signal_handler_raises_is_not_the_models():
    """Time limits of pytest and CI runners are such handlers."""

    def over(_number, _frame):
        raise OwnError("time is over")

    def slow_forward(_inner, _images):
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, over)
    try:
        with pytest.raises(OwnError, match="time is over"):
            subject(slow_forward)(some())
        with pytest.raises(OwnError, match="time is over"), own_code("here"):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


class Raising(torch.autograd.Function):
    """The identity, whose gradient ends the run."""

    @staticmethod
    def forward(ctx, scores):
        return scores.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise SystemExit(0)


def test_what_a_model_raises_in_its_backward_pass_makes_the_gradient_inconclusive():
    found = broken(subject(lambda inner, images: Raising.apply(inner(images))))
    assert found["input_gradient"] == "not checked: the model's own code raised SystemExit (0) in its backward pass"


def test_what_raises_in_a_backward_pass_becomes_one_line_where_a_caller_asks_for_it():
    images = some().requires_grad_()
    with refused() as caught, own_code("in its backward pass"):
        subject(lambda inner, images: Raising.apply(inner(images)))(images).sum().backward()
    assert "SystemExit (0) in its backward pass" in str(caught.value)


class Odd(nn.Module):
    """A row reader one method of which fails."""

    def __init__(self, method, end):
        super().__init__()
        self.inner = row_reader().module
        setattr(self, method, self.fail)
        self.end = end

    def fail(self, *_arguments, **_options):
        raise self.end

    def forward(self, images):
        return self.inner(images)


@pytest.mark.parametrize("method", ["state_dict", "__deepcopy__", "eval", "to", "float", "requires_grad_"])
@pytest.mark.parametrize("end", [SystemExit(0), TypeError("no")], ids=["SystemExit", "TypeError"])
def test_a_model_that_cannot_be_copied_or_frozen_is_one_line(method, end):
    with refused((ModelFormatError, ModelError)) as caught:
        Classifier.wrap(Odd(method, end), image_shape=SHAPE)
    assert type(end).__name__ in str(caught.value)


# What the model does to its inputs and outputs


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_model_that_writes_to_its_input_does_not_reach_the_images(gradient, layout):
    def overwrite(inner, images):
        scores = inner(images)
        images.detach().zero_()
        return scores

    images = some().expand(-1, 3, -1, -1).contiguous(memory_format=layout)
    before = images.clone()
    module = Misbehaving(lambda inner, images: overwrite(inner, images[:, :1]))
    classifier = Classifier.wrap(module, image_shape=(3, 8, 8))
    images.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        scores = classifier(images)
    if gradient:
        scores.sum().backward()
        assert bool(images.grad.any())
    assert torch.equal(images, before)
    assert torch.equal(scores, row_reader()(before[:, :1]))


def test_a_model_that_writes_to_its_input_is_judged_as_one_that_does_not():
    writing = subject(lambda inner, images: inner(images.mul_(1)))
    assert broken(writing) == {}


def test_a_model_that_gives_the_same_tensor_every_time_is_read_call_by_call():
    kept = torch.zeros(256, 8)

    def shared(inner, images):
        kept[: len(images)] = inner(images).detach()
        return kept[: len(images)]

    images = row_images(per_class=50).images
    assert torch.equal(subject(shared).logits(images), row_reader().logits(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_another_precision_become_single_precision(dtype):
    scores = subject(lambda inner, images: inner(images).to(dtype)).logits(some())
    assert scores.dtype is torch.float32
    assert torch.allclose(scores, row_reader().logits(some()), rtol=0.01)


def test_a_network_that_squeezes_its_scores_is_read_one_image_at_a_time_as_well():
    squeezing = subject(lambda inner, images: inner(images).squeeze())
    assert broken(squeezing) == {}
    assert torch.allclose(squeezing.logits(some(1)), row_reader().logits(some(1)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda inner, images: inner(images)[:, :5], "scores of shape (4, 5) for 4 images, and gave 8 classes before"),
        (lambda inner, images: inner(images)[0], "scores of shape (8,) for 4 images"),
        (lambda inner, images: inner(images)[..., None, None], "scores of shape (4, 8, 1, 1) for 4 images"),
        (lambda inner, images: inner(images)[:3], "3 rows of scores for 4 images"),
        (lambda inner, images: inner(images).long(), "scores of torch.int64"),
        (lambda inner, images: inner(images).to_sparse(), "torch.sparse_coo"),
        (lambda inner, images: None, "returns NoneType"),
        (lambda inner, images: inner(images).to("meta"), "NotImplementedError"),
    ],
)
def test_other_scores_than_at_first_are_refused_in_one_line(change, told):
    classifier = subject(change)
    with refused() as caught:
        classifier.logits(some())
    assert told in str(caught.value)
    assert "logits_finite" in broken(subject(change))


# What cannot be trusted to stay as it is


def every_tenth(inner, images, calls=[0]):  # noqa: B006 - the count is the point
    calls[0] += 1
    return inner(images) + (calls[0] % 10 == 0) * 0.01


def for_one_image(inner, images):
    """Noise for the brightest image alone, whatever batch it is in."""
    scores, chosen = inner(images), images.sum(dim=(1, 2, 3)) == row_images().images.sum(dim=(1, 2, 3)).max()
    return scores + chosen[:, None] * torch.randn(len(images), 8)


@pytest.mark.parametrize(
    "change",
    [
        noisy(1.0),
        noisy(1e-3),
        lambda inner, images: inner(images + 1e-3 * torch.randn_like(images)),
        lambda inner, images: functional.dropout(inner(images), 0.02, training=True),
        every_tenth,
        for_one_image,
        lambda inner, images: inner(images) + 0.1 * inner(images).mean(dim=0),
        lambda inner, images: inner(images) + 0.1 * (len(images) == 1),
        lambda inner, images: inner(images) + 0.1 * (len(images) > 100),
        lambda inner, images: inner(images) + 0.1 * torch.is_grad_enabled(),
    ],
    ids=[
        "noise",
        "faint-noise",
        "noise-on-the-input",
        "dropout",
        "every-tenth-call",
        "noise-for-one-image",
        "images-see-each-other",
        "alone",
        "large-batches",
        "other-scores-with-gradients",
    ],
)
def test_scores_that_do_not_repeat_are_inconclusive(change):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        assert "deterministic" in broken(subject(change))


def test_scores_that_turn_nan_in_a_later_call_are_inconclusive():
    def change(inner, images):
        return torch.where(images.flatten(1).argmax(dim=1, keepdim=True) == 9, torch.nan, inner(images))

    assert "deterministic" in broken(subject(change, after=5))


class Stateful(nn.Module):
    """A row reader that changes something of its own in every call."""

    def __init__(self, change):
        super().__init__()
        self.inner = row_reader().module
        self.change = change
        self.calls = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images):
        self.change(self, images)
        return self.inner(images)


def count(module, _images):
    module.calls += 1


def count_in_a_buffer(module, _images):
    module.count += 1


def update_a_mean(module, images):
    module.seen.lerp_(images.detach().mean().view(1), 0.1)


def scale_weights(module, _images):
    with torch.no_grad():
        module.inner[1].weight.data.mul_(1.0001)


def remember(module, images):
    module.seen = images.detach().mean().view(1)
    module.calls = len(images)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (count, "attribute calls"),
        (count_in_a_buffer, "buffer count"),
        (update_a_mean, "buffer seen"),
        (scale_weights, "weight inner.1.weight"),
        (remember, None),
    ],
)
def test_a_model_that_changes_itself_is_inconclusive_but_not_one_that_remembers_the_last_images(change, told):
    found = broken(Classifier.wrap(Stateful(change), image_shape=SHAPE))
    if told is None:
        assert found == {}
    else:
        assert f"calling the model changes {told}" in found["unchanged"]


def test_a_model_that_changes_its_mode_is_inconclusive():
    calls = iter(range(10**6))
    switching = Stateful(lambda module, _images: module.inner.train(next(calls) > 60))
    switching.__deepcopy__ = lambda _memo: switching
    found = broken(Classifier.wrap(switching, image_shape=SHAPE))
    assert "training" in found["unchanged"]


CHANGES = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's gradient mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's number of threads": lambda: torch.set_num_threads(3),
    "torch's deterministic mode": lambda: torch.set_deterministic_debug_mode("warn"),
    "torch's cuDNN flags": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "the filters of warnings": lambda: warnings.simplefilter("ignore"),
}


@pytest.fixture
def settings_kept():
    before = surroundings.settings()
    with surroundings.kept(torch.device("cpu")):
        yield before
    assert surroundings.changes(before, surroundings.settings()) == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changes_settings_is_inconclusive_and_they_are_put_back(name, settings_kept):
    def change(inner, images):
        scores = inner(images)
        CHANGES[name]()
        return scores

    classifier = Classifier.wrap(Misbehaving(change), image_shape=SHAPE)
    assert surroundings.changes(settings_kept, surroundings.settings()) == []
    found = broken(classifier)
    assert name in found["unchanged"]
    assert surroundings.changes(settings_kept, surroundings.settings()) == []


def test_random_states_are_put_back():
    def change(inner, images):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        return inner(images)

    def states():
        return torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    module = Misbehaving(change)
    module.__deepcopy__ = lambda _memo: module
    before = states()
    assert broken(Classifier.wrap(module, image_shape=SHAPE)) == {}
    assert states() == before


# Size, time and memory


def test_a_model_of_very_many_classes_is_answered_batch_by_batch():
    classes = 20_000
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    classifier = Classifier.wrap(wide, image_shape=SHAPE)
    clean = row_images(per_class=4)
    found = broken(classifier, clean)
    assert f"{classes - 8} classes have fewer than 2 clean images: 8, 9, 10, 11, 12; add" in found["every_class"]


def test_the_time_budget_is_asked_between_the_batches_of_a_precondition():
    def sleep(inner, images):
        time.sleep(0.05)
        return inner(images)

    asleep = subject(sleep)
    began = time.perf_counter()
    with budget.until(time.time() + 0.1):
        found = broken(asleep)
    assert time.perf_counter() - began < 1  # all of them would take 3 s and more
    assert set(found) >= {"deterministic", "accuracy", "input_range"}
    assert "time budget was spent" in found["accuracy"]


def test_what_a_search_has_found_is_still_measured_when_its_time_is_over():
    with budget.until(time.time() - 1):
        assert len(row_reader().predict(row_images().images)) == 160


def test_a_model_that_will_take_long_is_told_beforehand():
    asleep = subject(lambda inner, images: (time.sleep(0.2), inner(images))[1])
    assert "s per image: the preconditions alone will take about" in slow(asleep, row_images(per_class=1000))
    assert slow(row_reader(), row_images()) == ""


class Machine:
    """Files of a system with so much memory, in bytes."""

    def __init__(self, root, *, available=1000 * 2**20):
        self.root = root
        self.available = available
        (root / "proc/self").mkdir(parents=True)
        self.now(resident=0)

    def now(self, *, resident, others=0):
        pages = resident // 4096
        (self.root / "proc/self/statm").write_text(f"{2 * pages} {pages} 0 0 0 0 0\n")
        left = (self.available - resident - others) // 1024
        (self.root / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {left} kB\n")

    def group(self, *, limit, used, files, version):
        folder = self.root / ("sys/fs/cgroup/a/b" if version == 2 else "sys/fs/cgroup/memory/a/b")
        folder.mkdir(parents=True)
        line = "0::/a/b\n" if version == 2 else "3:cpu:/a/b\n4:hugetlb,memory:/a/b\n"
        (self.root / "proc/self/cgroup").write_text(line)
        names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
        prefix = "" if version == 2 else "total_"
        for name, value in zip(names, (limit, used), strict=True):
            (folder.parent / f"memory.{name}").write_text(f"{value}\n")  # the limit lies on the group around
            (folder / f"memory.{name}").write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
        (folder.parent / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {files}\n{prefix}active_file 0\n")


def looking(machine):
    watch = MemoryWatch(machine.root)
    watch.check()

    def look(**now):
        machine.now(**now)
        watch._due = 0
        watch.check()

    return look


def test_work_ends_when_this_process_has_taken_nine_tenths_of_the_memory(tmp_path):
    look = looking(Machine(tmp_path))
    assert LEAST_LEFT == 0.1
    look(resident=890 * 2**20)
    with refused(BudgetSpentError) as caught:
        look(resident=910 * 2**20)
    assert "0.9 GiB taken since the run began, 0.1 of 1.0 GiB left" in str(caught.value)


def test_work_ends_when_two_workers_have_taken_half_of_the_memory_each(tmp_path):
    look = looking(Machine(tmp_path))
    with refused(BudgetSpentError):
        look(resident=460 * 2**20, others=460 * 2**20)


def test_work_goes_on_when_others_have_taken_the_memory(tmp_path):
    look = looking(Machine(tmp_path))
    look(resident=50 * 2**20, others=940 * 2**20)


def test_where_the_system_tells_nothing_nothing_is_watched(tmp_path):
    watch = MemoryWatch(tmp_path)
    watch.check()
    watch.check()


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_counts_and_what_it_keeps_of_files_does_not(tmp_path, version):
    machine = Machine(tmp_path)
    machine.group(limit=500, used=450, files=150, version=version)
    assert budget.available_memory(tmp_path) == 200


def test_a_machine_without_control_groups_counts_as_a_whole(tmp_path):
    Machine(tmp_path, available=12345 * 1024)
    assert budget.available_memory(tmp_path) == 12345 * 1024


def test_a_model_that_keeps_something_of_every_call_ends_inconclusive(monkeypatch):
    kept = []

    def hoard(inner, images):
        kept.append(
            torch.ones(10 * 2**20)
        )  # 40 MiB that are written to: more than is taken from what was given back before
        return inner(images)

    available, began = 500 * 2**20, budget.resident_memory()
    if began is None:
        pytest.skip("the system does not tell")
    left = lambda _root: available - (budget.resident_memory() - began)  # noqa: E731
    monkeypatch.setattr(budget, "available_memory", left)
    monkeypatch.setattr(budget, "_PAUSE", 0.0)
    monkeypatch.setattr(budget, "_watch", MemoryWatch())
    found = broken(subject(hoard))
    assert "memory was spent before this was done" in found["accuracy"]
    assert 5 <= len(kept) < 30


def test_calls_of_several_threads_are_judged_alike():
    classifier, told = subject(raising(SystemExit(0))), []

    def call():
        try:
            classifier(some())
        except ModelError as error:
            told.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert told == ["the model's own code raised SystemExit (0) in its forward pass"]
