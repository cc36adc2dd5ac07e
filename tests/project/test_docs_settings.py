"""Numbers that the texts take from the code are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.attacks import ATTACKS
from backdoor_audit.canary import CANARIES
from backdoor_audit.data.reading import Reading
from backdoor_audit.detectors import DETECTORS
from backdoor_audit.filters import FILTERS
from backdoor_audit.model.networks import NETWORKS
from backdoor_audit.properties import PROPERTIES
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.repair import AIM, PREFERRED
from backdoor_audit.search.anomaly import (
    CALIBRATED_LIMIT,
    DETECTORS_IN_A_RUN,
    FALSE_ALARM_RATE,
    LEAST_DEVIATION,
    MIN_CLASSES,
)
from backdoor_audit.search.racing import RACE
from backdoor_audit.search.twin_recipe import LIBRARY, OWN_ARCHITECTURE
from backdoor_audit.search.twins import KINDS
from tests.subjects.figures import squeezed
from tests.subjects.texts import DOCS, ROOT, text_of

WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
"""Numbers as texts spell them."""

README = ROOT / "README.md"
DETECTION = DOCS / "detection.md"
INDEX = DOCS / "explanation" / "anomaly-index.md"
TWINS = DOCS / "explanation" / "twins.md"
REPAIRS = DOCS / "explanation" / "repairs.md"
INPUTS = DOCS / "reference" / "inputs.md"
ITEMS = DOCS / "reference" / "items.md"
REPAIR = DOCS / "how-to" / "repair.md"
IMAGES = DOCS / "images.md"


def of(module: str, name: str) -> Any:
    """A number of a module that is not public."""
    return getattr(import_module(f"backdoor_audit.{module}"), name)


def by_name(entries: Any) -> dict[str, Any]:
    return {entry.name: entry for entry in entries}


def of_detection() -> Iterator[tuple[Path, str]]:
    """How many detectors there are, what they search for, and for how many classes."""
    detectors = by_name(DETECTORS)
    count = WORDS[len(detectors)]
    assert len(detectors) == DETECTORS_IN_A_RUN
    yield DETECTION, f"in {count} ways"
    yield INDEX, f"each of the {count} has an equal part"
    yield INPUTS, f"{WORDS[len(detectors) - 1]} of the {count} detectors, and the properties"
    sides = [stage.side for stage in detectors["patch_scan"].probe.stages]
    closer = {stage.side for stage in detectors["patch_scan"].probe.closer}
    yield DETECTION, f"{sides[0]}x{sides[0]} (of 32x32) on every place of a grid, then {sides[-1]}x{sides[-1]} inside"
    for side in closer:
        yield DETECTION, f"beside twins also {side}x{side} inside the best of them"
    by_source = [stage.side for stage in detectors["source_scan"].probe.stages]
    yield DETECTION, f"windows of {by_source[0]}x{by_source[0]}, then of {by_source[-1]}x{by_source[-1]} inside them"
    yield DETECTION, f"{100 * detectors['additive'].probe.family.strength:.0f} % of the pixel range"
    grid = detectors["smooth"].probe.family.grid
    yield DETECTION, f"one slow change of colours, {grid}x{grid} values per channel"
    yield DETECTION, f"one smooth flow, {detectors['warping'].probe.family.displacement:g} pixels in root mean square"
    yield DETECTION, f"over the {WORDS[len(detectors['consensus'].of)]} families above"
    yield DETECTION, f"takes the images of {detectors['relabelling'].asked} classes"
    yield DETECTION, f"races all classes up to {of('detectors.neural_cleanse', '_NAME_ABOVE')}"


def of_many_classes() -> Iterator[tuple[Path, str]]:
    """What is searched of many classes."""
    finalists, controls = WORDS[RACE.finalists], WORDS[RACE.controls]
    assert RACE.places(1_000) == (2 * RACE.finalists, 2 * RACE.controls)
    yield DETECTION, f"Up to {RACE.above} classes each is searched for."
    yield DETECTION, f"the {finalists} foremost classes, the **finalists**"
    yield DETECTION, f"{controls} **controls**, classes drawn by lot"
    yield DETECTION, "Of 1,000 classes it is twice as many each."
    assert of("detectors.universal_perturbation", "NEAR") == 0.75
    yield DETECTION, "within three quarters of the limit is judged beside twice the controls"
    fewest, most = of("detectors.sources", "FEWEST"), of("detectors.sources", "LOOKED_AT")
    yield DETECTION, f"classes with {WORDS[fewest]} clean images in either half, looks hastily at up to {most} of them"
    yield DETECTION, f"the {WORDS[2 * RACE.finalists]} that are left most easily"
    yield DOCS / "how-to" / "time.md", f"With more than {RACE.above} classes searches [race]"
    yield DOCS / "explanation" / "cost.md", f"Up to {RACE.above} classes every search asks for every class."


def of_the_index() -> Iterator[tuple[Path, str]]:
    """What counts as an outlier, and when a search is done again."""
    aim = WORDS[round(100 * FALSE_ALARM_RATE)]
    yield README, f"at most {aim} per cent of clean models"
    yield DETECTION, f"**At most {aim} per cent is the aim;"
    yield INDEX, f"{aim.capitalize()} per cent of clean models may be stopped by all detectors together"
    yield INDEX, f"**{CALIBRATED_LIMIT:g}** is where a class fails"
    yield INDEX, f"no deviation below {LEAST_DEVIATION} is an outlier"
    yield INDEX, f"for {WORDS[len(KINDS)]} kinds of comparison"
    near = of("run.reference", "_CLOSE")
    yield INDEX, f"({near[0]} to {near[1]} times)"
    least, natural, far = (of("detectors.excess", name) for name in ("_LEAST", "_LEAST_NATURAL", "_FAR"))
    yield INDEX, f"`{least} + {1 - least} (2 s - 1)² max(√(1 - t), l / {far:g})`"
    yield INDEX, f"times theirs, or {natural:g} if that is more; `l` counts {far:g} at most"
    assert of("detectors.universal_perturbation", "_STANDS_OUT") == 1.0
    yield INDEX, "(a deviation above 1)"
    assert of("detectors.compared", "MOST_DOUBLINGS") == 2
    yield INDEX, "twice the steps in both, and once more"
    assert of("detectors.universal_perturbation", "_SLOW") == 2.0
    yield INDEX, "rises at most twice as fast"
    assert of("detectors.compared", "_STEADY") == 0.5
    yield INDEX, "raised no index by more than half a unit"
    assert by_name(DETECTORS)["neural_cleanse"].steps == 100


def of_twins_and_images() -> Iterator[tuple[Path, str]]:
    """How many images are needed, and what twins are."""
    few, enough = of("run.preconditions", "MIN_IMAGES"), LIBRARY.least_images
    each, least = LIBRARY.least_per_class, of("run.preconditions", "MIN_PER_CLASS")
    million = f"{LIBRARY.most_products / 1e6:.0f} million multiplications per image"
    yield README, f"{few} at the least, {enough} for every search, {WORDS[each]} of every class for reference models"
    yield INPUTS, f"| {least} of every class that the model scores |"
    yield INPUTS, f"| {few} in all |"
    yield INPUTS, f"| {enough} in all |"
    yield INPUTS, f"| {each} of every class as well |"
    yield ITEMS, f"They need {enough} clean images, {each} of every class"
    yield DOCS / "faq.md", f"fewer than {enough} clean images"
    yield TWINS, f"With fewer than {enough} clean images nothing is compared"
    yield TWINS, f"Twins need {each} clean images of every class"
    yield TWINS, f"{WORDS[len(OWN_ARCHITECTURE.architectures)].capitalize()} copies of the audited network"
    yield TWINS, f"AdamW, {OWN_ARCHITECTURE.epochs} epochs, shifts, mixup and CutMix"
    yield TWINS, f"(small VGG, CNN and ResNet, {LIBRARY.epochs} epochs)"
    yield TWINS, f"more than {million}"
    yield DETECTION, f"With more than {million}"
    yield IMAGES, f"{few} at least, better 1,000, and {WORDS[least]} of every class"
    yield IMAGES, f"by a sign test at {of('run.matching', 'SIGNIFICANCE')}"
    yield IMAGES, f"More than {of('run.matching', 'MOST_MATCHED'):,} classes are not matched"
    yield DOCS / "tutorials" / "own-model.md", f"{few} at the least, better 1,000"


def of_properties() -> Iterator[tuple[Path, str]]:
    """What properties search for, and how many there are."""
    named = by_name(PROPERTIES)
    patch, warp = named["no_small_patch_steers"], named["no_smooth_warp_steers"]
    share = f"more than {100 * patch.least_limit:.0f} % ({100 * warp.least_limit:.0f} % for warps;"
    yield ITEMS, f"no {patch.changes.side}x{patch.changes.side} patch, faint blend or smooth warp"
    yield ITEMS, share
    yield DOCS / "how-to" / "properties.md", f"asks all {WORDS[len(named)]};"
    yield DOCS / "how-to" / "properties.md", f"| any of the {WORDS[len(named)]} |"


def of_canaries() -> Iterator[tuple[Path, str]]:
    """The doses of every kind, in the table, and how long a copy is taught."""
    page = DOCS / "how-to" / "canary.md"
    yield page, f"There are {WORDS[len(CANARIES)]} kinds, one item each"
    for canary in CANARIES:
        (line,) = (line for line in text_of(page).splitlines() if line.startswith(f"| `{canary.name}` |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        doses = (canary.doses.smaller, canary.doses.stronger)
        assert cells[2:5] == [f"{canary.doses.usual:g}", *(", ".join(f"{dose:g}" for dose in some) for some in doses)]
        assert cells[5] == ", ".join(f"`{name}`" for name in canary.first)
        yield page, f"taught to a finished model in {canary.epochs} epochs"


def of_repairs() -> Iterator[tuple[Path, str]]:
    """What a repaired copy has to hold, and how repairs differ from their papers."""
    success, lost = (100 * AIM[name] for name in ("attack_success_rate", "clean_accuracy_drop"))
    assert PREFERRED == ("distilled_unlearning", "fst", "ft_sam")
    yield REPAIR, "distilled unlearning, FST and FT-SAM first"
    yield REPAIR, f"with at most {success:.0f} % success and {lost:.0f} points of accuracy lost"
    yield REPAIR, f"comes back from {WORDS[of('canary.cleaning', 'STAMPED_AGAIN')]} stamped images"
    yield REPAIR, f"with that one as well, up to {WORDS[of('repair', '_ROUNDS')]} times"
    yield REPAIRS, f"the first that reaches {success:.0f} % and {lost:.0f} points"
    yield REPAIRS, f"at most {100 * of('repairs.augmentation', 'MOST_LOST'):.0f} points of accuracy"
    assert (of("repairs.steady", "LEAST_AGREEMENT"), of("repairs.fst", "_LEAST_AGREEMENT")) == (0.8, 0.5)
    yield REPAIRS, "it answers more than a fifth of the clean images otherwise (half of them for `fst`)"
    published = of("repairs.ft_sam", "PUBLISHED_WEIGHTS")
    rho = of("repairs.ft_sam", "FTSAM")().rho
    yield REPAIRS, f"{rho:g} is for the {published / 1e6:.0f} million of the paper's network"
    yield REPAIRS, f"network, {rho * (100_000 / published) ** 0.5:.2f} for 100,000"
    limits = shipped_limits()
    yield ITEMS, f"({limits.robust_accuracy_lost:g}) as clean ones did before"
    yield ITEMS, f"costs at most {limits.clean_accuracy_drop:g} of clean accuracy"
    yield ITEMS, f"in which nothing was flagged, at most {limits.harmless_drop:g}"


def of_bounds() -> Iterator[tuple[Path, str]]:
    """What reading may take: shares of the memory bound, and counts."""
    page = DOCS / "reference" / "bounds.md"
    memory, seconds = of("bounds", "MEMORY"), of("bounds", "SECONDS")
    yield page, f"| {memory / 2**30:.0f} GiB | `--audit-memory=SIZE`"
    yield page, f"| {seconds / 60:.0f} minutes | `--audit-reading-time=TIME`"
    pickle = memory // of("model.loading.checkpoint", "_PICKLE_PER_BYTE") / 1e6
    steps = memory // of("model.loading.pickled", "_PER_STEP")
    yield page, f"| {pickle:.0f} MB; {steps:,} |"
    header = memory / of("tensor_file", "_PER_HEADER_BYTE") / 1e6
    members = memory / of("model.loading.archive", "_PER_DIRECTORY_BYTE") / 1e6
    yield page, f"| {header:.0f} MB; {members:.0f} MB |"
    yield page, f"about {memory / 2 / of('data.pictures', '_PER_PIXEL') / 1e6:.0f} megapixels"
    picture = memory / of("data.pictures", "_FILE_SHARE") / 1e6
    yield page, f"| {picture:.0f} MB; {Reading.begun('').picture_seconds:g} s |"
    yield page, f"| 0 to {of('data.clean_set', 'MOST_CLASSES') - 1:,} |"
    counts = (of("data.folder", "_DEEPEST"), of("data.pictures", "_MOST_SCANS"), of("data.pictures", "_MOST_EXIF"))
    yield page, f"| {counts[0]}; {counts[1]}, {counts[2]}; {of('option_texts', 'MOST_SIDE'):,} px |"
    yield page, f"| {of('files', '_DEEPEST')}; {memory // of('files', '_PER_BYTE') / 1e6:.0f} MB |"


def of_fleets() -> Iterator[tuple[Path, str]]:
    """Which files are models there, and what an audit depends on."""
    page = DOCS / "fleet.md"
    *ends, last = (f"`{suffix}`" for suffix in of("model.loading.formats", "SUFFIXES"))
    yield page, f"Files in it end with {', '.join(ends)} or {last};"
    *files, last = (f"`{name}`" for name in of("fleet.depends", "_PROJECT"))
    yield page, f"* {', '.join(files)} and {last} of the working folder and those above it;"
    *libraries, last = of("fleet.depends", "_LIBRARIES")
    yield page, f"the version of {', '.join(libraries)} or {last}"
    yield page, f"at or below {of('fleet.outcome', 'FALSE_DISCOVERIES')} are suspicious"


def of_formats() -> Iterator[tuple[Path, str]]:
    """Which files are read, as far as numbers say so."""
    page = DOCS / "formats.md"
    known, newest = of("model.loading.onnx_opset", "_KNOWN"), of("model.loading.onnx_opset", "_NEWEST")
    yield page, f"Operator sets {known + 1} to {newest} are written down in set {known}"
    yield page, f"lacks up to {WORDS[of('model.loading.placing', '_FEW_LACKING')]} of the network's tensors"
    yield IMAGES, f"up to {of('data.folder', '_DEEPEST')} folders deep"
    yield INPUTS, f"Numbers beyond {of('model.loading.header', 'LARGEST_NUMBER'):g} are refused"
    yield IMAGES, f"## Two to {WORDS[MIN_CLASSES - 1]} classes"
    (rejected,) = {100 * entry.false_positive_rate for entry in FILTERS}
    yield ITEMS, f"a filter in front of the model that rejects {rejected:.0f} % of clean images"
    yield DOCS / "gate.md", f"`GOMP_SPINCOUNT={of('cores', '_SPINS')}`"
    python = re.search(r'requires-python = ">=([\d.]+)"', text_of(ROOT / "pyproject.toml"))
    assert python
    yield README, f"with Python {python[1]} or later"
    yield DOCS / "tutorials" / "first-verdict.md", f"You need Python {python[1]} or later"
    yield DOCS / "how-to" / "time.md", f"says so every {of('plugin.pace', 'EVERY'):g} s"
    assert of("plugin.pace", "_LONG") == 600
    yield DOCS / "how-to" / "time.md", "Above ten minutes it says what would help"
    least = of("calibrate", "LEAST_MODELS")
    yield DOCS / "how-to" / "calibrate.md", f"With {WORDS[least]} or more clean models of your own"


def of_the_zoo() -> Iterator[tuple[Path, str]]:
    """How many attacks and architectures there are."""
    assert (len(ATTACKS), len(NETWORKS)) == (20, 6)
    yield DOCS / "explanation" / "zoo.md", "all twenty attacks"


@pytest.mark.parametrize(
    "told",
    [
        of_detection,
        of_many_classes,
        of_the_index,
        of_twins_and_images,
        of_properties,
        of_canaries,
        of_repairs,
        of_bounds,
        of_fleets,
        of_formats,
        of_the_zoo,
    ],
)
def test_a_number_in_a_text_is_that_of_the_code(told: Any) -> None:
    missing = [(page.name, text) for page, text in told() if text not in squeezed(text_of(page))]
    assert missing == []
