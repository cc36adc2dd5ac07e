"""Reference networks from a file: what they are for, and what is refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit import prepare as module
from backdoor_audit.detectors import Natural
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.model.anew import Likeness
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate
from backdoor_audit.options import AuditOptions
from backdoor_audit.prepare import prepare
from backdoor_audit.properties import PROPERTIES, SearchedProperty
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run import reference as referring
from backdoor_audit.run import searches as searching
from backdoor_audit.run.reference import portable
from backdoor_audit.run.run import Run
from backdoor_audit.search import references
from backdoor_audit.search.references import References
from backdoor_audit.search.twin_recipe import LIBRARY, OWN_ARCHITECTURE
from backdoor_audit.search.twins import Twins
from backdoor_audit.store import Packed, Store, as_stored, checked, key, write
from tests.subjects import COLOURS, colour_images, random_network

IMAGES = colour_images(per_class=8)
FOUND = Natural(torch.ones(2, COLOURS), torch.zeros(2, COLOURS), torch.zeros(2, COLOURS), 7)
SEARCHED = [entry for entry in PROPERTIES if isinstance(entry, SearchedProperty)]
SURE = (Rate(0, 8), Rate(0, 8))  # any network is that good


def network(width=2, moved=0.0):
    """A network of ours; ``moved`` gives it other weights."""
    inner = random_network(image_shape=IMAGES.image_shape, classes=COLOURS, width=width)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(moved)
    return Classifier.wrap(inner, image_shape=IMAGES.image_shape)


PLAIN = network()


def run_of(classifier, tmp_path, **options):
    return Run(
        AuditOptions(device="cpu", **options),
        Store(tmp_path / "store"),
        shipped(),
        module=classifier.module,
        given_images=IMAGES,
    )


def made(classifier, *, data=IMAGES.fingerprint, classes=COLOURS, seed=0, accuracies=SURE, **more):
    """What `prepare` leaves of one model of this architecture, with twins that learned nothing."""
    twins = Twins((classifier, classifier), accuracies, kind=OWN_ARCHITECTURE.kind(classifier))
    twins = dataclasses.replace(twins, classifiers=tuple(named(entry) for entry in twins.classifiers))
    likeness = Likeness.of(classifier)
    parts = portable(OWN_ARCHITECTURE, likeness.digest)
    detector = next(entry for entry in searching.DETECTORS if entry.name == "smooth")
    entries = {key(parts): twins.pack(), key({**parts, "natural": detector}): FOUND.pack()}
    entries = {name: as_stored(packed) for name, packed in entries.items()}
    return References(data, classes, seed, entries, [(likeness, "small")], **more)


def named(classifier):
    return Classifier.wrap(
        classifier.module,
        image_shape=classifier.image_shape,
        mean=IMAGES.normalization[0],
        std=IMAGES.normalization[1],
        architecture="own",
    )


@pytest.fixture
def file(tmp_path):
    made(PLAIN).save(tmp_path / "twins.safetensors")
    return tmp_path / "twins.safetensors"


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("twins were trained")

    monkeypatch.setattr(referring.TwinRecipe, "__call__", refuse)


def test_a_run_takes_twins_and_what_was_found_in_them_from_the_file(file, tmp_path, no_training):
    other = network(moved=0.1)
    run = run_of(other, tmp_path, twins=str(file))
    run.check()
    for twin in run.reference.twins.classifiers:
        pairs = zip(twin.module.parameters(), PLAIN.module.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    detector = next(entry for entry in run.searches.detectors if entry.name == "smooth")
    assert torch.equal(run.reference.natural(detector).margins, FOUND.margins)
    assert f"from {file}" in run.reference.twins.described


def test_another_torch_version_number_of_threads_or_cache_does_not_matter(file, tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert run_of(PLAIN, tmp_path / "elsewhere", twins=str(file)).reference.twins.classifiers


def test_another_architecture_has_its_twins_trained(file, tmp_path, monkeypatch):
    trained = []
    none = Twins((), (), "too few")
    monkeypatch.setattr(referring.TwinRecipe, "__call__", lambda recipe, *_, **__: trained.append(recipe) or none)
    wider = network(width=3)
    assert run_of(wider, tmp_path, twins=str(file)).reference.twins.reason == "too few"
    assert trained == [OWN_ARCHITECTURE, LIBRARY]


def test_finished_searches_beside_other_twins_are_not_taken(file, tmp_path):
    without = run_of(PLAIN, tmp_path).inputs.parts
    beside = run_of(PLAIN, tmp_path, twins=str(file)).inputs.parts
    assert key(without) != key(beside)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"data": "0" * 64}, "made with other clean images, or another number of them; make it again"),
        ({"classes": 9}, f"made with 9 classes, not {COLOURS}"),
        ({"seed": 3}, "made with seed 3, not 0"),
        ({"code": "older"}, "made with another version of backdoor_audit"),
    ],
)
def test_a_file_for_another_run_is_refused_before_any_work(tmp_path, other, told):
    path = tmp_path / "t.safetensors"
    made(PLAIN, **other).save(path)
    with pytest.raises(DataFormatError) as caught:
        run_of(PLAIN, tmp_path, twins=str(path)).check()
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_twins_that_are_worse_than_they_are_said_to_be_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    made(PLAIN, accuracies=(Rate(1000, 1000),) * 2).save(path)
    with pytest.raises(DataFormatError, match=r"reference network 1 is right on 0\.\d\d of the clean images, 1\.00 is"):
        _ = run_of(PLAIN, tmp_path, twins=str(path)).reference.twins


def test_a_file_that_says_there_can_be_no_twins_is_not_believed(tmp_path, no_training):
    """Without twins the comparison is blunter: a file must not decide that."""
    likeness = Likeness.of(PLAIN)
    none = Twins((), (), "too few images", kind="alone_plain").pack()
    keys = (key(portable(OWN_ARCHITECTURE, likeness.digest)), key(portable(LIBRARY, "")))
    entries = {name: as_stored(none) for name in keys}
    path = tmp_path / "t.safetensors"
    References(IMAGES.fingerprint, COLOURS, 0, entries, [(likeness, "small")]).save(path)
    with pytest.raises(DataFormatError, match="no reference networks in it; make it again with"):
        _ = run_of(PLAIN, tmp_path, twins=str(path)).reference.twins


@pytest.mark.parametrize("kind", ["alone_plain", "plain_colour", "normalised"])
def test_a_file_does_not_choose_the_calibration(kind, tmp_path):
    whole = made(PLAIN)
    parts = key(portable(OWN_ARCHITECTURE, Likeness.of(PLAIN).digest))
    packed = whole.entries[parts]
    forged = Packed(packed.tensors, {**packed.values, "kind": kind})
    path = tmp_path / "t.safetensors"
    dataclasses.replace(whole, entries={**whole.entries, parts: forged}).save(path)
    assert run_of(PLAIN, tmp_path, twins=str(path)).reference.twins.kind == OWN_ARCHITECTURE.kind(PLAIN)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flipped, "its digest does not match"),
        (lambda path: path.write_bytes(b"no such file"), "no reference networks ("),
        (lambda path: save_file({"a": torch.ones(1)}, path), "its digest does not match"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused_in_one_line(file, damage, told):
    damage(file)
    with pytest.raises(DataFormatError) as caught:
        References.load(file)
    assert str(caught.value).startswith(f"{file}: no reference networks")
    assert told in str(caught.value)
    assert "a file written by backdoor-audit references is accepted" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{}, {"entries": [1]}, {"entries": {"a": 3}}, {"entries": {}, "architectures": [1]}, []]
)
def test_values_of_another_form_are_refused_in_one_line(tmp_path, values):
    path = tmp_path / "t.safetensors"
    write(path, references._NAME, Packed({}, values))
    with pytest.raises(DataFormatError, match="no reference networks"):
        References.load(path)


def test_a_file_cannot_name_code(file, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    read = References.load(file)
    parts = portable(OWN_ARCHITECTURE, read.name_of(Likeness.of(PLAIN)))
    packed = read.entries[key(parts)]
    packed.values["twins"][0]["architecture"] = "planted:make"
    with pytest.raises(DataFormatError, match="a network that is none of ours"):
        read.recall(parts, lambda packed: Twins.from_file(packed, like=PLAIN))


def test_an_entry_of_another_form_is_refused_in_one_line(file):
    references = References.load(file)
    whose = references.name_of(Likeness.of(PLAIN))
    with pytest.raises(DataFormatError, match=r"twins\.safetensors: an entry cannot be used .*; make the file again"):
        references.recall(portable(OWN_ARCHITECTURE, whose), Natural.unpack)


@pytest.mark.parametrize("rate", [float("nan"), -0.1, 1.1, "often"])
def test_a_natural_rate_that_is_none_is_refused_in_one_line(rate, file, tmp_path, no_training):
    """Nothing is beyond one above 1, so that no counterexample would count."""
    whole, claim = References.load(file), SEARCHED[0]
    parts = {**portable(OWN_ARCHITECTURE, whole.name_of(Likeness.of(PLAIN))), "natural rate": claim, "class": 0}
    dataclasses.replace(whole, entries={**whole.entries, key(parts): Packed({}, {"rate": rate})}).save(file)
    run = run_of(network(moved=0.1), tmp_path, twins=str(file))
    with pytest.raises(DataFormatError, match=r"^[^\n]+an entry cannot be used[^\n]+$"):
        run.properties.natural_rate(claim, 0)


def doctored(name, packed):
    """The values of a file, with one of them changed, by the name of the change."""
    values = {**packed.values, "entries": {**packed.values["entries"]}}
    if name in ("classes", "seed"):
        return {**values, name: float("inf")}
    if name == "behaviour":
        (structure, scores, called), *_ = values["architectures"]
        return {**values, "architectures": [[structure, [[], *scores[1:]], called]]}
    which = next(key for key, entry in values["entries"].items() if "twins" in entry["values"])
    entry = values["entries"][which]
    accuracies = {"none": [], "beyond": [[9, 8]] * 2, "nan": [[float("nan"), 8]] * 2}
    accuracies |= {"text": [["8", 8]] * 2, "of_none": [[0, 0]] * 2}
    values["entries"][which] = {**entry, "values": {**entry["values"], "accuracies": accuracies[name]}}
    return values


@pytest.mark.parametrize("name", ["classes", "seed", "behaviour", "none", "beyond", "nan", "text", "of_none"])
def test_a_doctored_file_with_a_digest_of_its_own_is_refused_in_one_line(file, tmp_path, no_training, name):
    """Nothing is below an accuracy that is no number, so that networks which learned nothing would count as proven."""
    packed, _ = checked(file, references._NAME)
    write(file, references._NAME, Packed(packed.tensors, doctored(name, packed)))
    run = run_of(network(moved=0.1), tmp_path, twins=str(file))
    with pytest.raises(DataFormatError, match=r"^[^\n]+$"):
        _ = run.reference.twins


def test_a_likeness_holds_over_rounding_and_not_over_another_behaviour():
    one = Likeness("a", (1.0, -0.5, 0.25))
    assert one.matches(Likeness("a", (1.001, -0.501, 0.2499)))
    assert not one.matches(Likeness("a", (1.1, -0.5, 0.25)))
    assert not one.matches(Likeness("b", one.behaviour))
    assert not one.matches(Likeness("a", (1.0,)))


class Ready:
    """A run whose twins are there at once."""

    def __init__(self, options, store, suite, *, progress):
        del suite
        name = options.model.partition("-")[0]
        self.inputs = SimpleNamespace(num_classes=3 if name == "three" else COLOURS)
        self.classifier, self.clean_set = network(width=3 if name == "wide" else 2), IMAGES
        twins = Twins((named(self.classifier),) * 2, SURE, kind="plain_colour")
        if name == "large":
            twins = Twins((named(self.classifier),), SURE[:1], kind="library", instead="too large")
        if name == "bare":
            twins = Twins((), (), "too few images")
        self.searches = SimpleNamespace(detectors=searching.DETECTORS)
        self.reference = SimpleNamespace(twins=twins, natural=lambda detector: FOUND)
        rate = lambda claim, target: 0.25 * target  # noqa: E731 - a method of a stand-in
        self.properties = SimpleNamespace(ours=(SimpleNamespace(name="p"),), natural_rate=rate)

    def check(self):
        pass


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Run", Ready)

    def work(*names):
        told = []
        made = prepare(names, AuditOptions(data="d"), store=Store(tmp_path), tell=told.append)
        return made, told

    return work


def test_models_of_one_architecture_share_an_entry_and_others_add_theirs(prepared):
    made, told = prepared("small-1", "small-2", "wide-1")
    assert len(made.architectures) == 2
    assert "an architecture that is there already" in told[1]
    each = len(made.entries) // 2
    assert (
        each == 1 + sum(entry.needs_twins and entry.name != "consensus" for entry in searching.DETECTORS) + COLOURS - 1
    )


def test_where_our_own_networks_stand_in_the_reason_is_kept(prepared, tmp_path):
    made, _ = prepared("large-1")
    whose = made.architectures[0][0].digest
    own = made.recall(portable(OWN_ARCHITECTURE, whose), Twins.unpack)
    assert (own.classifiers, own.reason) == ((), "too large")
    assert key(portable(LIBRARY, "")) in made.entries


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "give at least one"),
        (("bare-1",), "bare-1: too few images"),
        (("small-1", "three-1"), "three-1: 3 classes, small-1 has"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_one_line(prepared, names, told):
    with pytest.raises(OptionError, match=told):
        prepared(*names)


def test_packed_entries_come_back_equal(file):
    again = References.load(file)
    before = made(PLAIN)
    assert again.entries.keys() == before.entries.keys()
    for name, packed in before.entries.items():
        assert again.entries[name].values == packed.values
        assert all(torch.equal(again.entries[name].tensors[part], tensor) for part, tensor in packed.tensors.items())
    assert isinstance(next(iter(again.entries.values())), Packed)
    assert again.digest
