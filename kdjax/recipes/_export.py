"""The stage `export`: which models of a run become files, and what is said of them."""

import dataclasses
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax import citations, export, fingerprints, measure, metric_writers
from kdjax.checkpoints import BEST_METRIC
from kdjax.data import sources
from kdjax.networks import Network
from kdjax.recipes.stages import load_variables
from kdjax.types import UserError, Variables
from kdjax.workdir import begin, finish, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that a run left.

    Attributes:
      network: of which it is an instance.
      directory: of its training.
      note: which one of several it is, and why; a sentence.
      formats: in which it is written; none: in all that are wanted.
    """

    network: Network
    directory: pathlib.Path
    note: str = ""
    formats: tuple[str, ...] = ()


def best_seed(directory: pathlib.Path, seeds: Sequence[int]) -> tuple[int, str]:
    """The seed to export, and why: the best on validation after the last epoch."""
    scores = {}
    for seed in seeds:
        rows = metric_writers.read(directory / f"seed{seed}")
        found = [row[BEST_METRIC] for row in rows if BEST_METRIC in row]
        if found:
            scores[seed] = found[-1]
    if len(scores) < len(seeds):
        return seeds[0], f"Seed {seeds[0]}, the first: nothing was held out to choose."
    seed = max(scores, key=lambda one: scores[one])
    return seed, (
        f"Seed {seed}, the best of {len(seeds)} on the validation split after the last "
        f"epoch ({100 * scores[seed]:.2f} %)."
    )


def run(
    trained: Mapping[str, Trained],
    splits: sources.Splits,
    section: Mapping[str, Any],
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    command: str,
) -> None:
    """Exports the models by role, and reports it; skips what is done.

    Raises:
      UserError: if a file is further off than its format allows, after all is written.
    """
    if jax.process_count() > 1:
        raise UserError(
            "Expected the stage export in one process, got "
            f"{jax.process_count()}: run it by itself, without --distributed."
        )
    settings = export.Settings(**section)
    variables = {
        role: load_variables(one.network, one.directory)
        for role, one in trained.items()
    }
    directory = workdir / "export"
    inputs = _inputs(variables, splits, section)
    if begin(directory, inputs) is None:
        examples = _examples(splits, settings)
        models = [
            dataclasses.replace(
                export.of_network(role, one.network, variables[role], settings.pixels),
                class_names=splits.test.class_names,
                formats=one.formats,
            )
            for role, one in trained.items()
        ]
        written = export.write(models, examples, directory, settings)
        about = {
            "name": workdir.name,
            "command": command,
            "dataset": splits.test.name,
            "num_examples": len(examples.labels),
            "versions": measure.versions() | export.versions(),
            "hardware": measure.hardware(),
            "commit": measure.commit(),
            "settings": section,
        }
        write_json(directory / "export.json", {"about": about, **written})
        finish(directory, {"files": [one["file"] for one in written["files"]]})
    made = read_json(directory / "export.json") or {}
    export.report(made, _story(trained, variables, config, splits), directory)
    if sentence := export.exceeded(made):
        raise UserError(sentence)


def _inputs(
    variables: Mapping[str, Variables],
    splits: sources.Splits,
    section: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "export": section,
        "train": splits.train.fingerprint(),
        "test": splits.test.fingerprint(),
    } | {role: fingerprints.fingerprint_tree(some) for role, some in variables.items()}


def _examples(splits: sources.Splits, settings: export.Settings) -> export.Examples:
    """Spread evenly over the splits, and no others: nothing here is random."""
    test = splits.test.take(spread(len(splits.test), settings.test_examples))
    train = splits.train.take(spread(len(splits.train), settings.calibration))
    return export.Examples(
        {"images": test["image"]}, test["label"], {"images": train["image"]}
    )


def spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int32)


def _story(
    trained: Mapping[str, Trained],
    variables: Mapping[str, Variables],
    config: Mapping[str, Any],
    splits: sources.Splits,
) -> export.Story:
    told = {}
    for role, one in trained.items():
        digest = fingerprints.fingerprint_tree(variables[role])
        told[role] = [
            *_origin(role, one, config),
            *filter(None, [one.note]),
            f"SHA-256 of its variables: `{digest}`.",
        ]
    data = [
        f"* {name}: {len(split):,} examples of {split.name}, fingerprint "
        f"`{split.fingerprint()}`."
        for name, split in (("Train", splits.train), ("Test", splits.test))
    ]
    return export.Story(told, ["\n".join(data)], _citation(config))


def _origin(role: str, one: Trained, config: Mapping[str, Any]) -> list[str]:
    """How a model was trained, or where it was imported from."""
    section = config["teacher" if role == "teacher" else "student"]
    result = read_json(one.directory / "result.json") or {}
    path = section.get("pretrained")
    told = [f"Imported from `{path}`."] if path else []
    if not result.get("steps"):
        return told
    train = section["train"]
    rate = train["learning_rate"]
    told.append(
        f"{result['steps']:,} steps, batches of {train['batch_size']}, "
        f"{train['optimizer']['name']}, learning rate {rate['base']:g} "
        f"({rate['schedule']}), in `{one.directory.name}`."
    )
    if role != "teacher":
        distill = config["distill"]
        told.append(
            f"Objective: alpha T² KL(teacher ‖ student) + (1 - alpha) cross-entropy, "
            f"alpha = {distill['alpha']:g}, T = {distill['temperature']:g}"
            + "".join(
                f"; {name}: {term['loss']}, weight {term['weight']:g}"
                for name, term in distill["terms"].items()
            )
            + "; its teacher is the one above."
        )
    return told


def _citation(config: Mapping[str, Any]) -> str:
    return citations.citation(types.SimpleNamespace(terms=config["distill"]["terms"]))
