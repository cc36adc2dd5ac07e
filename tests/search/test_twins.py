import dataclasses
import math

import pytest
import torch
from torch import nn

import backdoor_audit.search.twin_recipe as module_under_test
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.errors import OptionError
from backdoor_audit.model import training
from backdoor_audit.model.anew import Likeness, products_per_image, with_new_weights
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.metrics import Rate, clean_accuracy
from backdoor_audit.search import twin_recipe
from backdoor_audit.search.augmentation import mixed_up, moved
from backdoor_audit.search.twin_recipe import OWN_ARCHITECTURE, TwinRecipe, _stratified
from backdoor_audit.search.twins import OWN, Twins, _Shrinking, at_size, seen_size
from backdoor_audit.store import Store
from fixtures import IMAGES
from tests.subjects import COLOUR_SHAPE, COLOURS, colour_images, random_network, seeded

TINY = TwinRecipe(width=8, epochs=50, shift=1, least_images=40)
ONE = dataclasses.replace(TINY, architectures=("small_cnn",))


def trained(recipe=ONE, clean=None, *, seed=1, num_classes=COLOURS, **options):
    clean = colour_images() if clean is None else clean
    options = {"mean": (0.2,), "std": (0.3,), "device": "cpu", **options}
    return recipe(clean, num_classes=num_classes, generator=seeded(seed), **options)


def weights(twins):
    return [tensor for twin in twins.classifiers for tensor in twin.module.state_dict().values()]


def large_colour_images(height=48, width=40):
    """Colour images enlarged without smoothing."""
    clean = colour_images()
    return CleanSet(nn.functional.interpolate(clean.images, size=(height, width)), clean.labels)


@pytest.fixture(scope="module")
def tiny():
    return trained(TINY)


@pytest.fixture(scope="module")
def large():
    return trained(clean=large_colour_images())


def test_every_network_of_the_recipe_learns_the_classes(tiny):
    unseen = colour_images(per_class=20, seed=9)
    assert tiny.reason == ""
    assert tiny.seconds > 0
    assert [twin.architecture for twin in tiny.classifiers] == ["small_vgg", "small_cnn", "small_resnet"]
    for twin in tiny.classifiers:
        assert (twin.image_shape, twin.num_classes) == (COLOUR_SHAPE, COLOURS)
        assert clean_accuracy(twin, unseen.images, unseen.labels) > 0.9
        assert not any(part.training for part in twin.module.modules())
        assert not any(parameter.requires_grad for parameter in twin.module.parameters())


def test_each_twin_is_measured_on_images_it_did_not_train_on_and_each_leaves_out_others(monkeypatch):
    """What `fit` gets is recorded; ten images a class make ten folds of one image a class."""
    clean, given = colour_images(), []
    fit = module_under_test.fit

    def recording(learner, images, labels, **options):
        given.append((images, labels))
        fit(learner, images, labels, **options)

    monkeypatch.setattr(module_under_test, "fit", recording)
    twins = trained(TINY, clean)
    seen_by = torch.stack(
        [(clean.images[:, None] == images[None]).flatten(2).all(dim=2).any(dim=1) for images, _ in given]
    )
    assert (~seen_by).sum(dim=1).tolist() == [COLOURS] * 3
    assert int((~seen_by).sum(dim=0).max()) == 1
    for twin, rate, seen, (_, labels) in zip(twins.classifiers, twins.accuracies, seen_by, given, strict=True):
        assert clean.labels[~seen].tolist() == list(range(COLOURS))
        assert torch.equal(labels, clean.labels[seen])
        own = clean_accuracy(twin, clean.images[~seen], clean.labels[~seen])
        assert (rate.hits, rate.n) == (own.hits, COLOURS)


def test_folds_differ_by_one_image_at_most_in_every_class_and_overall():
    labels = torch.tensor([0] * 23 + [1] * 5 + [2] * 14)[torch.randperm(42, generator=seeded())]
    fold = _stratified(labels, 10, seeded(3))
    assert sorted(fold.bincount(minlength=10).tolist()) == [4] * 8 + [5] * 2
    for label, allowed in ((0, {2, 3}), (1, {0, 1}), (2, {1, 2})):
        assert set(fold[labels == label].bincount(minlength=10).tolist()) == allowed
    assert not torch.equal(fold, _stratified(labels, 10, seeded(4)))


def test_the_seed_alone_decides_the_twins_and_the_global_random_state_is_left_alone(tiny):
    """Layers of torch and dropout both draw from the global state."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = trained(TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [rate.hits for rate in again.accuracies] == [rate.hits for rate in tiny.accuracies]
    pairs = list(zip(weights(tiny), weights(again), strict=True))
    assert pairs
    assert all(torch.equal(first, second) for first, second in pairs)
    first, other = weights(trained(seed=1)), weights(trained(seed=2))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("low_precision", [True, False])
def test_training_steps_run_in_bfloat16_only_where_that_is_asked_for_and_faster(monkeypatch, low_precision):
    monkeypatch.setattr(
        training, "autocast", lambda device, _: torch.autocast(device.type, dtype=torch.bfloat16, enabled=True)
    )
    clean, precisions = colour_images(), set()
    learner = Classifier.wrap(
        random_network("small_cnn", image_shape=COLOUR_SHAPE, classes=8), image_shape=COLOUR_SHAPE
    )
    with hooked(learner.module.features[0][0], lambda _module, _inputs, maps: precisions.add(maps.dtype)):
        training.fit(
            learner,
            clean.images,
            clean.labels,
            epochs=2,
            learning_rate=0.1,
            generator=seeded(),
            low_precision=low_precision,
        )
    assert precisions == {torch.bfloat16 if low_precision else torch.float32}
    assert {parameter.dtype for parameter in learner.module.parameters()} == {torch.float32}


def test_training_leaves_the_clean_images_alone():
    clean = colour_images()
    before = clean.fingerprint
    trained(dataclasses.replace(ONE, epochs=1), clean)
    assert clean.fingerprint == before


def test_twins_come_back_from_the_store_with_the_same_logits_and_are_not_trained_again(tiny, tmp_path):
    clean, calls = colour_images(), []
    for _ in range(2):
        found, _ = Store(tmp_path).recall(
            {"recipe": repr(TINY)}, lambda: calls.append(1) or tiny, pack=Twins.pack, unpack=Twins.unpack
        )
        assert found.accuracies == tiny.accuracies
        assert [(rate.hits, rate.n) for rate in found.accuracies] == [(rate.hits, rate.n) for rate in tiny.accuracies]
        assert (found.reason, found.seconds) == (tiny.reason, tiny.seconds)
        for twin, original in zip(found.classifiers, tiny.classifiers, strict=True):
            assert (twin.architecture, twin.mean, twin.std) == (original.architecture, original.mean, original.std)
            assert torch.equal(twin.logits(clean.images), original.logits(clean.images))
    assert calls == [1]


def test_a_refusal_comes_back_from_the_store(tmp_path):
    refused = Twins((), (Rate(3, 10),), "too few", 2.0)
    found, _ = Store(tmp_path).recall({}, lambda: refused, pack=Twins.pack, unpack=Twins.unpack)
    assert (found.classifiers, found.accuracies, found.reason, found.seconds) == ((), (Rate(3, 10),), "too few", 2.0)


def test_a_refusal_has_nothing_to_prove():
    """A file made for a model whose own twins learned too little ended the run that used it in a traceback."""
    refused = Twins((), (Rate(3, 10),), "too few", 2.0)
    assert refused.proven(CleanSet.of(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))) is refused


@pytest.mark.parametrize(
    ("image_shape", "seen"),
    [
        ((1, 28, 28), (28, 28)),
        ((3, 32, 20), (32, 20)),
        ((3, 224, 224), (32, 32)),
        ((3, 48, 40), (32, 27)),
        ((3, 10, 320), (4, 32)),
    ],
)
def test_only_sides_above_32_px_are_shrunk_and_proportions_are_kept(image_shape, seen):
    assert seen_size(image_shape) == seen


def test_a_twin_of_larger_images_takes_them_at_full_size_and_shrinks_them_inside(large, tmp_path):
    clean = large_colour_images()
    (twin,) = large.classifiers
    assert twin.image_shape == (COLOUR_SHAPE[0], 48, 40)
    assert large.accuracies[0] > 0.8
    assert clean_accuracy(twin, clean.images, clean.labels) > 0.9
    sizes = []
    handle = twin.module.network.features[0].register_forward_pre_hook(
        lambda _, arguments: sizes.append(arguments[0].shape[2:])
    )
    images = clean.images[:3].clone().requires_grad_(True)
    twin(images).square().sum().backward()
    handle.remove()
    assert sizes == [(32, 27)]
    assert images.grad.shape == images.shape
    assert bool((images.grad.flatten(1).abs().sum(dim=1) > 0).all())
    found, _ = Store(tmp_path).recall({}, lambda: large, pack=Twins.pack, unpack=Twins.unpack)
    assert torch.equal(found.classifiers[0].logits(clean.images), twin.logits(clean.images))


def test_a_twin_of_larger_images_averages_over_pixels_instead_of_skipping_them(large):
    """White at the first and fourth of four columns, which are one of the twin's: the two between alone would be black."""
    (twin,) = large.classifiers
    shape = (COLOUR_SHAPE[0], 128, 128)
    stripes = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(32).expand(1, *shape)
    reader = Classifier.wrap(_Shrinking(twin.module.network, (32, 32)), image_shape=shape)
    grey = torch.full((1, *shape), 0.5)
    inner = at_size(stripes, (32, 32))[..., 1:-1]
    assert torch.allclose(inner, torch.tensor(0.5), atol=1e-5)
    near = (reader.logits(stripes) - reader.logits(grey)).abs().max()  # the outermost columns differ a little
    assert near < 0.1 * (reader.logits(torch.zeros_like(grey)) - reader.logits(grey)).abs().max()


@pytest.mark.parametrize(
    ("change", "clean", "num_classes", "reason"),
    [
        ({"least_images": 81}, colour_images(), COLOURS, "at least 81 clean images, got 80"),
        ({"least_per_class": 11}, colour_images(), COLOURS, "at least 11 images of every class; 8 of 8 have fewer"),
        ({}, colour_images(), COLOURS + 1, "1 of 9 have fewer: class 8 has 0"),
        ({}, colour_images(), COLOURS - 1, "labels below 7, the classes that the model scores; got 7"),
        ({}, CleanSet(torch.rand(80, 1, 3, 9), torch.arange(80) % 8), COLOURS, "at least 4 px a side, got 3x9"),
    ],
)
def test_images_that_no_twin_can_be_trained_on_are_a_reason(change, clean, num_classes, reason):
    twins = trained(dataclasses.replace(TINY, **change), clean, num_classes=num_classes)
    assert reason in twins.reason
    assert (twins.classifiers, twins.accuracies) == ((), ())


def test_twins_that_learn_nothing_are_a_reason():
    """Labels that have nothing to do with the images."""
    clean = colour_images(per_class=25)
    shuffled = CleanSet(clean.images, clean.labels[torch.randperm(len(clean), generator=seeded(7))])
    twins = trained(TINY, shuffled)
    assert twins.reason.startswith("tensors: reference twins learned too little from 200 images: ")
    assert twins.classifiers == ()
    assert len(twins.accuracies) == 3
    assert all(rate.n == 20 for rate in twins.accuracies)


def test_a_twin_whose_training_diverges_is_a_reason():
    twins = trained(dataclasses.replace(ONE, learning_rate=1e30))
    assert "the small_cnn twin cannot be used: " in twins.reason
    assert twins.classifiers == ()


@pytest.mark.parametrize(
    ("counts", "hits", "n", "enough"),
    [
        ([10] * 10, 324, 1000, False),  # 0.1 + 0.9 / 4 = 0.325
        ([10] * 10, 326, 1000, True),
        ([50, 50], 62, 100, False),  # 0.5 + 0.5 / 4 = 0.625
        ([50, 50], 63, 100, True),
        ([50, 50], 10, 15, False),  # two in three, but of 15 images: luck
        ([80, 20], 82, 100, False),  # what the commonest class alone gives, and a little
        ([80, 20], 95, 100, True),
        ([10] * 10, 0, 0, False),
    ],
)
def test_twins_must_be_clearly_better_than_the_commonest_class(counts, hits, n, enough):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    clean = CleanSet(torch.zeros(len(labels), 1, 4, 4), labels)
    half = hits // 2
    reason = TwinRecipe()._too_little(clean, [Rate(half, n // 2), Rate(hits - half, n - n // 2)])
    assert (reason == "") is enough


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ("small_cnn", "alexnet")},
            r"architectures: \['alexnet'\] cannot be built; known: small_cnn",
        ),
        ({"architectures": ()}, "architectures: none cannot be built"),
        ({"held_out": 0.4}, "held_out must lie above 0 and be at most 0.333 for 3 twins, got 0.4"),
        ({"held_out": 0.0}, "held_out must lie above 0"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        trained(dataclasses.replace(TINY, **change))


def test_every_image_moves_by_itself_and_black_comes_in():
    images = torch.zeros(200, 1, 5, 7)
    images[:, :, 2, 3] = 1
    found = moved(images, 1, seeded())
    assert found.shape == images.shape
    assert bool((found.flatten(1).sum(dim=1) == 1).all())
    places = {tuple(image[0].nonzero()[0].tolist()) for image in found}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}


def test_what_comes_into_a_colour_image_is_its_nearest_pixel_and_channels_move_together():
    levels = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
    images = levels.expand(50, 3, 4, 4).clone()
    assert torch.equal(moved(images, 2, seeded()), images)
    assert float(moved(images[:, :1], 2, seeded()).min()) == 0
    images[:, :, 1, 1] = 1
    found = moved(images, 1, seeded()) == 1
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])


def test_mixing_gives_every_class_the_share_of_the_image_that_it_has():
    """Flat images whose brightness names their class: mean brightness is that of the labels, whichever way they are mixed."""
    labels = torch.arange(4).repeat(8)
    brightness = torch.tensor([0.0, 0.1, 0.4, 1.0])
    images = brightness[labels].view(-1, 1, 1, 1).expand(-1, 1, 6, 5).clone()
    wanted = nn.functional.one_hot(labels, 4).float()
    generator, pasted, kept = seeded(), 0, []
    for _ in range(60):
        mixed, probabilities = mixed_up(images, wanted, generator)
        assert torch.allclose(probabilities.sum(dim=1), torch.ones(32))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), probabilities @ brightness, atol=1e-5)
        pasted += bool((mixed.flatten(1).amax(dim=1) - mixed.flatten(1).amin(dim=1)).max() > 0.05)
        kept.append(float(probabilities[torch.arange(32), labels].amin()))
    assert 15 < pasted < 45  # a coin decides
    assert min(kept) < 0.15
    assert max(kept) > 0.85
    assert torch.equal(images.amax(dim=(1, 2, 3)), brightness[labels])  # the batch itself is as it was


def test_images_are_mixed_in_the_first_85_percent_of_the_batches_only():
    recipe = TwinRecipe(epochs=10, shift=0)
    on_batch = recipe._on_batch(8, 128, seeded(3))  # two batches an epoch
    images, labels = torch.rand(64, 1, 40, 40, generator=seeded()), torch.arange(64) % 8
    plain = [torch.equal(on_batch(images, labels)[0], images) for _ in range(20)]
    assert plain == [False] * 17 + [True] * 3
    wanted = on_batch(images, labels)[1]
    assert torch.equal(wanted, nn.functional.one_hot(labels, 8).float())


def test_half_of_the_images_are_mirrored_where_the_recipe_says_so():
    images = torch.zeros(400, 3, 4, 6)
    images[..., :3] = 1
    labels = torch.zeros(400, dtype=torch.long)
    mirrored = TwinRecipe(epochs=0, shift=0, flip=True)._on_batch(2, 400, seeded(1))(images, labels)[0]
    untouched = TwinRecipe(epochs=0, shift=0)._on_batch(2, 400, seeded(1))(images, labels)[0]
    turned = mirrored[:, 0, 0, 0] == 0
    assert 160 < int(turned.sum()) < 240
    assert torch.equal(mirrored[turned], images[turned].flip(3))
    assert torch.equal(mirrored[~turned], images[~turned])
    assert torch.equal(untouched, images)


def test_a_short_training_on_real_images_is_far_above_chance():
    """800 of the clothes, one narrow network, a sixth of the epochs; measured on the 200 it never saw: 0.1 is chance."""
    known, unseen = load_clean_set(IMAGES).split(seed=0, share=0.8)
    recipe = TwinRecipe(architectures=("small_cnn",), width=8, epochs=10)
    twins = recipe(known, num_classes=10, mean=(0.286,), std=(0.353,), device="cpu", generator=seeded(0))
    assert twins.reason == ""
    assert twins.accuracies[0].n == 80
    assert clean_accuracy(twins.classifiers[0], unseen.images, unseen.labels) > 0.5


def audited(seed=0, *, normalised=False, **options):
    """A small network with random weights, as if somebody had trained it."""
    layers = [nn.Conv2d(COLOUR_SHAPE[0], 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()]
    kept = [layer for layer in layers if normalised or not isinstance(layer, nn.BatchNorm2d)]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = options.pop("module", None) or nn.Sequential(*kept, nn.Linear(12 * 4 * 4, COLOURS))
    return Classifier.wrap(module, image_shape=COLOUR_SHAPE, **options)


OWN_TINY = dataclasses.replace(
    OWN_ARCHITECTURE, architectures=(OWN, OWN), epochs=60, learning_rate=5e-3, shift=1, least_images=40
)


def test_twins_of_the_audited_architecture_learn_the_classes_and_share_nothing_with_its_weights():
    like = audited()
    twins = trained(OWN_TINY, like=like)
    assert (twins.reason, twins.kind, len(twins.classifiers)) == ("", "plain_colour", 2)
    unseen = colour_images(per_class=20, seed=9)
    for twin in twins.classifiers:
        assert clean_accuracy(twin, unseen.images, unseen.labels) > 0.8
        assert [type(layer) for layer in twin.module] == [type(layer) for layer in like.module]
        assert not torch.equal(twin.module[0].weight, like.module[0].weight)
    assert twins.described.startswith("twins: the audited architecture with new weights, with held-out accuracy: own ")


def test_new_weights_do_not_depend_on_those_that_were_learned():
    class Learned(nn.Module):
        """A layer that torch can draw anew, a scale that it cannot, and a constant of the architecture."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(COLOUR_SHAPE[0], COLOURS)
            self.scale = nn.Parameter(torch.full((COLOUR_SHAPE[0],), 2.0))
            self.register_buffer("constant", torch.ones(COLOUR_SHAPE[0]))

        def forward(self, images):
            return self.head(images.mean(dim=(2, 3)) * self.scale + self.constant)

    first, second = audited(module=Learned()), audited(module=Learned())
    with torch.no_grad():
        second.module.head.weight.add_(5.0)
    drawn = []
    for like in (first, second):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(3)
            drawn.append(with_new_weights(like))
    assert torch.equal(drawn[0].head.weight, drawn[1].head.weight)
    assert not torch.equal(drawn[0].head.weight, first.module.head.weight)
    assert torch.equal(drawn[0].constant, torch.ones(COLOUR_SHAPE[0]))
    assert drawn[0].scale.tolist() == [2.0] * COLOUR_SHAPE[0]  # its own mean, and no spread


def digest(classifier):
    return Likeness.of(classifier).digest


def test_models_that_differ_in_their_weights_alone_share_their_twins():
    assert digest(audited(1)) == digest(audited(2)) == digest(audited(1, mean=(0.5,), std=(0.2,)))
    others = [
        audited(1, normalised=True),
        audited(module=nn.Sequential(nn.Flatten(), nn.Linear(math.prod(COLOUR_SHAPE), COLOURS))),
    ]
    assert len({digest(entry) for entry in (audited(1), *others)}) == 3


def test_networks_with_layers_that_normalise_are_another_kind():
    assert OWN_ARCHITECTURE.kind(audited(normalised=True)) == "normalised"
    assert OWN_ARCHITECTURE.kind(audited()) == "plain_colour"
    assert TINY.kind(audited()) == "library"


def test_a_network_that_takes_too_long_to_train_has_no_twins_of_its_own():
    like = audited()
    products = products_per_image(like)
    height, width = (side - 2 for side in COLOUR_SHAPE[1:])
    assert products == COLOUR_SHAPE[0] * 9 * 12 * height * width + 12 * 4 * 4 * COLOURS
    small = dataclasses.replace(OWN_TINY, most_products=products - 1)
    twins = trained(small, like=like)
    assert twins.classifiers == ()
    assert twins.reason.startswith("a network that takes 0 million multiplications per image is not trained anew")


@pytest.fixture
def in_threads():
    """Whether `side_by_side` has more than one thread to work in can be chosen by this, for as long as a test runs."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_twins_that_are_trained_side_by_side_are_those_that_are_trained_one_by_one(in_threads):
    short = dataclasses.replace(OWN_TINY, epochs=3, least_above_chance=0.0)
    in_threads(1)
    apart = trained(short, like=audited())
    in_threads(2)
    together = trained(short, like=audited())
    assert all(map(torch.equal, weights(apart), weights(together)))
    assert apart.accuracies == together.accuracies


def test_networks_that_draw_random_numbers_in_training_are_trained_one_by_one(in_threads, monkeypatch):
    in_threads(2)
    asked = []
    monkeypatch.setattr(twin_recipe, "side_by_side", asked.extend)
    like = audited()
    like.module.insert(0, nn.Dropout(0.1))
    assert trained(OWN_TINY, like=like).classifiers
    assert not asked
    trained(OWN_TINY, like=audited())
    assert len(asked) == 2


def test_a_network_whose_code_fails_in_training_has_no_twins_of_its_own_and_says_why():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(COLOUR_SHAPE[0], COLOURS)

        def forward(self, images):
            if self.training:
                raise RuntimeError("made for inference")
            return self.head(images.mean(dim=(2, 3)))

    twins = trained(OWN_TINY, like=audited(module=Frozen()))
    assert twins.classifiers == ()
    assert twins.reason.startswith(
        "the own twin cannot be used: the model's own code raised RuntimeError (made for inference)"
    )


def test_twins_of_the_audited_architecture_come_back_from_the_store(tmp_path):
    like = audited(normalised=True)
    made = trained(dataclasses.replace(OWN_TINY, epochs=2, least_above_chance=-1), like=like)
    again, _ = Store(tmp_path).recall(
        {"twins": 1}, lambda: made, pack=Twins.pack, unpack=lambda packed: Twins.unpack(packed, like=like)
    )
    assert (again.kind, again.accuracies) == ("normalised", made.accuracies)
    images = colour_images().images
    for twin, packed in zip(made.classifiers, again.classifiers, strict=True):
        assert torch.equal(twin.logits(images), packed.logits(images))
