from dataclasses import replace

import numpy as np
import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Verdict
from backdoor_audit.run.preconditions import check, class_order, logits_shape, unmet
from tests.subjects import row_images, row_reader

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx")


def told(clean, classes=12):
    found = class_order(row_reader(classes=classes, size=12), clean, 0.0)
    assert found.verdict is Verdict.INCONCLUSIVE
    return found.reason


def images(labels_of, classes=12, names=()):
    """The row reader's images under other labels; a class that gets None is absent."""
    clean = row_images(classes=classes, size=12)
    labels = [labels_of(label) for label in clean.labels.tolist()]
    kept = [index for index, label in enumerate(labels) if label is not None]
    return CleanSet(clean.images[kept], torch.tensor([labels[index] for index in kept]), names)


def test_the_right_order_passes():
    assert class_order(row_reader(classes=12, size=12), images(lambda k: k, names=NAMES), 0.0).verdict is Verdict.PASS


def test_numbers_that_the_model_has_in_the_order_of_texts_are_recognised():
    text = sorted(range(12), key=str)  # the model's output k is the folder text[k]
    clean = images(lambda output: text[output])
    assert "pass --audit-class-order=text, the order of torchvision's ImageFolder" in told(clean)
    findings = check(row_reader(classes=12, size=12), clean)
    assert "another order of the classes gives clean accuracy" in unmet(list(findings.values()))


def test_texts_that_the_model_has_in_the_order_of_numbers_are_recognised():
    text = sorted(range(12), key=str)
    clean = images(text.index, names=tuple(map(str, text)))
    assert "pass --audit-class-order=number" in told(clean)


def test_two_swapped_classes_are_named_with_the_names_that_mend_it():
    swapped = {2: 7, 7: 2}
    reason = told(images(lambda k: swapped.get(k, k), names=NAMES))
    assert "label 2 (cat) looks like class 7 (hen) of the model" in reason
    assert "label 7 (hen) looks like class 2 (cat) of the model" in reason
    assert "pass --audit-class-names=ant,bee,hen,dog,emu,fox,gnu,cat,ibis,jay,kiwi,lynx" in reason


def test_names_are_spelt_as_a_shell_reads_them():
    spaced = tuple(name.replace("bee", "bumble bee") for name in NAMES)
    reason = told(images(lambda k: {2: 7, 7: 2}.get(k, k), names=spaced))
    assert "pass --audit-class-names='ant,bumble bee,hen,dog,emu,fox,gnu,cat,ibis,jay,kiwi,lynx'" in reason


def test_an_absent_class_that_shifts_the_labels_after_it_is_told():
    reason = told(images(lambda k: None if k == 8 else k - (k > 8), names=tuple(n for n in NAMES if n != "ibis")))
    assert "label 8 (jay) looks like class 9 (kiwi) of the model" in reason
    assert "from 8 (jay) on every label is one too low: a class seems to be absent before it" in reason


def test_any_other_order_without_names_is_told_in_pairs():
    order = np.random.default_rng(3).permutation(12).tolist()
    reason = told(images(lambda k: order[k]))
    assert reason.count("looks like class") == 5
    assert "more; correct the labels, or pass --audit-class-names with the names of all classes" in reason


@pytest.mark.parametrize("first", [0, 1])
def test_labels_that_begin_at_one_are_told_with_the_options_that_mend_it(first):
    clean = row_images(classes=8)
    found = logits_shape(row_reader(), replace(clean, labels=clean.labels + first), 0.0)
    assert (found.verdict is Verdict.INCONCLUSIVE) == bool(first)
    assert ("labels seem to begin at 1: pass --audit-class-order=number" in found.reason) == bool(first)
