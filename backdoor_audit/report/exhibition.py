"""What there is to look at in a record: triggers, stamped images, the inside of the network, counterexamples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import STEERED, WORST_FIRST, Record, Verdict
from backdoor_audit.item import Item
from backdoor_audit.report import charts
from backdoor_audit.report.naming import INDEX, class_called, class_name, searched
from backdoor_audit.report.paths import without_folders
from backdoor_audit.report.picture_budget import Album, Picture

_INPUTS = {
    "clean": "a clean image",
    "synthetic": "an image with the found trigger",
    "known": "an image with the known trigger",
    "both": "an image with both triggers",
}


Example = tuple[Mapping[str, Any], Picture, Picture]
"""What the model says of a held-out image, the image, and the same with a trigger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A trigger to look at: pictures of it, and held-out images before and after stamping.

    ``item`` is what stands between the brackets of the finding that it belongs to.
    """

    item: Item
    title: str
    detector: str
    verdict: Verdict
    reason: str
    pictures: Sequence[Picture]
    examples: Sequence[Example]
    target_class: int | None
    size: float | None
    index: float | None
    success: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CamSetting:
    """Grad-CAM for one input and one label; ``label`` is of the true or of the target class."""

    input: str
    label: str
    picture: Picture
    title: str
    inside: float | None
    area: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What a trigger does inside the network."""

    title: str
    unavailable: str = ""
    layer: str = ""
    channels: int = 0
    histograms: Sequence[tuple[str, str, float | None]] = ()
    settings: Sequence[CamSetting] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The groups of images that Grad-CAM is shown for, in order."""
        return tuple(dict.fromkeys(setting.input for setting in self.settings))

    def setting(self, shown: str, label: str) -> CamSetting | None:
        """Grad-CAM for that input and label, if there is one."""
        return next((one for one in self.settings if (one.input, one.label) == (shown, label)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """A property of the model, with a picture of the counterexample to it and the text of its specification, if there is one."""

    stored: Mapping[str, Any]
    verdict: Verdict
    picture: Picture | None
    spec: str
    target_class: int | None
    examples: Sequence[Example]


def exhibits(record: Record, album: Album, *, passing: bool) -> list[Exhibit]:
    """The triggers of items that pass, or of all others; those of classes that stand out most come first."""
    findings, made = searched(record), []
    for key, stored in record.exhibits.items():
        item = Item.within(INDEX, key)
        finding = findings.get(item)
        verdict = finding.verdict if finding else Verdict.INCONCLUSIVE
        if (verdict is Verdict.PASS) is not passing:
            continue
        target, detector = stored["target_class"], str(stored["detector"])
        for_whom = f"that {detector} found for {class_called(record, target)}"
        details = finding.details if finding else {}
        made.append(
            Exhibit(
                item=item,
                title=_exhibit_title(record, item, target),
                detector=detector,
                verdict=verdict,
                reason=without_folders(finding.reason) if finding else "",
                pictures=[
                    album.picture(png, f"{title} of the trigger {for_whom}", title)
                    for title, png in stored["pictures"].items()
                ],
                examples=_examples(record, album, stored["examples"]),
                target_class=target,
                size=_number(details.get("size")),
                index=finding.value if finding else None,
                success=_number(details.get("success_val")),
            )
        )
    return sorted(made, key=lambda entry: (WORST_FIRST.index(entry.verdict), -(entry.index or 0)))


def _examples(record: Record, album: Album, stored: Sequence[Mapping[str, Any]]) -> list[Example]:
    made = []
    for example in stored:
        of = f"image of class {class_name(record, example['label'])}"
        before = album.picture(example["image"], f"held-out {of}")
        made.append((example, before, album.picture(example["stamped"], f"the same {of} with the trigger")))
    return made


def _number(value: object) -> float | None:
    """The details of a finding may be anything."""
    return float(value) if isinstance(value, (int, float)) else None


def _exhibit_title(record: Record, item: Item, target: int | None) -> str:
    if item.row is not None and item.is_source:
        return f"from class {item.row.number}, most to {class_name(record, target)}"
    return class_called(record, target)


def activations(record: Record, album: Album, prefix: str) -> list[Activation]:
    """What every trigger that was found or known does inside the network."""
    made = []
    for number, stored in enumerate(record.activations.values()):
        called = f"class {class_name(record, stored['target_class'])}"
        if "unavailable" in stored:
            made.append(Activation(title=called, unavailable=str(stored["unavailable"])))
            continue
        histograms = [
            (norm, charts.norm_chart(f"{prefix}norms-{number}-{norm}", norm, groups), stored["separation"].get(norm))
            for norm, groups in stored["norms"].items()
        ]
        made.append(
            Activation(
                title=called,
                layer=str(stored["layer"]),
                channels=int(stored["channels"]),
                histograms=histograms,
                settings=[_cam(record, album, entry) for entry in stored["grad_cam"]],
            )
        )
    return made


def _cam(record: Record, album: Album, stored: Mapping[str, Any]) -> CamSetting:
    shown = _INPUTS.get(stored["input"], str(stored["input"]))
    label = f"{stored['label']} class {class_name(record, stored['class'])}"
    alt = f"Grad-CAM on {shown} for the {label}"
    if stored["inside"] is not None and stored["area"] is not None:
        alt += f": {stored['inside']:.0%} of its mass lies on the trigger's {stored['area']:.1%} of the image"
    return CamSetting(
        input=shown,
        label=str(stored["label"]),
        picture=album.picture(stored["overlay"], alt),
        title=label,
        inside=stored["inside"],
        area=stored["area"],
    )


def properties(record: Record, album: Album) -> list[Property]:
    """Every property that was looked at, in the order of the record."""
    made = []
    targets = {entry.item.asked_of: entry.target_class for entry in record.findings if entry.statistic == STEERED}
    for stored in record.properties:
        png, spec = stored.get("picture"), stored.get("spec")
        picture = album.picture(png, f"the smallest counterexample to {stored['name']}") if png else None
        text = spec if isinstance(spec, str) else "" if spec is None else json.dumps(spec)
        made.append(
            Property(
                stored=stored,
                verdict=Verdict(stored["verdict"]),
                picture=picture,
                spec=text,
                target_class=targets.get(str(stored["name"])),
                examples=_examples(record, album, stored.get("examples") or ()),
            )
        )
    return made
