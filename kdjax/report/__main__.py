"""Compares work directories: `python -m kdjax.report runs/mnist_kd runs/sweep`."""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console

from kdjax.report import compare, study
from kdjax.types import UserError


def main(arguments: Sequence[str]) -> int:
    """Reads, compares, writes a page and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdjax.report", description=__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", type=pathlib.Path)
    parser.add_argument(
        "--against", help="what the others are compared with: 'directory: title'"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("comparison"),
        help="receives report.html, report.json and figures (default: comparison)",
    )
    options = parser.parse_args(arguments)
    try:
        made = compare.build(
            [compare.read(path) for path in options.directories],
            command="python -m kdjax.report " + shlex.join(arguments),
            against=options.against,
        )
        paths = study.write(made, options.out)
    except UserError as error:
        print(f"kdjax.report: {error}", file=sys.stderr, flush=True)
        return 2
    study.print_table(made, Console())
    print(paths[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
