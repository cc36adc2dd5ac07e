"""The committed zoo, and the build that makes it: what is checked here needs none of the training data."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from backdoor_audit.attacks import ATTACKS, BadNets, load_attack
from backdoor_audit.errors import AttackError
from benchmarks.zoo import build
from benchmarks.zoo.subject import FOLDER, MODELS, VARIANTS, Subject
from benchmarks.zoo.subjects import EVERY
from tests.subjects import row_images

ROWS = build.read_table()
BUILT = [subject for subject in EVERY if subject.name in ROWS]


def test_the_zoo_is_as_large_and_varied_as_its_claims_need():
    clean = [row for row in ROWS.values() if not row["attack"]]
    backdoored = [row for row in ROWS.values() if row["attack"]]
    assert len(clean) >= 28
    assert len(backdoored) >= 44
    assert {row["architecture"] for row in clean} == {row["architecture"] for row in backdoored}
    assert {"small_vgg", "small_resnet", "preact_resnet18", "small_vit"} <= {row["architecture"] for row in clean}
    assert {row["data"] for row in backdoored} == {"fmnist", "cifar10", "gtsrb"}
    assert {row["attack"] for row in backdoored} == {attack.name for attack in ATTACKS}
    assert {row["rule"] for row in backdoored} == {"all_to_one", "all_to_all", "clean_label", "source_specific"}
    assert {row["settings"]["variant"] for row in clean} == set(VARIANTS) - {"mislabelled"}  # the population has those


def test_every_family_that_is_trained_has_a_subject_from_scratch():
    edits = {"planted_channel", "bit_trojan", "architectural_branch", "trojannn"}  # they need a trained model
    scratch = {row["attack"] for row in ROWS.values() if row["attack"] and row["from_scratch"]}
    assert scratch >= {attack.name for attack in ATTACKS} - edits


def test_files_are_small_and_none_is_left_over():
    files = set(MODELS.glob("*.safetensors"))
    assert files == {subject.file for subject in BUILT} | {subject.attack_file for subject in BUILT if subject.attack}
    sizes = {file: file.stat().st_size for file in files}
    assert max(sizes.values()) <= 250_000
    assert sum(sizes.values()) <= 16_000_000


@pytest.mark.parametrize("subject", BUILT, ids=lambda subject: subject.name)
def test_a_subject_comes_back_bit_by_bit(subject):
    row = ROWS[subject.name]
    assert row["settings"] == json.loads(json.dumps(subject.settings()))
    assert (row["file"], row["half"]) == (str(subject.file.relative_to(FOLDER)), subject.half)
    classifier = subject.load()
    state = {name.removeprefix("module."): tensor for name, tensor in classifier.module.state_dict().items()}
    for name, tensor in load_file(subject.file).items():
        assert tensor.dtype == torch.float16
        assert torch.equal(state[name.removeprefix("module.")], tensor.float())
    if subject.attack:
        attack = load_attack(subject.attack_file)
        assert attack == subject.attack
        image = torch.full((1, *classifier.image_shape), 0.3)
        assert all(not torch.equal(part.stamp(image), image) for part in attack.triggers())


@pytest.mark.parametrize("subject", BUILT, ids=lambda subject: subject.name)
def test_rates_are_proved_on_enough_images_and_no_subject_is_mislabelled(subject):
    row = ROWS[subject.name]
    low, high = row["clean_accuracy_interval"]
    assert low <= row["clean_accuracy"] <= high
    assert row["clean_accuracy_n"] >= 9000
    if not subject.attack:
        assert row["attack_success_rate"] is None
        return
    bound = subject.attack.least_success * (row["clean_accuracy"] if row["rule"] == "all_to_all" else 1)
    assert row["attack_success_rate"] >= bound
    assert row["attack_success_rate"] >= 0.9 or row["rule"] in ("clean_label", "all_to_all")
    assert row["twin"]["natural_rate"] <= build.MAX_NATURAL_RATE
    assert row["twin"]["name"] in ROWS
    assert not ROWS[row["twin"]["name"]]["attack"]


def test_halves_depend_on_names_alone_and_both_have_all_kinds():
    halves = Counter((bool(row["attack"]), row["half"]) for row in ROWS.values())
    assert min(halves[kind, half] for kind in (True, False) for half in ("development", "report")) >= 10
    assert Subject(data="fmnist", architecture="small_cnn", tag="clean", seed=101).half == "report"


def test_the_page_is_drawn_from_the_table():
    assert build.COMMITTED.page.read_text() == build.page(ROWS)


class TestBuilding:
    """The build with stand-ins for training: three clean subjects and one attack."""

    CLEAN = tuple(Subject(data="fmnist", architecture="small_cnn", tag="clean", seed=seed) for seed in (1, 2, 3))
    ATTACKED = Subject(
        data="fmnist", architecture="small_cnn", tag="badnets", seed=4, attack=BadNets(), twin=CLEAN[0].name
    )

    @pytest.fixture(autouse=True)
    def _apart(self, tmp_path, monkeypatch):
        self.zoo = build.Zoo(models=tmp_path / "models", table=tmp_path / "zoo.json", page=tmp_path / "README.md")
        monkeypatch.setattr("benchmarks.zoo.subject.MODELS", tmp_path / "models")
        self.trained, self.broken = [], {}
        monkeypatch.setattr(build, "finished", self.finished)

    def finished(self, work, tasks, jobs):
        del work, jobs
        for task in tasks:
            yield task, lambda task=task: self.row(task)

    def row(self, subject):
        if subject.name in self.broken:
            raise self.broken[subject.name]
        self.trained.append(subject.name)
        for file in [subject.file] + ([subject.attack_file] if subject.attack else []):
            file.write_bytes(b"x")
        rate = build._counted("clean_accuracy", build.Rate(9, 10))
        row = {
            "name": subject.name,
            "half": subject.half,
            "data": "fmnist",
            "architecture": "small_cnn",
            "attack": None,
        }
        return {**row, **rate, "settings": json.loads(json.dumps(subject.settings()))}

    def test_a_killed_build_goes_on_where_it_was(self, tmp_path):
        self.broken = {self.CLEAN[2].name: KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            build.build((*self.CLEAN, self.ATTACKED), tmp_path, jobs=1, zoo=self.zoo)
        assert list(build.read_table(self.zoo)) == [subject.name for subject in self.CLEAN[:2]]
        self.broken, self.trained = {}, []
        assert build.build((*self.CLEAN, self.ATTACKED), tmp_path, jobs=1, zoo=self.zoo) == []
        assert self.trained == [self.CLEAN[2].name, self.ATTACKED.name]
        self.trained = []
        build.build((*self.CLEAN, self.ATTACKED), tmp_path, jobs=1, zoo=self.zoo)
        assert self.trained == []

    def test_an_attack_that_did_not_implant_is_reported_and_never_listed(self, tmp_path):
        self.broken = {self.ATTACKED.name: AttackError("badnets did not implant")}
        assert build.build((*self.CLEAN, self.ATTACKED), tmp_path, jobs=1, zoo=self.zoo) == [
            f"{self.ATTACKED.name}: badnets did not implant"
        ]
        assert self.ATTACKED.name not in build.read_table(self.zoo)

    def test_a_subject_is_trained_again_if_its_settings_change_or_its_file_is_gone(self, tmp_path):
        build.build(self.CLEAN, tmp_path, jobs=1, zoo=self.zoo)
        self.CLEAN[1].file.unlink()
        longer = Subject(data="fmnist", architecture="small_cnn", tag="clean", seed=1, training_images=9)
        self.trained = []
        build.build((longer, *self.CLEAN[1:]), tmp_path, jobs=1, zoo=self.zoo)
        assert self.trained == [longer.name, self.CLEAN[1].name]


def test_variants_change_what_they_say():
    clean = row_images(classes=8, per_class=50)
    assert torch.equal(VARIANTS[""](clean, 1).images, clean.images)
    counts = torch.bincount(VARIANTS["imbalanced"](clean, 1).labels, minlength=8)
    assert counts[0] == 50
    assert counts[7] < 15
    bright = VARIANTS["shortcut"](clean, 1)
    changed = (bright.images != clean.images).flatten(1).any(dim=1)
    assert set(clean.labels[changed].tolist()) == {6}
    assert 10 < int(changed.sum()) < 40
    wrong = VARIANTS["mislabelled"](clean, 1)
    assert torch.equal(wrong.images, clean.images)
    assert 5 < int((wrong.labels != clean.labels).sum()) < 35
    marked = VARIANTS["stamped_with_true_labels"](clean, 1)
    changed = (marked.images != clean.images).flatten(1).any(dim=1)
    assert 15 < int(changed.sum()) < 70
    assert torch.equal(marked.labels, clean.labels)
    assert len(set(clean.labels[changed].tolist())) > 4
