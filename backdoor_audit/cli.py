"""The command ``backdoor-audit``: repairs models, plants backdoors, calibrates the audit. The gate is ``pytest --model``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from backdoor_audit.attacks import ATTACKS, Attack, AttackScores, attack_from_spec, measure
from backdoor_audit.calibrate import calibrate
from backdoor_audit.classifier import Classifier, choose_device
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.errors import AttackError, AuditError, OptionError
from backdoor_audit.label_rule import RULES, AllToAll, LabelRule, SourceSpecific
from backdoor_audit.loading import load_classifier, normalization_of, save_classifier
from backdoor_audit.metrics import Rate, attack_success_rate, clean_accuracy
from backdoor_audit.mitigations import MITIGATIONS
from backdoor_audit.networks import NETWORKS, build_network
from backdoor_audit.options import OPTIONS, AuditOptions
from backdoor_audit.repair import repair, summary
from backdoor_audit.store import Store
from backdoor_audit.training import Recipe

USAGE_ERROR = 4  # as pytest's
REFUSED = 1
NOTE = "a backdoor was planted in this model on purpose, to try audits on; do not use it"
_MODEL_SUFFIXES = (".safetensors", ".pt", ".pth")
_SHARED = ("arch", "classes", "mean", "std", "normalization", "resize", "channels", "device")


class _Parser(argparse.ArgumentParser):
    """An argument parser that ends with pytest's exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0, 1 if no repair held, or 4 with one line on stderr for input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "attacks":
            print("\n".join(map(_described, ATTACKS)))
        elif options.command == "calibrate":
            calibrate_on(options)
        elif options.command == "repair":
            return repair_model(options)
        else:
            attack_model(options)
    except AuditError as error:
        print(f"backdoor-audit: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def calibrate_on(options: argparse.Namespace) -> None:
    """Fit a null distribution on a folder of clean models and write it. Raises `AuditError` for wrong input."""
    _refuse_to_replace(options.out, force=options.force)
    if not options.clean_models.is_dir():
        raise OptionError(f"--clean-models: {options.clean_models} is not a folder")
    models = sorted(file for file in options.clean_models.iterdir() if file.suffix in _MODEL_SUFFIXES)
    given = {key: value for key in _SHARED if (value := _parsed(key, getattr(options, key))) is not None}
    settings = AuditOptions(data=options.data, seed=options.seed, **given)
    with tempfile.TemporaryDirectory(prefix="backdoor_audit-") as scratch:
        null = calibrate(models, settings, store=Store(options.store or Path(scratch)), progress=True)
    null.save(options.out)
    for name in null.fits:
        print(f"{name}: index 2 is a deviation of {null.cut(name, null.classes):.2f}")
    print(f"written: {options.out} ({null.source}); use it with --audit-reference={options.out}")


def repair_model(options: argparse.Namespace) -> int:
    """Try repairs on a model, a line for each, and write the first that holds; exit code 1 if none did. Raises `AuditError`."""
    _refuse_to_replace(options.out, force=options.force)
    given = {key: value for key in _SHARED if (value := _parsed(key, getattr(options, key))) is not None}
    settings = AuditOptions(
        model=options.model,
        data=options.data,
        seed=options.seed,
        trigger=options.trigger,
        profile=options.profile,
        **given,
    )
    with tempfile.TemporaryDirectory(prefix="backdoor_audit-") as scratch:
        store = Store(options.store or Path(scratch))
        attempts = repair(settings, options.out, method=options.method, store=store, progress=True, tell=_tell)
    print(summary(attempts, options.out))
    return REFUSED if attempts and attempts[-1].refused else 0


def _tell(line: str) -> None:
    print(line, flush=True)


def _refuse_to_replace(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise OptionError(f"--out: {out} exists; choose another name, or pass --force to replace it")
    if not out.parent.is_dir():
        raise OptionError(f"--out: {out.parent} is not a folder; make it first")


def attack_model(options: argparse.Namespace) -> None:
    """Plant the attack, write model, attack and trigger, and print what was measured on held-out images.

    Raises `AuditError` for wrong input, and if the attack did not implant; then nothing is written.
    """
    out: Path = options.out
    attack_file, trigger_file = out.with_suffix(".attack.safetensors"), out.with_suffix(".trigger.safetensors")
    for file in (out, attack_file, trigger_file):
        _refuse_to_replace(file, force=options.force)
    if not 0 < options.held_out < 1:
        raise OptionError(f"--held-out: {options.held_out} is no share of the images; it must lie between 0 and 1")
    for name in ("epochs", "learning_rate", "batch_size"):
        if not getattr(options, name) > 0:
            raise OptionError(f"--{name.replace('_', '-')}: {getattr(options, name)}; must be above 0")
    given = {key: value for key in _SHARED if (value := _parsed(key, getattr(options, key))) is not None}
    size = given.get("resize")
    images = load_clean_set(options.data, resize=tuple(size) if size else None, channels=given.get("channels"))
    clean, held_out = images.split(options.seed, share=1 - options.held_out)
    device = choose_device(given.get("device", "auto"))
    start, trained = _start(options.model, given, clean, options, device)
    attack = _attack(options, start.num_classes)
    before = clean_accuracy(start, held_out.images, held_out.labels) if trained else None
    recipe = Recipe(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
    )
    planted = attack(start, clean, held_out, recipe=recipe, reference_accuracy=before, progress=True)
    partial = out.with_suffix(".partial")
    try:
        notes = {"warning": NOTE, "attack": json.dumps(planted.attack.spec())}
        save_classifier(planted.classifier, partial, notes=notes)
        scores = _reloaded(partial, planted.classifier, planted.attack, held_out)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    planted.attack.save(attack_file)
    written = [out, attack_file]
    trigger = planted.attack.trigger(start.image_shape)
    if trigger is not None and attack.target_class is not None:
        trigger.save(trigger_file)
        written.append(trigger_file)
    natural = attack_success_rate(start, held_out.images, held_out.labels, planted.attack) if trained else None
    print("\n".join(_report(attack, scores, before, natural)))
    print(f"written: {', '.join(map(str, written))}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="backdoor-audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    calibration = commands.add_parser(
        "calibrate",
        help="calibrate the anomaly indices on your own clean models",
        description="Measure every detector that needs reference models on each clean model file in a folder, and write the "
        "distribution that --audit-reference reads. At least ten models with the same classes.",
    )
    calibration.add_argument(
        "--clean-models", required=True, type=Path, metavar="DIR", help="folder of clean model files"
    )
    calibration.add_argument("--data", required=True, metavar="SOURCE", help=_help("data"))
    calibration.add_argument("--out", required=True, type=Path, metavar="FILE", help="where to write it (JSON)")
    calibration.add_argument("--store", type=Path, metavar="DIR", help="keep finished work here, to go on after a stop")
    calibration.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    calibration.add_argument("--force", action="store_true", help="replace a file that exists")
    _add_shared(calibration)
    repairs = commands.add_parser(
        "repair",
        help="repair a flagged model and prove it",
        description="Find the trigger of MODEL as the gate does, or take a known one, repair copies of it, and write the first "
        "whose success rate and accuracy on held-out images are inside the limits, once its file has been loaded and audited "
        "again. MODEL itself is not changed. Exit code 1 if no method held.",
    )
    repairs.add_argument("model", metavar="MODEL", help=_help("model"))
    repairs.add_argument("--data", required=True, metavar="SOURCE", help=_help("data"))
    repairs.add_argument(
        "--method",
        default="auto",
        metavar="NAME",
        help=f"auto (all, the cheapest first), {', '.join(entry.name for entry in MITIGATIONS)} (default: auto)",
    )
    repairs.add_argument("--out", required=True, type=Path, metavar="FILE", help="where to write it (safetensors)")
    repairs.add_argument(
        "--trigger", default="", metavar="FILE", help="a known trigger, in place of those that are found"
    )
    repairs.add_argument(
        "--profile",
        choices=("quick", "standard", "thorough"),
        default="standard",
        help="of the audits (default: standard)",
    )
    repairs.add_argument("--store", type=Path, metavar="DIR", help="keep finished work here, to go on after a stop")
    repairs.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    repairs.add_argument("--force", action="store_true", help="replace a file that exists")
    _add_shared(repairs)
    commands.add_parser("attacks", help="list every attack with its parameters and its paper")
    attack = commands.add_parser(
        "attack",
        help="make a backdoored copy of a model, or train one from scratch, for trying a gate",
        description="Plant a known backdoor in a copy of MODEL, or in a new network of that architecture, prove it on held-out "
        "images, and write model, attack and (for patches and blends) trigger. MODEL itself is not changed.",
    )
    attack.add_argument("model", metavar="MODEL|ARCH", help=f"model file, or a network to train: {', '.join(NETWORKS)}")
    attack.add_argument("--data", required=True, metavar="SOURCE", help=_help("data"))
    attack.add_argument(
        "--attack", required=True, metavar="NAME", help="name of the attack; see `backdoor-audit attacks`"
    )
    attack.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="where to write the model (safetensors)"
    )
    attack.add_argument("--target", type=int, metavar="N", help="target class (default: 0)")
    attack.add_argument("--rule", choices=sorted(RULES), help="label rule (default: the attack's own)")
    attack.add_argument("--source", type=int, action="append", metavar="N", help="source class; may be repeated")
    attack.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the attack, e.g. size=4 or pattern=noise; may be repeated",
    )
    attack.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    attack.add_argument("--epochs", type=int, default=5, metavar="N", help="epochs of training (default: %(default)s)")
    attack.add_argument("--learning-rate", type=float, default=0.03, metavar="X", help="(default: %(default)s)")
    attack.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)")
    attack.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="(default: %(default)s)")
    attack.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="share of the images to prove it on (default: 0.2)"
    )
    attack.add_argument("--force", action="store_true", help="replace files that exist")
    _add_shared(attack)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """The options that say how model and images are to be read, as the audit has them."""
    for key in _SHARED:
        parser.add_argument(f"--{key.replace('_', '-')}", default=None, metavar=_option(key).metavar, help=_help(key))


def _start(
    model: str, given: dict[str, Any], clean: CleanSet, options: argparse.Namespace, device: torch.device
) -> tuple[Classifier, bool]:
    """The classifier to plant in, and whether it is trained."""
    shape = clean.image_shape
    if Path(model).is_file():
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
    mean, std = normalization_of(given.get("mean", ()), given.get("std", ()), given.get("normalization")) or (
        [round(value, 4) for value in clean.images.mean(dim=(0, 2, 3)).tolist()],
        [round(value, 4) for value in clean.images.std(dim=(0, 2, 3)).clamp(min=1e-3).tolist()],
    )
    torch.manual_seed(options.seed)
    classes = given.get("classes") or clean.num_classes
    module = build_network(model, num_classes=classes, in_channels=shape[0], width=16 if model != "small_vit" else 48)
    return Classifier.wrap(module, image_shape=shape, mean=mean, std=std, architecture=model, device=device), False


def _attack(options: argparse.Namespace, num_classes: int) -> Attack:
    """The attack with the parameters of the command line."""
    default = next((entry for entry in ATTACKS if entry.name == options.attack), None)
    if default is None:
        raise OptionError(f"--attack: {options.attack!r} is not known; known: {', '.join(a.name for a in ATTACKS)}")
    spec = {**default.spec(), "seed": options.seed}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--set: {text!r} cannot be read; accepted: NAME=VALUE")
        try:
            spec[name] = json.loads(value)
        except json.JSONDecodeError:
            spec[name] = value
        if name in default.spec() and not _fits(default.spec()[name], spec[name]):
            raise OptionError(
                f"--set: {text!r}; {name} is {default.spec()[name]!r} by default, give a value of that kind"
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
        return AllToAll(num_classes)
    if kind is SourceSpecific:
        return SourceSpecific(target, tuple(options.source or ((target + 1) % num_classes,)))
    if options.source:
        raise OptionError("--source belongs to --rule=source_specific")
    return kind(target)


def _reloaded(file: Path, planted: Classifier, attack: Attack, held_out: CleanSet) -> AttackScores:
    """Scores of what was written. Raises `AttackError` if the file does not give the planted model again."""
    try:
        again = load_classifier(file, device=planted.device)
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


def _described(attack: Attack) -> str:
    parameters = ", ".join(f"{entry.name}={getattr(attack, entry.name)!r}" for entry in fields(attack) if entry.repr)
    return f"{attack.name}\n    {attack.paper}\n    {parameters}"


def _option(key: str) -> Any:
    return next(option for option in OPTIONS if option.key == key)


def _help(key: str) -> str:
    return str(_option(key).help).replace("%", "%%")


def _parsed(key: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return _option(key).parse(text)
    except ValueError as error:
        raise OptionError(f"--{key}: {text!r} {error}; accepted: {_option(key).metavar}") from None


def _fits(default: Any, value: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, int) or (isinstance(value, float) and isinstance(default, float))
    return isinstance(value, type(default))


if __name__ == "__main__":
    sys.exit(main())
