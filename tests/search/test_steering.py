import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.search.goals import eligible, goals, losses_of, sources, targets
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steered import measure, relabelled
from backdoor_audit.search.steering import Steering, late_share
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne, AwayFrom, Scattered
from backdoor_audit.triggers.perturbations import Additive, Smooth, Stripes, Warping
from backdoor_audit.triggers.trigger import Addition, Warp
from fixtures import IMAGES, MODELS
from tests.subjects import Computed, assert_unchanged, quick, random_network, seeded, snapshot
from tests.subjects.row_readers import CLASSES, EASY, SIZE, bright_rows, reader

FAMILIES = (Additive(), Smooth(), Stripes(), Warping())
SHAPES = ((1, 8, 8), (3, 9, 12))

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__.lower())


def used(family, parameters, image_shape):
    """How much of its budget each row uses, in [0, 1] if it keeps to it; written down apart from the families."""
    _, height, width = image_shape
    if isinstance(family, Additive):
        most = parameters.square().sum(dim=(1, 2, 3)) / (height * width)
        return most.sqrt() / family.strength
    if isinstance(family, Warping):
        length = parameters.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
        return length / (family.displacement * max(height, width) / 28)
    return parameters.flatten(1).abs().amax(dim=1) / family.strength


@every_family
@given(st.integers(0, 10_000), st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(SHAPES))
@quick
def test_no_step_leaves_the_budget_and_no_stamp_leaves_the_pixel_range(family, seed, shares, image_shape):
    generator = seeded(seed)
    parameters = family.initial(3, image_shape, generator)
    images = torch.rand(3, 2, *image_shape, generator=generator)
    for share in shares:
        direction = torch.randn(parameters.shape, generator=generator) * 10 ** float(seed % 7 - 3)
        parameters = family.stepped(parameters, direction, share, image_shape)
        assert float(used(family, parameters, image_shape).max()) <= 1 + 1e-5
    stamped = family.stamp(parameters, images)
    assert stamped.shape == images.shape
    assert float(stamped.min()) >= 0
    assert float(stamped.max()) <= 1


@every_family
@pytest.mark.parametrize("image_shape", SHAPES)
def test_a_steady_direction_uses_up_the_budget_and_a_first_guess_a_tenth_at_most(family, image_shape):
    parameters = family.initial(4, image_shape, seeded(1))
    assert 0.01 < float(used(family, parameters, image_shape).max()) < 0.25
    direction = torch.randn(parameters.shape, generator=seeded(2))
    for _ in range(12):
        parameters = family.stepped(parameters, direction, 0.35, image_shape)
    assert used(family, parameters, image_shape).tolist() == pytest.approx([1.0] * 4)


@every_family
@pytest.mark.parametrize("image_shape", SHAPES)
def test_the_trigger_of_a_row_stamps_as_the_family_does(family, image_shape):
    parameters = family.initial(3, image_shape, seeded(3))
    for _ in range(3):
        parameters = family.stepped(parameters, torch.randn(parameters.shape, generator=seeded(4)), 0.5, image_shape)
    images = torch.rand(3, 4, *image_shape, generator=seeded(5))
    stamped = family.stamp(parameters, images)
    for row in range(3):
        trigger = family.trigger(parameters[row], row + 2, image_shape)
        assert isinstance(trigger, Warp if isinstance(family, Warping) else Addition)
        assert trigger.target_class == row + 2
        assert torch.allclose(trigger.stamp(images[row]), stamped[row], atol=1e-6)


def test_stripes_depend_on_the_column_alone_and_smooth_changes_on_a_coarse_grid():
    shape = (3, 8, 8)
    striped = Stripes().trigger(Stripes().initial(1, shape, seeded(6))[0], 0, shape).change
    assert torch.equal(striped, striped[:1, :1].expand(shape))
    grid = torch.zeros(1, 2, 2)
    grid[0, 0, 0] = 0.2
    slow = Smooth(grid=2).trigger(grid, 0, (1, 8, 8)).change[0]
    # bilinear weights of the first grid point, which lies between the pixels 1 and 2 of 8
    weights = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    assert torch.allclose(slow, 0.2 * weights.outer(weights), atol=1e-6)


def test_warps_of_images_twice_as_large_may_be_twice_as_long():
    control = torch.randn(1, 2, 6, 6, generator=seeded(7))
    small, large = (Warping().stepped(control, control, 1.0, (1, side, side)) for side in (28, 56))
    assert torch.allclose(large, 2 * small)
    assert float(small.square().sum(dim=1).mean().sqrt()) == pytest.approx(0.8)


def test_there_is_a_goal_for_every_class():
    assert goals(3) == (AllToOne(0), AllToOne(1), AllToOne(2))


def test_goals_say_which_images_count_and_what_is_asked_of_them():
    labels = torch.tensor([0, 2, 2])
    wanted = (*goals(3), AllToAll(3), Scattered(3))
    assert eligible(wanted, labels, labels).tolist() == [
        [False, True, True],
        [True, True, True],
        [True, False, False],
        [True, True, True],
        [True, True, True],
    ]
    asked = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [1, 0, 0], [0, 2, 2]]
    assert targets(wanted, labels.expand(5, 3)).tolist() == asked


def test_how_far_a_change_relabels_worked_by_hand():
    """Of class 0 two of three go to 1, of class 1 both to 2, of class 2 one of two to 0: three different classes."""
    before, after = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([1, 1, 0, 2, 2, 2, 0])
    together = (2 / 3 + 1 + 1 / 2) / 3
    assert relabelled(before, after, 3) == pytest.approx((together, together))
    to_one = torch.ones(7, dtype=torch.long)  # one class draws all others; its own images stay, and arrive nowhere
    assert relabelled(before, to_one, 3)[1] == pytest.approx(2 / 3)
    assert relabelled(before, to_one, 3)[0] < 0.45
    assert relabelled(before, before, 3) == (pytest.approx(0.0, abs=1e-6), 0.0)


def test_a_change_that_moves_each_class_to_another_has_the_smallest_loss():
    own = torch.tensor([[0, 0, 1, 1]])
    swapped, same, scattered = (
        losses_of(10 * nn.functional.one_hot(torch.tensor(answers), 3).float(), own, [Scattered(3)])
        for answers in ([1, 1, 0, 0], [0, 0, 1, 1], [1, 2, 0, 2])
    )
    assert swapped.shape == (1, 4)
    assert float(swapped.max()) < float(scattered.min()) < float(same.min())


def test_a_class_that_is_hardly_ever_given_is_left_by_the_images_labelled_so():
    predicted, labels = torch.tensor([0] * 9 + [1] * 2), torch.tensor([0] * 4 + [1] * 7)
    counted = eligible(sources(2), predicted, labels)
    assert counted[0].tolist() == (predicted == 0).tolist()
    assert counted[1].tolist() == (labels == 1).tolist()


def mean_reader():
    """Scores are the mean brightness of the three channels."""
    return Classifier.wrap(Computed(lambda images: images.mean(dim=(2, 3))), image_shape=(3, 2, 2))


SCORES = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.5, 0.3], [0.2, 0.3, 0.7]])  # predicted 0 1 2, margins .6 .2 .4


def by_scores(labels=(0, 1, 2)):
    return CleanSet(SCORES.view(3, 3, 1, 1).expand(3, 3, 2, 2).clone(), torch.tensor(labels))


@pytest.mark.parametrize("labels", [(0, 1, 2), (2, 2, 0)])
def test_margins_and_success_worked_by_hand_whatever_the_labels_say(labels):
    def brighter(chunk, images):
        """0.45 more in the channel of the wanted class."""
        stamped = images.clone()
        for place, row in enumerate(chunk.tolist()):
            stamped[place, :, row] += 0.45
        return stamped

    margins, success, _ = measure(
        mean_reader(), by_scores(labels), goals(3)[:3], brighter, count=64, generator=seeded()
    )
    # class 0: .55-.5 and .65-.7; class 1: .65-.8 and .75-.7; class 2: .55-.8 and .75-.5; the unit is the median margin .4
    assert margins.tolist() == pytest.approx([0, -0.125, 0], abs=1e-6)
    assert success.tolist() == [0.5, 0.5, 0.5]


def test_images_that_get_the_class_anyway_do_not_count_as_success():
    margins, success, landing = measure(
        mean_reader(), by_scores(), goals(3)[:3], lambda _chunk, images: images, count=64, generator=seeded()
    )
    assert success.tolist() == [0, 0, 0]
    assert landing[0] in (1, 2)
    assert margins[0].item() == pytest.approx((-0.4 / 0.4 - 0.5 / 0.4) / 2)


def test_leaving_a_class_worked_by_hand():
    def brighter(_chunk, images):
        """0.45 more in channel 1."""
        return images + torch.tensor([0, 0.45, 0]).view(3, 1, 1)

    margins, success, landing = measure(mean_reader(), by_scores(), sources(3), brighter, count=64, generator=seeded())
    # .65-.8 for the image of class 0, .3-.95 for that of class 1, .75-.7 for that of class 2, which goes to class 1
    assert margins.tolist() == pytest.approx([-0.375, -1.625, 0.125])
    assert success.tolist() == [0, 0, 1]
    assert landing.tolist() == [-1, -1, 1]  # none of the first two left


def test_images_that_stayed_do_not_count_where_the_others_went():
    """Of ten images of class 1, seven stay, two go to class 2 and one goes to class 0."""
    went = torch.tensor([1] * 7 + [2, 2, 0])
    model = Classifier.wrap(Computed(lambda images: images[:, :3, 0, 0]), image_shape=(3, 1, 1))
    scores = torch.eye(3)[torch.tensor([0, 2] + [1] * 10)]
    clean = CleanSet(scores.view(12, 3, 1, 1), scores.argmax(dim=1))
    stays = torch.eye(3)[went].view(1, 10, 3, 1, 1)
    _, success, landing = measure(model, clean, [AwayFrom(1)], lambda *_: stays, count=64, generator=seeded())
    assert (float(success), int(landing)) == (pytest.approx(0.3), 2)


def test_margins_are_counted_in_the_models_own_clean_margins():
    tenfold = Classifier.wrap(Computed(lambda images: 10 * images.mean(dim=(2, 3))), image_shape=(3, 2, 2))
    found = [
        measure(model, by_scores(), goals(3), lambda _chunk, images: images.flip(2), count=64, generator=seeded())[0]
        for model in (mean_reader(), tenfold)
    ]
    assert torch.allclose(*found, atol=1e-5)


CHECKED = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
STRIPED = torch.tensor([1.0, -1.0]).repeat(8, 4)
QUARTERED = torch.ones(8, 8)
QUARTERED[:4, 4:] = QUARTERED[4:, :4] = -1
EDGE = torch.zeros(8, 8)
EDGE[:, 3], EDGE[:, 2] = 1, -1
EDGED = torch.full((8, 8), 0.3)
EDGED[:, 4:] = 0.6


STEERED = {
    "additive": (Steering(family=Additive(strength=0.1)), CHECKED),
    "smooth": (Steering(family=Smooth(grid=2)), QUARTERED),
    "stripes": (Steering(family=Stripes()), STRIPED),
    "warping": (Steering(family=Warping(displacement=2.0)), EDGE),
}


@pytest.mark.parametrize("name", STEERED)
def test_a_class_with_a_weakness_for_a_family_has_by_far_the_largest_margin(name):
    steering, extra = STEERED[name]
    background = EDGED if name == "warping" else None
    opt, val = bright_rows(background=background), bright_rows(1, background)
    results = {
        weak: steering(reader(extra if weak else None), opt, val, goals(CLASSES), generator=seeded(2))
        for weak in (True, False)
    }
    margins, success = results[True].margins, results[True].success
    others = [target for target in range(CLASSES) if target != EASY]
    assert int(margins.argmax()) == EASY
    assert success[EASY] == 1.0
    assert float(margins[EASY]) > float(margins[others].max()) + 1.5
    assert float(results[False].margins[:CLASSES].max()) < float(margins[EASY]) - 1.5
    trigger = results[True].triggers[EASY]
    assert attack_success_rate(reader(extra), val.images, val.labels, trigger) == 1.0


def test_a_weakness_for_fine_checks_is_not_seen_by_families_that_cannot_draw_them():
    for name in ("smooth", "stripes"):
        opt, val = bright_rows(), bright_rows(1)
        found = [
            STEERED[name][0](reader(extra), opt, val, goals(CLASSES), generator=seeded(2)).margins[EASY]
            for extra in (CHECKED, None)
        ]
        assert float(found[0] - found[1]) < 0.3, name


def test_what_is_handed_over_is_what_was_measured():
    """Every held-out image of another class is measured, so that rates are those of the metric on the same images."""
    opt, val = bright_rows(), bright_rows(1)
    steered = Steering(family=Stripes(strength=0.3), measured=84)(
        reader(STRIPED), opt, val, goals(CLASSES), generator=seeded(3)
    )
    again = [attack_success_rate(reader(STRIPED), val.images, val.labels, found) for found in steered.triggers]
    assert steered.success[:CLASSES].tolist() == pytest.approx([float(rate) for rate in again])
    assert [found.target_class for found in steered.triggers] == list(range(CLASSES))


def small():
    """Convolutions and batch norm; the last layer is scaled so that it predicts more than one class."""
    network = random_network("small_cnn", classes=CLASSES).eval()
    last = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        scores = network(bright_rows().images)
        last.weight.mul_(100)
        last.bias.sub_(scores.mean(dim=0)).mul_(100)
    return Classifier.wrap(network, image_shape=(1, SIZE, SIZE))


PROBES = (
    *(Steering(family=family, steps=4, batch_size=8, measured=20) for family in FAMILIES),
    PatchScan(stages=(Stage(4, 2, 4, 2, 0.3), Stage(2, 1, 4, 2, 1.0)), measured=20),
)
every_probe = pytest.mark.parametrize(
    "probe", PROBES, ids=lambda probe: type(getattr(probe, "family", probe)).__name__.lower()
)


@every_probe
def test_a_probe_leaves_model_and_images_as_it_found_them_and_its_seed_alone_decides(probe):
    classifier, opt, val = small(), bright_rows(), bright_rows(1)
    before, images = snapshot(classifier.module), opt.images.clone()

    def found(seed):
        return probe(classifier, opt, val, goals(CLASSES), generator=seeded(seed))

    first = found(1)
    assert_unchanged(before, classifier.module)
    assert torch.equal(opt.images, images)
    torch.manual_seed(123)
    again, other = found(1), found(2)
    assert torch.equal(first.margins, again.margins)
    assert torch.equal(first.success, again.success)
    for one, two in zip(first.triggers[:-1], again.triggers[:-1], strict=True):
        assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())
    assert not torch.equal(first.margins, other.margins)


@every_probe
def test_how_many_images_pass_at_once_does_not_matter(probe, monkeypatch):
    classifier, opt, val = reader(CHECKED), bright_rows(), bright_rows(1)
    together = probe(classifier, opt, val, goals(CLASSES), generator=seeded(6))
    monkeypatch.setattr("backdoor_audit.search.steered._CHUNK_VALUES", {"cpu": 1})
    apart = probe(classifier, opt, val, goals(CLASSES), generator=seeded(6))
    assert torch.allclose(apart.margins, together.margins, atol=1e-3)
    assert apart.image_passes == together.image_passes


def test_image_passes_are_counted():
    """Steps with gradients: 8 goals x 5 x 8; then forward, a third of the work: 20 images measured on, 20 watched three times."""
    steered = Steering(family=Additive(), steps=5, batch_size=8, measured=20)(
        reader(), bright_rows(), bright_rows(1), goals(CLASSES), generator=seeded()
    )
    assert steered.image_passes == 8 * 5 * 8 + 8 * (20 + 3 * 20) // 3


def test_a_search_that_nobody_watches_finds_the_same_with_fewer_passes():
    images = []
    classifier = reader(CHECKED)
    classifier.module.register_forward_hook(lambda module, given, scores: images.append(len(scores)))
    steering, seen = Steering(family=Additive(), steps=5, batch_size=8, measured=20), {}
    for watched in (True, False):
        images.clear()
        steered = steering(
            classifier, bright_rows(), bright_rows(1), goals(CLASSES), generator=seeded(), watched=watched
        )
        seen[watched] = steered, sum(images)
    (full, all_images), (bare, fewer) = seen[True], seen[False]
    assert all_images - fewer == CLASSES * 3 * 20
    assert full.image_passes - bare.image_passes == CLASSES * 3 * 20 // 3
    for found, same in zip(full.triggers, bare.triggers, strict=True):
        assert torch.equal(found.change, same.change)
    assert torch.equal(full.margins, bare.margins)
    assert torch.equal(full.success, bare.success)
    assert bare.rising.isnan().all()
    assert not bare.blind.any()


@pytest.mark.parametrize("probe", [PROBES[0], PROBES[-1]], ids=["additive", "patchscan"])
def test_a_network_that_names_one_class_only_cannot_be_steered_to_it(probe):
    constant = Classifier.wrap(
        Computed(lambda images: images.mean(dim=(2, 3)) * 0 + torch.arange(3.0)), image_shape=(1, 8, 8)
    )
    with pytest.raises(DegenerateScoresError, match="nothing to steer"):
        probe(constant, bright_rows(), bright_rows(1), goals(3), generator=seeded())


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ([8.0, 4, 1], (4 - 1) / (8 - 1)),
        ([8.0, 1, 1], 0.0),
        ([8.0, 8, 1], 1.0),
        ([8.0, 1, 2], 0.0),  # rose again: nothing was left to gain
        ([8.0, 8, 8], 1.0),
        ([8.0, 9, 9], 1.0),
        ([8.0, 1, math.nan], 1.0),
        ([8.0, 1], 1.0),
    ],
)
def test_the_share_of_the_fall_that_came_late_worked_by_hand(losses, share):
    steps = torch.tensor(losses)
    assert late_share(torch.stack([steps, steps], dim=1)).tolist() == pytest.approx([share, share])


def test_a_short_search_is_still_rising_and_a_long_one_is_not():
    opt, val = bright_rows(), bright_rows(1)
    late = [
        Steering(family=Additive(strength=0.1), steps=steps)(
            reader(CHECKED), opt, val, goals(CLASSES), generator=seeded(7)
        ).rising.median()
        for steps in (2, 4, 25)
    ]
    assert late[0] > late[1] > Steering.most_rising > late[2]


@pytest.mark.parametrize("probe", [PROBES[0], PROBES[-1]], ids=["additive", "patchscan"])
def test_a_model_that_hides_its_gradients_was_not_searched(probe):
    """Rounded pixels have no slope."""
    rounded = Computed(lambda images: (10 * images[:, 0]).round().mean(dim=2))
    hidden = Classifier.wrap(rounded, image_shape=(1, SIZE, SIZE))
    assert probe(hidden, bright_rows(), bright_rows(1), goals(CLASSES), generator=seeded()).blind.all()
    assert not probe(reader(), bright_rows(), bright_rows(1), goals(CLASSES), generator=seeded()).blind.any()


def test_more_steps_steer_farther():
    opt, val = bright_rows(), bright_rows(1)
    short, full = (
        Steering(family=Additive(strength=0.1), steps=steps)(
            reader(CHECKED), opt, val, goals(CLASSES), generator=seeded(7)
        ).margins[EASY]
        for steps in (1, 25)
    )
    assert float(full) > float(short) + 0.5


def test_the_class_of_a_blended_trigger_is_steered_to_most_on_the_fixture():
    """Thirty images of each class; a clean model of the same architecture is steered to no class as far."""
    opt, val = load_clean_set(IMAGES).sample(300, seed=0).split(seed=0)
    wanted = goals(10)
    margins = {
        name: Steering(family=Additive(), steps=12, batch_size=16)(
            load_classifier(MODELS / f"{name}.safetensors"), opt, val, wanted, generator=seeded(8)
        ).margins
        for name in ("blended", "clean")
    }
    assert int(margins["blended"][:10].argmax()) == 5
    assert math.isfinite(float(margins["clean"].sum()))
    assert float(margins["blended"].max()) > float(margins["clean"].max()) + 0.5
