"""``backdoor-audit fleet``: many models through the gate, here, on a cluster, or in shares of a job array."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from backdoor_audit import cores
from backdoor_audit.commands.arguments import argument, help_of, path
from backdoor_audit.errors import OptionError
from backdoor_audit.files import obstacle
from backdoor_audit.printable import printable

if TYPE_CHECKING:
    from backdoor_audit.fleet.depends import Common
    from backdoor_audit.fleet.gate import Order
    from backdoor_audit.fleet.models import Model
    from backdoor_audit.fleet.outcome import Row
    from backdoor_audit.fleet.pools import Pool
    from backdoor_audit.fleet.results import Manifest, Results

NAME = "fleet"
HELP = "audit many models, each by the gate in a process of its own, and rank them on one page"
NOT_ALL_PASS = 1

_ITS_OWN = re.compile(r"--(?:audit-)?(?:model|data|report|update[-_]baseline)(?:=|$)|--audit$")
"""Options of the gate that the fleet gives itself, or that cannot be the same for all models."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    from backdoor_audit.option_texts import duration, whole_number

    count = argument(whole_number(1))
    parser.usage = (
        "backdoor-audit fleet [-h] MODEL [MODEL ...] --data SOURCE --out PLACE [options] [-- option of the gate ...]\n"
        "       backdoor-audit fleet --from PLACE"
    )
    parser.description = (
        "Audit every MODEL (a file, a Hugging Face folder, or a folder of them) "
        "as `pytest --model` does, and keep the evidence in PLACE, a "
        "folder or an address of fsspec. What is behind -- goes to every gate. Finished audits of the same file, images and "
        "options are not done again, unless --arch names code of your own or pickles may run it. "
        "Exit code 0 only if every model passed."
    )
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="model, or a folder of them")
    parser.add_argument("--data", type=os.path.expanduser, metavar="SOURCE", help=help_of("data"))
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        metavar="PLACE",
        help="where to keep the evidence: a folder, or an address as s3://...",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=os.path.expanduser,
        metavar="PLACE",
        help="audit nothing: draw the page of what is there",
    )
    parser.add_argument("--jobs", type=count, metavar="N", help="models at once (default: 1; with --address all)")
    parser.add_argument("--shard", type=argument(_shard), metavar="I/N", help="the I-th of N shares of the models only")
    parser.add_argument(
        "--cache",
        type=path,
        default=Path(".pytest_cache"),
        metavar="DIR",
        help="finished work that all share, above all reference models (default: %(default)s)",
    )
    parser.add_argument(
        "--retries",
        type=argument(whole_number(0)),
        default=2,
        metavar="N",
        help="how often to begin again when a process, worker or machine is lost (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit",
        type=argument(duration),
        default=0.0,
        metavar="TIME",
        help="end the gate of a model after this time: 30m, 2h (default: no bound)",
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="run on this Ray cluster: auto, host:port, or local for one of its own"
    )
    parser.add_argument(
        "--cpus-per-model", type=argument(_share), default=1.0, metavar="X", help="of a Ray task (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-model",
        type=argument(_share),
        default=0.0,
        metavar="X",
        help="GPUs of a model, or a share of one as 0.5 (default: as the machine has them; with --address none)",
    )


def run(options: argparse.Namespace) -> int:
    """Audit the fleet and draw its page; 0 only if every model passed. Raises `AuditError` for wrong input."""
    from backdoor_audit.fleet.depends import BEHIND
    from backdoor_audit.fleet.models import PAGE
    from backdoor_audit.fleet.results import results_at
    from backdoor_audit.option_texts import expanded

    if options.source is not None:
        if options.models or options.data or options.out or options.shard:
            raise OptionError("--from draws what is there; leave out models, --data, --out and --shard")
        results = results_at(options.source)
        manifest = results.manifest()
        if manifest is None or not manifest.models:
            raise OptionError(
                f"--from: {results} holds no fleet; give the place that `backdoor-audit fleet --out` wrote to"
            )
        return _summed_up(results, manifest, manifest.models, drawn=True)
    if not options.models or not options.data or not options.out:
        raise OptionError(
            "fleet: models, --data=SOURCE and --out=PLACE are needed; or --from=PLACE to draw the page again"
        )
    refused = [text for text in expanded(options.passed_on, BEHIND) if _ITS_OWN.match(text)]
    if refused:
        raise OptionError(f"{refused[0]} behind --: the fleet gives model, data and report to every gate itself")
    if "://" not in options.out and (found := obstacle(Path(options.out))):
        raise OptionError(f"--out: {options.out} {found}; give a folder that exists, or a new one in a folder")
    results = results_at(options.out)
    manifest, mine, common = _planned(options, results)
    with _ended_by_signals():
        try:
            if _audit(options, results, manifest, mine, common.own_code):
                manifest = _compared(options, results, manifest, common)
        except KeyboardInterrupt:
            print("interrupted; finished audits are kept: the same command goes on", file=sys.stderr)
            return NOT_ALL_PASS
    if options.shard:
        # once more, as another share may have begun at the same moment
        results.write_manifest(_beside_other_shares(results, manifest))
        print(
            printable(f"one share of {options.shard[1]}; draw {PAGE} with: backdoor-audit fleet --from {options.out}")
        )
    return _summed_up(results, manifest, mine, drawn=not options.shard)


def _planned(options: argparse.Namespace, results: Results) -> tuple[Manifest, tuple[Model, ...], Common]:
    """The whole fleet, the models of this share, and what all audits depend on; written down before the first one."""
    from backdoor_audit.fleet.models import listed, share
    from backdoor_audit.fleet.results import Manifest

    models = listed(options.models)
    mine = share(models, *options.shard) if options.shard else models
    if not mine:
        number, shares = options.shard
        raise OptionError(
            f"--shard: share {number} of {shares} is empty, of {len(models)} models; ask for fewer shares"
        )
    if not options.data.startswith("torchvision:") and not os.path.exists(options.data):
        raise OptionError(f"--data: {options.data} does not exist; give a folder of class folders, or a file")
    found = _common(options)
    manifest = Manifest(settings=found.settings, data=options.data, models=models)
    if options.shard:
        manifest = _beside_other_shares(results, manifest)
    results.write_manifest(manifest)
    return manifest, mine, found


def _beside_other_shares(results: Results, manifest: Manifest) -> Manifest:
    """The fleet with the models that other shares of it have named: those that this one does not find were to be audited too."""
    earlier = results.manifest()
    if earlier is None or earlier.settings != manifest.settings:
        return manifest
    known = {model.name for model in manifest.models}
    more = tuple(model for model in earlier.models if model.name not in known)
    if more:
        names = ", ".join(model.name for model in more[:5])
        print(
            printable(f"{len(more)} models of other shares are not among those here ({names}): they stay in the fleet")
        )
    return replace(manifest, models=(*manifest.models, *more))


def _common(options: argparse.Namespace) -> Common:
    from backdoor_audit.fleet.depends import common
    from backdoor_audit.source import code_fingerprint

    return common(options.data, options.passed_on, code_fingerprint())


def _compared(options: argparse.Namespace, results: Results, manifest: Manifest, before: Common) -> Manifest:
    """The fleet as it is to be judged: where images or settings were changed meanwhile, no audit stands for them."""
    now = _common(options)
    if now.unwritten == before.unwritten:
        return manifest
    print("images, options or code were changed while models were audited: the same command audits them again")
    changed = replace(manifest, settings=now.settings)
    results.write_manifest(changed)
    return changed


def _audit(
    options: argparse.Namespace, results: Results, manifest: Manifest, models: tuple[Model, ...], own_code: str
) -> bool:
    """Audit what is not done yet; whether there was something."""
    from backdoor_audit.fleet.depends import key
    from backdoor_audit.fleet.driving import Drive
    from backdoor_audit.fleet.gate import order_for
    from backdoor_audit.fleet.outcome import finished
    from backdoor_audit.fleet.table import shown_on

    keys = {model.name: key(model, manifest.settings) for model in models}
    left = [model for model in models if not finished(results.job(model.name), keys[model.name], results)]
    if len(left) < len(models) and own_code:
        print(printable(f"{own_code} runs code of your own, which may have changed: finished audits are done again"))
        left = list(models)
    elif len(left) < len(models):
        print(f"{len(models) - len(left)} of {len(models)} models are audited already")
    if not left:
        return False
    pool = _pool(options, len(left))
    threads = {} if options.address else {"OMP_NUM_THREADS": str(max(1, cores.available() // pool.places))}

    def order(model: Model) -> Order:
        return order_for(
            model.file,
            options.data,
            cache=options.cache,
            options=options.passed_on,
            environment={name: os.environ.get(name, value) for name, value in threads.items()},
            time_limit=options.time_limit,
        )

    drive = Drive(results, keys, manifest.settings, order, options.retries, shown_on(sys.stdout, len(left)))
    try:
        drive(left, pool)
    finally:
        pool.stop()
    return True


def _pool(options: argparse.Namespace, models: int) -> Pool:
    from backdoor_audit.fleet.pools import Processes, Ray, dealt, visible_gpus

    if options.address:
        places = min(options.jobs or models, models)
        return Ray(options.address, places=places, cpus=options.cpus_per_model, gpus=options.gpus_per_model)
    places = min(options.jobs or 1, models)
    gpus = dealt(places, options.gpus_per_model, visible_gpus()) if options.gpus_per_model else ()
    return Processes(places, gpus)


def _summed_up(results: Results, manifest: Manifest, models: tuple[Model, ...], *, drawn: bool) -> int:
    from backdoor_audit.evidence import Verdict
    from backdoor_audit.fleet.models import PAGE
    from backdoor_audit.fleet.outcome import rows_of
    from backdoor_audit.fleet.page import page
    from backdoor_audit.fleet.table import told

    rows: list[Row] = rows_of(results, manifest, models)
    for row in rows:
        print(told(row))
    if drawn:
        results.write(PAGE, page(rows, data=manifest.data).encode("utf-8", "backslashreplace"))
        print(printable(f"written: {str(results).rstrip('/')}/{PAGE}"))
    return 0 if all(row.state == Verdict.PASS.value for row in rows) else NOT_ALL_PASS


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, so that no gate is left behind."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shard(text: str) -> tuple[int, int]:
    number, _, shares = text.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares)):
        raise ValueError("must be I/N with I from 1 to N")
    return int(number), int(shares)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1024:
        raise ValueError("must be a number from 0 to 1024")
    return value
