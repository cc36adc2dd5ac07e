"""The population: subjects that are trained as strangers train them. Nothing here needs its models."""

import json
from collections import Counter

import pytest
import torch

from backdoor_audit.attacks import BadNets, load_attack
from backdoor_audit.attacks.attack import PoisoningAttack
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.model.training import Recipe
from benchmarks.zoo import build, networks
from benchmarks.zoo.data import CLASSES, SHAPES
from benchmarks.zoo.habits import SCHEDULES, Habits, augmented, train
from benchmarks.zoo.population import ATTACKED, CLEAN, POPULATION
from benchmarks.zoo.population_recipes import MOST_SEEN, Dice, drawn
from benchmarks.zoo.subject import VARIANTS, Subject
from benchmarks.zoo.subjects import EVERY
from tests.subjects import row_images, seeded

ROWS = build.read_table(build.POPULATION)
LEARNED = {"ssba", "input_aware", "lira", "trojannn", "bit_trojan"}  # these cannot stamp before they are implanted


def share(subjects, wanted):
    return sum(wanted(subject) for subject in subjects) / len(subjects)


def test_there_are_enough_subjects_of_every_kind():
    assert len(CLEAN) >= 155
    assert len(ATTACKED) >= 160
    assert len({subject.name for subject in (*POPULATION, *EVERY)}) == len(POPULATION) + len(EVERY)
    assert set(POPULATION) == {*CLEAN, *ATTACKED}
    halves = Counter((subject.half, bool(subject.attack)) for subject in POPULATION)
    assert min(halves.values()) >= 70
    for subjects in (CLEAN, ATTACKED):
        assert share(subjects, lambda subject: subject.data == "fmnist") == pytest.approx(0.47, abs=0.05)
        assert {subject.data for subject in subjects} == set(SHAPES)
        assert {subject.architecture for subject in subjects} == set(networks.FACTORIES) - {"resnet20_full"}
    assert {subject.variant for subject in CLEAN} == set(VARIANTS)


def test_what_an_auditor_cannot_know_varies_alike_in_both_kinds():
    for subjects in (CLEAN, ATTACKED):
        recipes, habits = [subject.recipe for subject in subjects], [subject.habits for subject in subjects]
        assert {recipe.optimizer for recipe in recipes} == {"sgd", "momentum", "adam", "adamw"}
        assert {recipe.batch_size for recipe in recipes} == {32, 64, 128}
        assert min(recipe.epochs for recipe in recipes) <= 2
        assert max(recipe.epochs for recipe in recipes) == 15
        assert {habit.schedule for habit in habits} == set(SCHEDULES)
        assert {habit.normalization for habit in habits} == {"data", "half", "none"}
        assert {habit.flip for habit in habits} == {True, False}
        assert {habit.label_smoothing for habit in habits} == {0.0, 0.1}
        assert {subject.training_images for subject in subjects} >= {4_000, 20_000}


def test_all_of_it_can_be_trained_in_an_evening():
    seen = sum(
        subject.recipe.epochs * subject.training_images / MOST_SEEN[subject.architecture] for subject in POPULATION
    )
    assert seen <= 360  # each whole unit is about 20 s of one core


@pytest.mark.parametrize("subject", ATTACKED, ids=lambda subject: subject.name)
def test_an_attack_fits_its_images_and_has_a_clean_twin(subject):
    twin = next(entry for entry in CLEAN if entry.name == subject.twin)
    assert (twin.data, twin.architecture, twin.variant) == (subject.data, subject.architecture, "")
    if subject.warm_start:
        assert (subject.warm_start, subject.habits) == (twin.name, twin.habits)
    assert subject.attack.seed == subject.seed
    assert subject.attack.least_success == (0.4 if subject.tag == "label_consistent" else 0.8)
    image = torch.full((1, *SHAPES[subject.data]), 0.3)
    for part in subject.attack.triggers():
        part._refuse_classes(CLASSES[subject.data])
        if subject.attack.name in LEARNED:
            continue
        assert not torch.equal(part.stamp(image), image)
    if isinstance(subject.attack, PoisoningAttack):
        poisoned = subject.attack.poison_rate * subject.training_images
        assert poisoned >= 80


def test_patches_lie_anywhere_and_have_all_sizes():
    patches = [subject for subject in ATTACKED if subject.tag == "badnets"]
    assert {subject.attack.size for subject in patches} >= {1, 2, 3, 4, 5, 6, 7, 8}
    middles = [
        subject.attack.trigger(SHAPES[subject.data]).mask[0].nonzero().float().mean(dim=0) for subject in patches
    ]
    central = [bool(((place - 14).abs() < 6).all()) for place in middles]
    assert 8 <= sum(central) <= len(patches) - 8


def test_all_to_all_has_several_shifts():
    shifts = Counter(subject.attack.rule.shift for subject in ATTACKED if subject.tag == "all_to_all")
    assert set(shifts) == {1, 2, 3, 5, 7}
    assert shifts[1] <= 3


def test_half_of_a_build_is_a_fair_sample():
    half = POPULATION[: len(POPULATION) // 2]
    for wanted in (lambda subject: bool(subject.attack), lambda subject: subject.data == "fmnist"):
        assert share(half, wanted) == pytest.approx(share(POPULATION, wanted), abs=0.06)


def test_choices_are_the_same_on_every_machine_and_independent():
    dice = Dice(7)
    assert [dice.pick(question, range(1000)) for question in ("epochs", "optimizer")] == [955, 280]
    assert [Dice(seed).pick("epochs", range(10)) for seed in range(8)] == [2, 7, 8, 6, 1, 8, 5, 5]
    assert drawn("fmnist", "lenet", 5, efforts=(1.0,)) == drawn("fmnist", "lenet", 5, efforts=(1.0,))


def test_the_committed_subjects_keep_their_settings():
    rows = build.read_table()
    assert all(build.is_finished(subject, rows) for subject in EVERY)


def test_the_table_is_short_and_belongs_to_these_subjects():
    subjects = {subject.name: subject for subject in POPULATION}
    assert list(ROWS) == [name for name in subjects if name in ROWS]
    assert not build.POPULATION.table.exists() or build.POPULATION.table.stat().st_size <= 400_000
    for name, row in ROWS.items():
        subject = subjects[name]
        assert row["settings"] == build._settings(subject), f"{name} must be built again"
        assert row["clean_accuracy"] >= build.LEAST_ACCURACY[subject.data]
        assert row["clean_accuracy_n"] >= (5000 if subject.data == "joined" else 9000)
        if subject.attack:
            bound = subject.attack.least_success * (row["clean_accuracy"] if row["rule"] == "all_to_all" else 1)
            assert row["attack_success_rate"] >= bound
            assert row["twin"]["natural_rate"] <= build.MAX_NATURAL_RATE


@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("name", networks.FACTORIES)
def test_every_network_comes_back_from_its_file(name, data, tmp_path):
    torch.manual_seed(3)
    classifier = Classifier.wrap(networks.build(name, data), image_shape=SHAPES[data], mean=(0.5,), std=(0.5,))
    images = torch.rand(3, *SHAPES[data], generator=seeded(1))
    save_classifier(classifier, tmp_path / "m.safetensors")
    again = load_classifier(tmp_path / "m.safetensors", arch=f"{networks.MODULE}:{data}.{name}")
    assert again.num_classes == CLASSES[data]
    assert (again.mean, again.std) == (classifier.mean, classifier.std)
    assert torch.allclose(again.logits(images), classifier.logits(images), atol=1e-6)


def test_an_unknown_network_is_named():
    with pytest.raises(AttributeError, match="no network 'alexnet'; known: lenet, mlp"):
        _ = networks.cifar10.alexnet


def test_every_image_is_moved_and_mirrored_by_itself():
    image = torch.zeros(1, 8, 8)
    image[0, 3, 2] = 1
    images = image.repeat(200, 1, 1, 1)
    changed = augmented(images, 2, True, seeded(1))
    assert torch.equal(changed.flatten(1).sum(dim=1), torch.ones(200))
    places = Counter(tuple(place.tolist()[1:]) for place in changed.squeeze(1).nonzero())
    assert {row for row, _ in places} == {1, 2, 3, 4, 5}
    assert {column for _, column in places} == {0, 1, 2, 3, 4} | {3, 4, 5, 6, 7}
    assert torch.equal(augmented(images, 0, False, seeded(1)), images)


def test_schedules_begin_and_end_as_they_say():
    ends = {name: [round(schedule(done), 6) for done in (0, 0.25, 0.5, 0.7, 1)] for name, schedule in SCHEDULES.items()}
    assert ends["constant"] == [1, 1, 1, 1, 1]
    assert ends["steps"] == [1, 1, 1, 0.1, 0.01]
    assert (ends["cosine"][0], ends["cosine"][2], ends["cosine"][4]) == (1, 0.5, 0)
    assert (ends["one_cycle"][0], ends["one_cycle"][1], ends["one_cycle"][4]) == (0.04, 1, 0)


class TestTraining:
    """Small networks on rows of 28 px; the subjects are as those of the population."""

    CLEAN = Subject(
        data="fmnist",
        architecture="mlp_bn",
        tag="clean",
        seed=1,
        recipe=Recipe(epochs=3, learning_rate=0.05, batch_size=20, optimizer="momentum", shift=1),
        habits=Habits(dropout=0.2, label_smoothing=0.1, normalization="half"),
        training_images=400,
    )
    ATTACKED = Subject(
        data="fmnist",
        architecture="mlp_bn",
        tag="badnets",
        seed=2,
        attack=BadNets(size=6, poison_rate=0.2, seed=2, least_success=0.8),
        recipe=Recipe(epochs=5, learning_rate=2e-3, batch_size=20, optimizer="adam"),
        habits=Habits(schedule="cosine", normalization="none"),
        training_images=400,
        twin=CLEAN.name,
    )

    @pytest.fixture(autouse=True)
    def _apart(self, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.zoo.subject.POPULATION_MODELS", tmp_path)
        monkeypatch.setattr(build, "FOLDER", tmp_path)
        clean, held_out = row_images(classes=10, per_class=40, size=28), row_images(classes=10, size=28, seed=5)
        monkeypatch.setattr(build, "training_images", lambda *_: clean)
        monkeypatch.setattr(build, "audited_and_held_out", lambda *_: (held_out, held_out))

    def test_a_clean_and_a_backdoored_subject_are_built_and_measured_again(self, tmp_path):
        clean, attacked = (build.build_one(subject, tmp_path) for subject in (self.CLEAN, self.ATTACKED))
        assert clean["clean_accuracy"] > 0.9
        assert clean["attack"] is None
        assert attacked["attack_success_rate"] > 0.9
        assert attacked["twin"]["natural_rate"] < 0.2
        assert attacked["arch"] == "benchmarks.zoo.networks:fmnist.mlp_bn"
        assert build.differences(self.ATTACKED, attacked, tmp_path) == []
        rows = {row["name"]: row for row in json.loads(json.dumps([clean, attacked]))}
        assert build.is_finished(self.CLEAN, rows)
        assert build.is_finished(self.ATTACKED, rows)
        assert load_attack(self.ATTACKED.attack_file) == self.ATTACKED.attack
        assert self.CLEAN.load().mean == (0.5,)

    def test_an_attack_that_did_not_implant_leaves_no_file(self, tmp_path):
        build.build_one(self.CLEAN, tmp_path)
        weak = Subject(
            data="fmnist",
            architecture="mlp_bn",
            tag="badnets",
            seed=3,
            attack=BadNets(size=1, poison_rate=0.01, seed=3),
            recipe=Recipe(epochs=1),
            habits=Habits(),
            twin=self.CLEAN.name,
        )
        with pytest.raises(AttackError, match="badnets did not implant"):
            build.build_one(weak, tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {self.CLEAN.file.name}

    def test_training_depends_on_the_seed_alone_and_may_stop_early(self):
        def learned(seed, **habits):
            classifier = self.CLEAN.fresh()
            clean = row_images(classes=10, per_class=6, size=28)
            recipe = Recipe(epochs=2, batch_size=20, optimizer="sgd", learning_rate=0.1)
            torch.manual_seed(torch.seed())
            train(classifier, clean.images, clean.labels, recipe=recipe, habits=Habits(**habits), seed=seed)
            assert not classifier.module.training
            return torch.cat([weight.flatten() for weight in classifier.module.state_dict().values()])

        first = learned(4, dropout=0.3)
        assert torch.equal(first, learned(4, dropout=0.3))
        assert not torch.equal(first, learned(5, dropout=0.3))
        assert not torch.equal(first, learned(4, dropout=0.3, stopped_at=0.5))
        untrained = torch.cat([weight.flatten() for weight in self.CLEAN.fresh().module.state_dict().values()])
        assert torch.equal(untrained, learned(4, stopped_at=0.0))
