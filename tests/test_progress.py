"""Counting what goes through networks, piece by piece."""

import pytest
import torch

from backdoor_audit import progress
from tests.subjects import by_brightness, grey_images


def test_passes_belong_to_the_innermost_piece_and_forward_alone_counts_a_third():
    meter, classifier, images = progress.Meter(), by_brightness(), grey_images([0.1, 0.5, 0.9])
    with progress.watched_by(meter):
        with progress.piece("outer"):
            classifier(images.clone().requires_grad_())
            with progress.piece("inner"):
                classifier.logits(images)
            classifier(images.clone().requires_grad_())
        classifier.logits(images)
    assert meter.passes == {"outer": 6, "inner": pytest.approx(1), "": pytest.approx(1)}
    assert meter.finished == {"outer", "inner"}
    assert meter.piece == ""


def test_a_piece_that_breaks_is_over():
    meter = progress.Meter()
    with progress.watched_by(meter), pytest.raises(ZeroDivisionError), progress.piece("odd"):
        raise ZeroDivisionError
    assert meter.finished == {"odd"}


def test_whoever_watches_is_told_at_every_pass_and_at_both_ends_of_a_piece():
    told = []
    meter = progress.Meter(tell=lambda seen: told.append((seen.piece, dict(seen.passes))))
    with progress.watched_by(meter), progress.piece("one"), torch.no_grad():
        by_brightness()(grey_images([0.1] * 3))
    assert [entry for entry in told if entry[0]] == [("one", {}), ("one", {"one": pytest.approx(1)})]


def test_a_piece_says_how_often_it_was_begun_again():
    meter = progress.Meter()
    with progress.watched_by(meter), progress.piece("one"):
        progress.again()
        progress.again()
        with progress.piece("two"):
            progress.again()
    assert meter.again == {"one": 2, "two": 1}


def test_nobody_counts_where_nobody_watches():
    meter = progress.Meter()
    with progress.watched_by(meter):
        pass
    with progress.piece("one"):
        by_brightness().logits(grey_images([0.1]))
        progress.again()
    assert meter.passes == meter.again == {}
