"""The work of ``backdoor-audit attack``: what is planted where, and what must hold before it is written."""

from __future__ import annotations

import argparse
import json
import math
import os
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from backdoor_audit.attacks import ATTACKS, Attack, AttackScores, attack_from_spec, measure
from backdoor_audit.commands.arguments import reading, refuse_to_replace, writing
from backdoor_audit.data import CleanSet, load_clean_set, names_from
from backdoor_audit.errors import AttackError, AuditError, OptionError
from backdoor_audit.files import UnreadableError, parsed_json, whole
from backdoor_audit.model.classifier import Classifier, choose_device
from backdoor_audit.model.loading import class_names_of, load_classifier, normalization_of, save_classifier
from backdoor_audit.model.metrics import Rate, attack_success_rate, clean_accuracy
from backdoor_audit.model.networks import NETWORKS, build_network
from backdoor_audit.model.training import Recipe
from backdoor_audit.option_texts import MOST_COUNT
from backdoor_audit.printable import printable
from backdoor_audit.structure import brief
from backdoor_audit.triggers.label_rule import RULES, AllToAll, LabelRule, SourceSpecific

NOTE = "a backdoor was planted in this model on purpose, to try audits on; do not use it"


def plant(options: argparse.Namespace) -> None:
    """Plant the attack, write model, attack and trigger, and print what was measured on held-out images.

    Raises `AuditError` for wrong input, and if the attack did not implant; then nothing is written.
    """
    out: Path = options.out
    attack_file, trigger_file = out.with_suffix(".attack.safetensors"), out.with_suffix(".trigger.safetensors")
    for file in (out, attack_file, trigger_file):
        refuse_to_replace(file, options)
    if not 0 < options.held_out < 1:
        raise OptionError(f"--held-out: {options.held_out} is no share of the images; it must lie between 0 and 1")
    for name in ("epochs", "learning_rate", "batch_size"):
        if not 0 < getattr(options, name) < math.inf:
            raise OptionError(f"--{name.replace('_', '-')}: {getattr(options, name)}; must be above 0")
    given = reading(options)
    size, names, order = given.get("resize"), given.get("class_names", ""), given.get("class_order", "")
    images = load_clean_set(
        options.data,
        resize=tuple(size) if size else None,
        channels=given.get("channels"),
        class_names=names_from(names) if names else None,
        class_order=order,
        model_names=class_names_of(Path(options.model))
        if os.path.isfile(options.model) and not (names or order)
        else (),
    )
    clean, held_out = images.split(options.seed, share=1 - options.held_out)
    device = choose_device(given.get("device", "auto"))
    start, trained = _start(options.model, given, clean, options, device)
    if names and len(names_from(names)) != start.num_classes:
        raise OptionError(
            f"--class-names: {len(names_from(names))} names in {names[:200]}, the model scores {start.num_classes} classes; "
            "give a name for each, in the order of its scores"
        )
    attack = attack_of(options, start.num_classes)
    before = clean_accuracy(start, held_out.images, held_out.labels) if trained else None
    recipe = Recipe(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
    )
    planted = attack(start, clean, held_out, recipe=recipe, reference_accuracy=before, progress=True)
    trigger = planted.attack.trigger(start.image_shape) if attack.target_class is not None else None
    written = [out, attack_file, *[trigger_file] * (trigger is not None)]
    with writing(out), ExitStack() as stack:
        # all are whole before one takes its place
        drafts = {file: stack.enter_context(whole(file)) for file in written}
        notes = {"warning": NOTE, "attack": json.dumps(planted.attack.spec())}
        save_classifier(planted.classifier, drafts[out], notes=notes)
        scores = _reloaded(drafts[out], planted.classifier, planted.attack, held_out, arch=given.get("arch"))
        planted.attack.save(drafts[attack_file])
        if trigger is not None:
            trigger.save(drafts[trigger_file])
        else:
            trigger_file.unlink(missing_ok=True)  # that of another model, which --force replaces
    natural = attack_success_rate(start, held_out.images, held_out.labels, planted.attack) if trained else None
    print("\n".join(_report(attack, scores, before, natural)))
    print(printable(f"written: {', '.join(map(str, written))}"))


def _start(
    model: str, given: dict[str, Any], clean: CleanSet, options: argparse.Namespace, device: torch.device
) -> tuple[Classifier, bool]:
    """The classifier to plant in, and whether it is trained."""
    shape = clean.image_shape
    if os.path.isfile(model):
        loaded = load_classifier(
            Path(model),
            image_shape=shape,
            device=device,
            arch=given.get("arch"),
            num_classes=given.get("classes"),
            mean=given.get("mean", ()),
            std=given.get("std", ()),
            normalization=given.get("normalization"),
        )
        return loaded, True
    if model not in NETWORKS:
        raise OptionError(f"{model}: neither a file nor a network; networks are {', '.join(NETWORKS)}")
    if given.get("arch"):
        raise OptionError(f"--arch: {model} is trained from scratch; --arch is for a model file, leave it out")
    mean, std = normalization_of(given.get("mean", ()), given.get("std", ()), given.get("normalization")) or (
        [round(value, 4) for value in clean.images.mean(dim=(0, 2, 3)).tolist()],
        [round(value, 4) for value in clean.images.std(dim=(0, 2, 3)).clamp(min=1e-3).tolist()],
    )
    torch.manual_seed(options.seed)
    classes = given.get("classes") or clean.num_classes
    module = build_network(model, num_classes=classes, in_channels=shape[0], width=16 if model != "small_vit" else 48)
    return Classifier.wrap(module, image_shape=shape, mean=mean, std=std, architecture=model, device=device), False


def attack_of(options: argparse.Namespace, num_classes: int) -> Attack:
    """The attack with the parameters of the command line. Raises `OptionError` for values of the wrong kind."""
    default = next((entry for entry in ATTACKS if entry.name == options.attack), None)
    if default is None:
        raise OptionError(
            f"--attack: {brief(options.attack)} is not known; known: {', '.join(a.name for a in ATTACKS)}"
        )
    spec = {**default.spec(), "seed": options.seed}
    kinds = {"attack": str, **_hints(type(default))}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--set: {brief(text)} cannot be read; accepted: NAME=VALUE")
        try:
            spec[name] = parsed_json(value)
        except UnreadableError:
            spec[name] = value
        if name in default.spec() and not _fits(kinds[name], spec[name]):
            raise OptionError(
                f"--set: {brief(text)}; {name} is {default.spec()[name]!r} by default, give a value of that kind"
            )
    attack = attack_from_spec(spec)
    if len(attack.triggers()) > 1:
        if options.rule or options.source or options.target is not None:
            raise OptionError(
                f"--target, --rule and --source: {attack.name} has several triggers with classes of their own"
            )
        return attack
    return replace(attack, rule=_rule(default.rule, options, num_classes))


def _rule(default: LabelRule, options: argparse.Namespace, num_classes: int) -> LabelRule:
    kind, target = RULES[options.rule] if options.rule else type(default), options.target or 0
    if kind is AllToAll:
        if options.target is not None:
            raise OptionError(
                "--target: all_to_all sends every class to the next; leave it out, or pass another --rule"
            )
        return AllToAll(num_classes)
    if kind is SourceSpecific:
        sources = tuple(options.source or ((target + 1) % num_classes,))
        if target in sources:  # clean images would count as won
            raise OptionError(f"--source: {target} is the target class; choose another")
        return SourceSpecific(target, sources)
    if options.source:
        raise OptionError("--source belongs to --rule=source_specific")
    return kind(target)


def _reloaded(file: Path, planted: Classifier, attack: Attack, held_out: CleanSet, *, arch: str | None) -> AttackScores:
    """Scores of what was written. Raises `AttackError` if the file does not give the planted model again."""
    try:
        again = load_classifier(file, device=planted.device, arch=arch)
    except AuditError as error:
        raise AttackError(
            f"{attack.name}: a file of weights cannot hold this model ({error}); use it from Python"
        ) from None
    some = held_out.images[:64]
    if not torch.equal(again.logits(some), planted.logits(some)):
        raise AttackError(f"{attack.name}: a file of weights cannot hold this model (other scores); use it from Python")
    return measure(again, held_out, attack)


def _report(attack: Attack, scores: AttackScores, before: Rate | None, natural: Rate | None) -> list[str]:
    wanted = f"class {attack.target_class}" if attack.target_class is not None else "the next class"
    lines = [f"{attack.name} for {wanted} ({attack.paper})"]
    for title, rate in (
        ("clean accuracy", scores.clean_accuracy),
        ("  before", before),
        ("attack success rate", scores.attack_success_rate),
        ("  without the backdoor", natural),
        ("robust accuracy", scores.robust_accuracy),
        ("leak to other classes", scores.leak if scores.leak.n else None),
    ):
        if rate is not None:
            low, high = rate.interval
            lines.append(f"{title:24} {rate:.3f}  [{low:.3f}, {high:.3f}], n = {rate.n}")
    return lines


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value read from JSON can stand in a field of this type, which may be a tuple, an attack or a label rule."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_COUNT
    if kind in (int, bool, str):
        return type(value) is kind and (kind is not int or abs(value) <= MOST_COUNT)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list) or (parts[-1] is not ... and len(parts) != len(value)):
            return False
        return all(map(_fits, parts[:1] * len(value) if parts[-1] is ... else parts, value))
    return isinstance(value, dict) and _fits_spec(kind, value)


def _fits_spec(kind: Any, spec: dict[str, Any]) -> bool:
    """Whether a specification names an attack or a label rule of this kind, with values that fit what it knows by name."""
    named: list[type] = [type(entry) for entry in ATTACKS if entry.name == spec.get("attack")]
    if "attack" not in spec:
        named = [made for name, made in RULES.items() if name == spec.get("rule")]
    return any(
        issubclass(made, kind) and all(_fits(hint, spec[name]) for name, hint in _hints(made).items() if name in spec)
        for made in named
    )


def _hints(made: type) -> dict[str, Any]:
    hints = get_type_hints(made)
    return {entry.name: hints[entry.name] for entry in fields(made)}
