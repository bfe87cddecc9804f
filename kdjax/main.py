r"""The command line: flags, and how mistakes are told.

Examples:
  python -m kdjax.main --config=configs/digits_kd.py
  python -m kdjax.main --config=configs/cifar_kd.py --config.distill.temperature=8
  python -m kdjax.main --config=configs/cifar_kd.py --stages=cache --verify=1000
  python -m kdjax.main --config=configs/digits_kd.py \
    --sweep=configs/sweeps/temperature_alpha.py
"""

import pathlib
import runpy
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from kdjax import default_config
from kdjax.types import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file, and a variant after a colon."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Receives every result; runs/<config name> by default."
)
_STAGES = flags.DEFINE_list(
    "stages",
    None,
    "Which stages of the recipe to run, such as teacher,cache; all by default.",
)
_VERIFY = flags.DEFINE_integer(
    "verify", 0, "Recompute so many entries of the cache, and print how far they are."
)
_SWEEP = flags.DEFINE_string(
    "sweep", None, "Axes of many students: a file, and a variant after a colon."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only print the plan of a sweep: programs, memory, time."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a run (jax.distributed)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; found by itself on TPU and Slurm."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")


def main(argv: Sequence[str]) -> int:
    """Runs one experiment; returns the exit status."""
    if len(argv) > 1:
        return _complain(f"Expected flags only, got {' '.join(argv[1:])!r}.")
    if _CONFIG.value is None:
        return _complain(
            "Expected --config=FILE, got none: for example "
            "--config=configs/digits_kd.py, which needs no download."
        )
    logging.set_verbosity(logging.WARNING)
    # Late: a mistyped flag is told at once, not after seconds of imports.
    import jax

    from kdjax.recipes import offline, sweep
    from kdjax.training import Interrupted

    if _DISTRIBUTED.value:
        jax.distributed.initialize(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
    workdir = pathlib.Path(_WORKDIR.value or default_workdir())
    try:
        config = _config()
        recipe = _recipe(config)
        experiment = recipe.build(config)
        stages = _STAGES.value or None
        if _DRY_RUN.value:
            sweep.dry_run(experiment)
        else:
            recipe.run(experiment, workdir, stages, command=_command())
        if _VERIFY.value:
            print(offline.verify_cache(experiment, workdir, _VERIFY.value))
    except UserError as error:
        return _complain(str(error))
    except Interrupted as interruption:
        print(f"{interruption} Run the same command to go on.", flush=True)
    if _DISTRIBUTED.value:
        jax.distributed.shutdown()
    return 0


def _config() -> Any:
    """The config, with the axes of --sweep if it is given.

    Raises:
      UserError: if that file is none of axes.
    """
    config = _CONFIG.value
    if _SWEEP.value:
        path, _, variant = _SWEEP.value.partition(":")
        try:
            found = runpy.run_path(path)["get_sweep"](variant)
            config.sweep = default_config.axes(found)
        except Exception as error:  # Whatever a file of the user's may raise.
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                "Expected --sweep to be a file with a function get_sweep(variant) that "
                f"returns values by path, got {_SWEEP.value!r} ({text})."
            ) from error
    return config


def _recipe(config: Any) -> ModuleType:
    """The recipe that the config and the flags ask for.

    Raises:
      UserError: if there is none, or one that a flag is not for.
    """
    from kdjax.recipes import RECIPES, offline, sweep

    recipe = RECIPES.get(config.recipe)
    if recipe is None:
        raise UserError(
            f"Expected config.recipe out of {', '.join(RECIPES)}, got "
            f"{config.recipe!r}."
        )
    if config.sweep:
        recipe = sweep
    if _VERIFY.value and recipe is not offline:
        raise UserError(
            f"Expected --verify with the recipe 'offline' only, which has one "
            f"cache, got {'a sweep' if config.sweep else repr(config.recipe)}."
        )
    if _DRY_RUN.value and recipe is not sweep:
        raise UserError(
            "Expected --dry_run with a sweep, which has a plan, got neither --sweep "
            "nor config.sweep."
        )
    return recipe


def default_workdir() -> pathlib.Path:
    """runs/cifar_kd for configs/cifar_kd.py, runs/cifar_kd-smoke for its variant."""
    flag: Any = flags.FLAGS["config"]
    path, _, variant = flag.config_filename.partition(":")
    names = [pathlib.Path(path).stem, variant]
    if _SWEEP.value:
        path, _, variant = _SWEEP.value.partition(":")
        names += [pathlib.Path(path).stem, variant]
    return pathlib.Path("runs") / "-".join(filter(None, names))


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake is one sentence and exit status 2."""
    try:
        rest = flags.FLAGS(list(argv))
        if flags.FLAGS.config is not None:
            _ = flags.FLAGS.config.seed  # A file that failed to load says so only now.
        return rest
    # The last four are what a config file, or an override of one of its keys, raises.
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as e:
        text = _unknown_field(e, argv) or str(e)
        if "Traceback" in text:  # ml_collections quotes one; its last line says it all.
            text = text.strip().splitlines()[-1]
        sys.exit(_complain(" ".join(text.split())))


def _unknown_field(error: Exception, argv: Sequence[str]) -> str | None:
    """What ml_collections says of an override in one word, as a sentence."""
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    if not isinstance(error, KeyError):
        return None
    name, _, hint = str(error.args[0]).partition("\n")
    name = name.strip("'")
    for flag in (argument.partition("=")[0] for argument in argv):
        if flag.startswith("--config.") and name in flag.split("."):
            return (
                f"Expected fields that the config has, but of {flag} it has no {name}. "
                f"{hint or 'What a config file does not set is added in the file.'}"
            )
    return None


def cli() -> None:
    """The entry point `kdjax`."""
    app.run(lambda argv: sys.exit(main(argv)), flags_parser=parse_flags)


def _command() -> str:
    return "python -m kdjax.main " + shlex.join(sys.argv[1:])


def _complain(sentence: str) -> int:
    print(f"kdjax: {sentence}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    cli()
