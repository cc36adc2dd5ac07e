"""Attacks: each plants a hidden trigger in a copy of a model, for fixtures, benchmarks and canaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from backdoor_audit import tensor_file
from backdoor_audit.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from backdoor_audit.attacks.architectural import ArchitecturalBranch
from backdoor_audit.attacks.attack import (
    Attack,
    AttackScores,
    Backdoored,
    Poisoned,
    PoisoningAttack,
    measure,
    quantised,
)
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.attacks.bit_trojan import BitTrojan
from backdoor_audit.attacks.blended import Blended
from backdoor_audit.attacks.bppattack import BppAttack
from backdoor_audit.attacks.ftrojan import FTrojan
from backdoor_audit.attacks.input_aware import InputAware
from backdoor_audit.attacks.label_consistent import LabelConsistent
from backdoor_audit.attacks.lira import Lira
from backdoor_audit.attacks.low_frequency import LowFrequency
from backdoor_audit.attacks.planted_channel import PlantedChannel
from backdoor_audit.attacks.refool import Refool
from backdoor_audit.attacks.several import SeveralTriggers
from backdoor_audit.attacks.sig import Sig
from backdoor_audit.attacks.ssba import SSBA
from backdoor_audit.attacks.tact import TaCT
from backdoor_audit.attacks.trojannn import TrojanNN
from backdoor_audit.attacks.wanet import WaNet
from backdoor_audit.errors import AttackError
from backdoor_audit.files import UnreadableError, parsed_json
from backdoor_audit.printable import first_line
from backdoor_audit.structure import brief
from backdoor_audit.triggers.label_rule import RULES, AllToAll, AllToOne, CleanLabel, SourceSpecific

__all__ = [
    "ATTACKS",
    "SSBA",
    "AdaptiveBlend",
    "AdaptivePatch",
    "AllToAll",
    "AllToOne",
    "ArchitecturalBranch",
    "Attack",
    "AttackScores",
    "Backdoored",
    "BadNets",
    "BitTrojan",
    "Blended",
    "BppAttack",
    "CleanLabel",
    "FTrojan",
    "InputAware",
    "LabelConsistent",
    "Lira",
    "LowFrequency",
    "PlantedChannel",
    "Poisoned",
    "PoisoningAttack",
    "Refool",
    "SeveralTriggers",
    "Sig",
    "SourceSpecific",
    "TaCT",
    "TrojanNN",
    "WaNet",
    "attack_from_spec",
    "load_attack",
    "measure",
    "quantised",
]

ATTACKS: tuple[Attack, ...] = (
    BadNets(),
    Blended(),
    Sig(),
    LowFrequency(),
    FTrojan(),
    BppAttack(),
    WaNet(),
    SSBA(),
    InputAware(),
    Lira(),
    LabelConsistent(),
    Refool(),
    TrojanNN(),
    TaCT(),
    AdaptiveBlend(),
    AdaptivePatch(),
    SeveralTriggers(),
    PlantedChannel(),
    BitTrojan(),
    ArchitecturalBranch(),
)


def attack_from_spec(spec: Mapping[str, Any]) -> Attack:
    """The attack that `Attack.spec` described. Raises `AttackError` for anything else, saying what is not known."""
    kinds = {type(attack).name: type(attack) for attack in ATTACKS}
    name = spec.get("attack")
    if not isinstance(name, str) or name not in kinds:
        raise AttackError(f"attack {brief(name)} is not known; known: {', '.join(sorted(kinds))}")
    known = {entry.name for entry in fields(kinds[name])} - {"state"}
    unknown = sorted(set(spec) - known - {"attack"})
    if unknown:
        raise AttackError(f"{name}: unknown parameter {brief(unknown[0])}; parameters: {', '.join(sorted(known))}")
    return kinds[name](**{key: _restored(value) for key, value in spec.items() if key != "attack"})


def load_attack(path: Path) -> Attack:
    """The attack in a file that `Attack.save` wrote. Raises `AttackError` for a file that is not one."""
    try:
        state, header = tensor_file.read(path)
        spec = parsed_json(header["attack"])
        if not isinstance(spec, dict):
            raise UnreadableError(f"{brief(spec)} where the parameters of an attack belong")
    except (KeyError, UnreadableError) as error:
        reason = first_line(error)
        raise AttackError(f"{path}: {reason}; a safetensors file with an attack's specification is accepted") from None
    return replace(attack_from_spec(spec), state=state)


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and "attack" in value:
        return attack_from_spec(value)
    if isinstance(value, dict) and value.get("rule") in RULES:
        parameters = {name: _restored(part) for name, part in value.items() if name != "rule"}
        try:
            return RULES[value["rule"]](**parameters)
        except TypeError:
            raise AttackError(f"label rule {value} is not complete, or has too many parameters") from None
    return tuple(_restored(part) for part in value) if isinstance(value, list) else value
