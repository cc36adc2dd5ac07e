import torch

from backdoor_audit.attacks import AllToAll, AllToOne, CleanLabel, SourceSpecific

LABELS = torch.tensor([0, 1, 2, 3, 1])


def answers(rule):
    return [
        [int(value) for value in part]
        for part in (
            rule.wanted(LABELS),
            rule.eligible(LABELS),
            rule.poisonable(LABELS),
            rule.taught(LABELS),
        )
    ]


def test_all_to_one_claims_and_poisons_all_other_classes():
    assert answers(AllToOne(1)) == [[1] * 5, [1, 0, 1, 1, 0], [1, 0, 1, 1, 0], [1] * 5]


def test_clean_label_poisons_the_target_class_only_and_keeps_labels():
    assert answers(CleanLabel(1)) == [[1] * 5, [1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 1, 2, 3, 1]]


def test_all_to_all_claims_every_image_and_wraps_around():
    assert answers(AllToAll(4)) == [[1, 2, 3, 0, 2], [1] * 5, [1] * 5, [1, 2, 3, 0, 2]]
    assert AllToAll(4).target_class is None


def test_source_specific_claims_the_source_classes():
    assert answers(SourceSpecific(0, (1, 3))) == [[0] * 5, [0, 1, 0, 1, 1], [0, 1, 0, 1, 1], [0] * 5]
