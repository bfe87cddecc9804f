"""Forgets a cache's damaged shards: `python -m kdjax.teacher_cache repair PATH`."""

import sys
from collections.abc import Sequence

from kdjax import teacher_cache
from kdjax.types import UserError


def main(arguments: Sequence[str]) -> int:
    """Repairs one cache; returns the exit status."""
    try:
        if len(arguments) != 2 or arguments[0] != "repair":
            raise UserError("Expected `repair PATH`, got " + repr(" ".join(arguments)))
        for shard in (bad := teacher_cache.repair(arguments[1])):
            print(f"Dropped the shard of {shard}.")
    except UserError as error:
        print(f"kdjax: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(bad)} bad shards. Run the cache stage (--stages=cache) to complete it."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
