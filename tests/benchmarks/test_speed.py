"""The table of what searches cost: a subject that can be searched, a measurement, and the figures of others."""

import torch

from backdoor_audit.detectors import DETECTORS
from benchmarks import speed


def test_the_classifier_knows_every_kind_of_image():
    looked = speed.subject(100, 28)
    assert looked.classifier.num_classes == 100
    assert (looked.classifier.predict(looked.held_out.images) == looked.held_out.labels).float().mean() > 0.95
    assert not torch.equal(looked.search_set.images, looked.held_out.images)


def test_a_measurement_has_what_the_table_shows():
    few = speed.measured("smooth", 10, 28, 0.04)
    many = {**few, "classes": 100, "passes": 2 * few["passes"]}
    line = speed.table([few, many]).splitlines()[-1]
    assert f"| {2 * few['passes']:,} | 2.0 |" in line
    assert few["peak_mb"] > 0
    assert few["passes"] >= few["announced"] > 0


def test_less_effort_is_fewer_steps_of_every_detector():
    for detector in DETECTORS:
        if not detector.builds_on:
            less = speed.with_effort(detector, 0.5)
            assert less.cost((3, 32, 32), 10, 500).passes < detector.cost((3, 32, 32), 10, 500).passes
            assert speed.with_effort(detector, 1) == detector


def test_others_go_over_their_training_images_once_an_epoch_for_every_class():
    told = speed.others()
    assert "| BackdoorBench, Neural Cleanse | 40 M | 135 M | 400 M |" in told  # 80 * 50,000 * 10
    assert "| TrojanZoo, Neural Cleanse | 5 M | 17 M | 50 M |" in told
