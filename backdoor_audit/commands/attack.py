"""``backdoor-audit attack``: a backdoored copy of a model, for trying a gate."""

from __future__ import annotations

import argparse

from backdoor_audit.commands.arguments import (
    argument,
    declare_data,
    declare_force,
    declare_out,
    declare_reading,
    declare_seed,
)

NAME = "attack"
HELP = "make a backdoored copy of a model, or train one from scratch, for trying a gate"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    from backdoor_audit.model.networks import NETWORKS
    from backdoor_audit.option_texts import whole_number
    from backdoor_audit.triggers.label_rule import RULES

    number = argument(whole_number(0))
    parser.description = (
        "Plant a known backdoor in a copy of MODEL, or in a new network of that architecture, prove it on held-out "
        "images, and write model, attack and (for patches and blends) trigger. MODEL itself is not changed."
    )
    parser.add_argument("model", metavar="MODEL|ARCH", help=f"model file, or a network to train: {', '.join(NETWORKS)}")
    declare_data(parser)
    parser.add_argument(
        "--attack", required=True, metavar="NAME", help="name of the attack; see `backdoor-audit attacks`"
    )
    declare_out(parser, "where to write the model (safetensors)")
    parser.add_argument("--target", type=number, metavar="N", help="target class (default: 0)")
    parser.add_argument("--rule", choices=sorted(RULES), help="label rule (default: the attack's own)")
    parser.add_argument("--source", type=number, action="append", metavar="N", help="source class; may be repeated")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the attack, e.g. size=4 or pattern=noise; may be repeated",
    )
    declare_seed(parser)
    parser.add_argument(
        "--epochs", type=number, default=5, metavar="N", help="epochs of training (default: %(default)s)"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=0.03, metavar="X", help="of training (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=number, default=64, metavar="N", help="images in a step of training (default: %(default)s)"
    )
    parser.add_argument(
        "--optimizer", choices=("sgd", "adamw"), default="sgd", help="of training (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="share of the images to prove it on (default: 0.2)"
    )
    declare_force(parser, "replace files that exist")
    declare_reading(parser, without=("max_images",))  # all are used


def run(options: argparse.Namespace) -> int:
    """Plant the attack, write model, attack and trigger, and print what was measured on held-out images.

    Raises `AuditError` for wrong input, and if the attack did not implant; then nothing is written.
    """
    from backdoor_audit.commands.planting import plant

    plant(options)
    return 0
