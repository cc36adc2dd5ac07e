"""``backdoor-audit attacks``: what can be planted."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backdoor_audit.attacks import Attack

NAME = "attacks"
HELP = "list every attack with its parameters and its paper"


def declare(parser: argparse.ArgumentParser) -> None:
    """It has no arguments."""
    del parser


def run(options: argparse.Namespace) -> int:
    """Print each attack with its paper and its parameters."""
    from backdoor_audit.attacks import ATTACKS

    del options
    print("\n".join(map(_described, ATTACKS)))
    return 0


def _described(attack: Attack) -> str:
    parameters = ", ".join(f"{entry.name}={getattr(attack, entry.name)!r}" for entry in fields(attack) if entry.repr)
    return f"{attack.name}\n    {attack.paper}\n    {parameters}"
