"""Arguments that the benchmarks on zoo subjects share."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes a benchmark by the docstring of its module and knows where the data is."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    return parser


def add_half(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--half``, the half of the zoo that is asked about."""
    parser.add_argument("--half", choices=("development", "report"), default=default)


def add_jobs(parser: argparse.ArgumentParser, what: str = "subjects") -> None:
    """Add ``--jobs``, how many are worked on at a time."""
    parser.add_argument("--jobs", type=int, default=1, help=f"{what} at a time, one thread each (default: 1)")
