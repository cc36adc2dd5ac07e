"""What every attack keeps to: the tests run over the tuple."""

import json
from dataclasses import fields, replace
from functools import cache

import pytest
import torch

from backdoor_audit import attacks
from backdoor_audit.attacks import (
    ATTACKS,
    AllToAll,
    AllToOne,
    ArchitecturalBranch,
    BadNets,
    CleanLabel,
    SourceSpecific,
    attack_from_spec,
    load_attack,
    measure,
    quantised,
)
from backdoor_audit.attacks.attack import replace_images
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate
from backdoor_audit.model.training import Recipe, fit
from tests.subjects import assert_same, by_brightness, grey_images, random_network, row_images, seeded, snapshot

LEARNED = {"ssba", "input_aware", "lira", "trojannn", "bit_trojan"}


def named(chosen=ATTACKS):
    return pytest.mark.parametrize("attack", chosen, ids=lambda attack: attack.name)


def images(channels=3, size=32):
    return quantised(torch.rand(6, channels, size, size, generator=seeded(1)))


def test_names_are_unique_and_fit_a_file_name():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)
    assert all(any(digit.isdigit() for digit in attack.paper) for attack in ATTACKS)  # the year


@named()
def test_a_specification_makes_the_same_attack_again(attack):
    spec = json.loads(json.dumps(attack.spec()))
    again = attack_from_spec(spec)
    assert again == attack
    assert type(again) is type(attack)
    assert again.spec() == spec
    changed = replace(attack, seed=9, poison_rate=0.07, rule=SourceSpecific(4, (1, 2)))
    assert attack_from_spec(json.loads(json.dumps(changed.spec()))) == changed != attack


@named()
def test_the_settings_line_makes_the_same_attack_again(attack):
    scope = {name: getattr(attacks, name) for name in attacks.__all__}
    assert eval(repr(attack), {"__builtins__": {}}, scope) == attack  # noqa: S307 - our own repr
    assert "\n" not in repr(attack)


@named([attack for attack in ATTACKS if attack.name not in LEARNED])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stamp_is_a_function_of_the_fields(attack, channels):
    clean = images(channels)
    before = clean.clone()
    torch.manual_seed(1)
    stamped = attack.stamp(clean)
    torch.manual_seed(2)
    again = attack_from_spec(attack.spec()).stamp(clean)
    assert torch.equal(clean, before)
    assert torch.equal(stamped, again)
    assert stamped.shape == clean.shape
    assert not torch.equal(stamped, clean)
    assert torch.equal(quantised(stamped), stamped)
    assert torch.allclose(attack.stamp(clean[2:3]), stamped[2:3])  # an image's stamp does not depend on its neighbours


@named([attack for attack in ATTACKS if attack.name in LEARNED])
def test_a_trigger_that_training_makes_cannot_be_stamped_before(attack):
    with pytest.raises(AttackError, match="its trigger is made by training; implant it first"):
        attack.stamp(images())


@named()
def test_a_saved_attack_comes_back_with_what_it_learned(attack, tmp_path):
    learned = replace(attack, state={"some": torch.arange(3.0)})
    learned.save(tmp_path / "attack.safetensors")
    again = load_attack(tmp_path / "attack.safetensors")
    assert again == attack
    assert torch.equal(again.learned("some"), torch.arange(3.0))


@named()
def test_fields_say_what_they_are(attack):
    """Everything that shapes the trigger is a field, so that the specification holds it."""
    assert {"rule", "poison_rate", "seed", "least_success", "most_accuracy_lost", "state"} <= {
        entry.name for entry in fields(attack)
    }
    assert type(attack).__doc__


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "attack None is not known; known: adaptive_blend"),
        ({"attack": "badnet"}, "attack 'badnet' is not known"),
        ({"attack": "badnets", "sise": 3}, "badnets: unknown parameter 'sise'; parameters: "),
        ({"attack": "badnets", "rule": {"rule": "all_to_one", "x": 1}}, "is not complete, or has too many parameters"),
        ({"attack": "badnets", "state": {}}, "badnets: unknown parameter 'state'"),
    ],
)
def test_a_specification_that_names_nothing_known_is_refused(spec, words):
    with pytest.raises(AttackError, match=words):
        attack_from_spec(spec)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", None])
def test_a_file_that_is_no_attack_is_refused(content, tmp_path):
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AttackError, match=r"x\.safetensors: .*a safetensors file with an attack's specification"):
        load_attack(file)


def test_a_model_file_is_no_attack(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(AttackError, match=r"m\.safetensors: .*is accepted"):
        load_attack(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "spec", ["[]", "3", "[" * 100_000, '{"attack": "badnets", "poison_rate": 1e999}', '{"attack": []}']
)
def test_a_specification_that_is_none_is_refused_in_one_line(spec, tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "m.safetensors", {"attack": spec})
    with pytest.raises(AttackError):
        load_attack(tmp_path / "m.safetensors")


class TestPoisoning:
    IMAGES, LABELS = torch.zeros(40, 1, 8, 8), torch.arange(40) % 4

    def test_covers_keep_their_labels_and_are_never_poisoned(self):
        attack = BadNets(rule=SourceSpecific(0, (1,)), poison_rate=0.1)
        done = replace_images(self.IMAGES, self.LABELS, attack=attack, cover_rate=0.25, coverable=self.LABELS > 1)
        assert (len(done.poisoned), len(done.covers)) == (4, 10)
        assert set(self.LABELS[done.poisoned].tolist()) == {1}
        assert set(self.LABELS[done.covers].tolist()) == {2, 3}
        assert torch.equal(done.labels[done.covers], self.LABELS[done.covers])
        assert done.images[done.covers].flatten(1).any(dim=1).all()
        assert not set(done.poisoned.tolist()) & set(done.covers.tolist())

    def test_train_and_cover_stamps_may_differ_from_the_test_stamp(self):
        done = replace_images(
            self.IMAGES,
            self.LABELS,
            attack=BadNets(),
            stamp=lambda x: x + 0.5,
            cover_rate=0.1,
            cover_stamp=lambda x: x + 1,
        )
        assert (done.images[done.poisoned] == 0.5).all()
        assert (done.images[done.covers] == 1).all()

    def test_the_choice_depends_on_the_seed(self):
        chosen = [replace_images(self.IMAGES, self.LABELS, attack=BadNets(seed=seed)).poisoned for seed in (1, 1, 2)]
        assert torch.equal(chosen[0], chosen[1])
        assert not torch.equal(chosen[0], chosen[2])

    def test_too_many_covers_are_refused(self):
        with pytest.raises(AttackError, match="40 covers wanted, 36 images may be covers"):
            replace_images(self.IMAGES, self.LABELS, attack=BadNets(), cover_rate=1.0)

    def test_the_input_is_left_alone(self):
        before = self.IMAGES.clone()
        replace_images(self.IMAGES, self.LABELS, attack=BadNets())
        assert torch.equal(self.IMAGES, before)


class TestImplanting:
    CLEAN = row_images(classes=5, per_class=40)
    UNSEEN = row_images(classes=5, per_class=10, seed=5)
    RECIPE = Recipe(epochs=12, learning_rate=0.05, batch_size=20)

    def fresh(self):
        return Classifier.wrap(random_network("small_cnn", classes=5, width=4), image_shape=(1, 8, 8))

    def test_a_patch_is_learned_and_proved_on_held_out_images(self):
        start = self.fresh()
        before = [tensor.clone() for tensor in start.module.state_dict().values()]
        attack = BadNets(rule=AllToOne(3), poison_rate=0.2)
        planted = attack(start, self.CLEAN, self.UNSEEN, recipe=self.RECIPE)
        assert planted.scores.attack_success_rate >= 0.9
        assert planted.scores.attack_success_rate.n == 40  # of 50 images, ten are of the target class
        assert planted.scores.clean_accuracy > 0.9
        again = measure(planted.classifier, self.UNSEEN, attack)
        assert (again.clean_accuracy, again.triggers) == (planted.scores.clean_accuracy, planted.scores.triggers)
        assert all(torch.equal(old, new) for old, new in zip(before, start.module.state_dict().values(), strict=True))

    def test_an_attack_that_does_not_implant_raises(self):
        words = r"badnets did not implant: attack success rate 0\.\d+ of 40 held-out images, wanted 0\.900"
        with pytest.raises(AttackError, match=words):
            BadNets(rule=AllToOne(3))(self.fresh(), self.CLEAN, self.UNSEEN, recipe=Recipe(epochs=1))

    def test_an_attack_that_costs_accuracy_raises(self):
        with pytest.raises(AttackError, match=r"badnets cost too much: clean accuracy .*, 1\.500 without the attack"):
            BadNets(rule=AllToOne(3), poison_rate=0.2)(
                self.fresh(), self.CLEAN, self.UNSEEN, recipe=self.RECIPE, reference_accuracy=1.5
            )

    @pytest.mark.parametrize("rule", [AllToOne(5), SourceSpecific(0, (7,)), AllToAll(6), CleanLabel(-1)])
    def test_classes_the_model_does_not_have_are_refused(self, rule):
        with pytest.raises(AttackError, match=r"badnets: .*(outside 0 to 4|for a model of 5 classes)"):
            BadNets(rule=rule)(self.fresh(), self.CLEAN, self.UNSEEN)

    def test_all_to_all_is_measured_against_clean_accuracy(self):
        attack, scores = BadNets(rule=AllToAll(5)), measure(self.fresh(), self.UNSEEN, BadNets())
        enough = replace(scores, clean_accuracy=Rate(80, 100), attack_success_rate=Rate(73, 100))
        attack.refuse_failure(enough)
        with pytest.raises(AttackError, match=r"wanted 0\.720"):
            attack.refuse_failure(replace(enough, attack_success_rate=Rate(71, 100)))
        with pytest.raises(AttackError, match=r"wanted 0\.900"):
            BadNets().refuse_failure(enough)


def test_scores_of_a_source_specific_attack_worked_by_hand():
    """The white corner turns greys .1 .3 .6 .9 into classes 1 1 2 3 (see test_metrics): it works on class 0 only."""
    clean = CleanSet(grey_images([0.1, 0.3, 0.6, 0.9]), torch.tensor([0, 1, 2, 3]))
    attack = BadNets(size=2, top=0, left=0, rule=SourceSpecific(1, (0, 2)))
    scores = measure(by_brightness(), clean, attack)
    assert (scores.attack_success_rate.hits, scores.attack_success_rate.n) == (1, 2)  # classes 0 and 2
    assert (scores.leak.hits, scores.leak.n) == (0, 1)  # class 3; class 1 is the target
    assert scores.triggers == (scores.attack_success_rate,)


def test_a_branch_does_not_fit_into_a_file_of_weights():
    """The one attack whose models need code: the architecture says so."""
    start = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8), architecture="small_cnn")
    planted, _ = ArchitecturalBranch().implant(start.copy(), row_images(classes=5), recipe=Recipe())
    assert planted.architecture == "small_cnn+branch"


BRIEF = {
    "encoder_epochs": 1,
    "mask_epochs": 1,
    "surrogate_epochs": 1,
    "attack_steps": 2,
    "trigger_steps": 5,
    "row_steps": 5,
}


class TestEveryAttackWhenCarriedOut:
    """On 32x32 images of five rows, with little effort: what holds whether or not the attack implants."""

    CLEAN, UNSEEN = (
        CleanSet(clean.images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), clean.labels)
        for clean in (row_images(classes=5, per_class=12), row_images(classes=5, per_class=4, seed=5))
    )

    @pytest.fixture(scope="class")
    @classmethod
    def start(cls):
        subject = Classifier.wrap(random_network("small_cnn", classes=5, width=4), image_shape=(1, 32, 32))
        fit(
            subject,
            cls.CLEAN.images,
            cls.CLEAN.labels,
            epochs=25,
            learning_rate=0.1,
            batch_size=20,
            generator=seeded(1),
        )
        return subject

    @classmethod
    def carry_out(cls, attack, start):
        known = {entry.name for entry in fields(attack)}
        less = {name: value for name, value in BRIEF.items() if name in known}
        attack = replace(attack, least_success=0.0, most_accuracy_lost=1.0, **less)
        return attack(start, cls.CLEAN, cls.UNSEEN, recipe=Recipe(epochs=1, batch_size=20))

    @pytest.fixture(scope="class")
    @classmethod
    def planted(cls, start):
        """What an attack plants, and what it was given before and after; done once it is asked for, for all who only look."""

        def given():
            return snapshot(start.module), cls.CLEAN.images.clone(), cls.CLEAN.labels.clone()

        @cache
        def done(attack):
            torch.manual_seed(1)
            before = given()
            return cls.carry_out(attack, start), before, given()

        return done

    @named()
    def test_the_model_and_the_random_state_stay_as_they_were(self, attack, planted):
        done, (model, *images), (model_after, *images_after) = planted(attack)
        assert_same(model, model_after)
        assert all(torch.equal(one, other) for one, other in zip(images, images_after, strict=True))
        assert not any(part.training for part in done.classifier.module.modules())
        assert not any(parameter.requires_grad for parameter in done.classifier.module.parameters())
        assert not any(tensor.requires_grad for tensor in done.attack.state.values())

    @named()
    def test_the_same_seed_plants_the_same_whatever_the_global_random_state(self, attack, start, planted):
        first, _, _ = planted(attack)
        torch.manual_seed(2)
        second = self.carry_out(attack, start)
        assert torch.equal(first.classifier.logits(self.UNSEEN.images), second.classifier.logits(self.UNSEEN.images))
        for one, other in zip(first.attack.triggers(), second.attack.triggers(), strict=True):
            assert torch.equal(one.stamp(self.UNSEEN.images), other.stamp(self.UNSEEN.images))

    @named()
    def test_what_was_learned_is_saved_and_stamps_the_same(self, attack, planted, tmp_path):
        learned = planted(attack)[0].attack
        learned.save(tmp_path / "attack.safetensors")
        again = load_attack(tmp_path / "attack.safetensors")
        for one, other in zip(learned.triggers(), again.triggers(), strict=True):
            assert torch.equal(one.stamp(self.UNSEEN.images), other.stamp(self.UNSEEN.images))
        assert sum(tensor.numel() for tensor in learned.state.values()) < 20_000
