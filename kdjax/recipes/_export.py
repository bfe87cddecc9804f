"""The stage `export`: which models of a run become files, and what is said of them."""

import dataclasses
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax import citations, export, fingerprints, measure, metric_writers
from kdjax.checkpoints import BEST_METRIC
from kdjax.data import sources
from kdjax.data.text import Texts
from kdjax.export.files import replacing
from kdjax.networks import Network
from kdjax.recipes.stages import load_variables
from kdjax.types import UserError
from kdjax.workdir import begin, finish, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that a run left.

    Attributes:
      network: of which it is an instance.
      directory: of its training.
      told: sentences on how it was trained, and which one of several it is.
      formats: in which it is written; none: in all that are wanted.
    """

    network: Network
    directory: pathlib.Path
    told: Sequence[str] = ()
    formats: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """What files are compared on.

    Attributes:
      name: of the data set.
      class_names: by label.
      fingerprints: of the train and the test split.
      counts: their examples.
      examples: of both, as many as the settings ask for.
      longest: the most tokens of a text.
      tokenizer: of the `tokenizers` library, where there are tokens.
    """

    name: str
    class_names: tuple[str, ...]
    fingerprints: Mapping[str, str]
    counts: Mapping[str, int]
    examples: Callable[[export.Settings], export.Examples]
    longest: int | None = None
    tokenizer: Any = None


def of_images(train: sources.Source, test: sources.Source) -> Data:
    """Images, spread evenly over the splits: nothing here is random."""

    def examples(settings: export.Settings) -> export.Examples:
        compared = test.take(spread(len(test), settings.test_examples))
        calibration = train.take(spread(len(train), settings.calibration))
        return export.Examples(
            {"images": compared["image"]},
            compared["label"],
            {"images": calibration["image"]},
        )

    return Data(
        test.name,
        test.class_names,
        {"train": train.fingerprint(), "test": test.fingerprint()},
        {"train": len(train), "test": len(test)},
        examples,
    )


def of_texts(name: str, train: Texts, test: Texts, tokenizer: Any) -> Data:
    """Texts, likewise, all padded to the longest of both splits."""
    longest = max(train.tokens.shape[1], test.tokens.shape[1])

    def rows(texts: Texts, most: int) -> dict[str, np.ndarray]:
        made = texts.rows(spread(len(texts), most), longest)
        return {
            "tokens": made["tokens"],
            "mask": made["token_mask"],
            "label": made["label"],
        }

    def examples(settings: export.Settings) -> export.Examples:
        compared = rows(test, settings.test_examples)
        labels = compared.pop("label")
        calibration = rows(train, settings.calibration)
        del calibration["label"]
        return export.Examples(compared, labels, calibration)

    return Data(
        name,
        test.class_names,
        {"train": train.fingerprint(), "test": test.fingerprint()},
        {"train": len(train), "test": len(test)},
        examples,
        longest,
        tokenizer,
    )


def of_windows(name: str, train: np.ndarray, test: np.ndarray, tokenizer: Any) -> Data:
    """Running text, `[N, length + 1]`: each token's label is the one after it."""
    length = test.shape[1] - 1

    def inputs(windows: np.ndarray, most: int) -> dict[str, np.ndarray]:
        tokens = windows[spread(len(windows), most), :-1]
        return {"tokens": tokens, "mask": np.ones(tokens.shape, bool)}

    def examples(settings: export.Settings) -> export.Examples:
        return export.Examples(
            inputs(test, settings.test_examples),
            test[spread(len(test), settings.test_examples), 1:],
            inputs(train, settings.calibration),
        )

    return Data(
        name,
        (),
        {
            "train": fingerprints.fingerprint_tree(train),
            "test": fingerprints.fingerprint_tree(test),
        },
        {"train": len(train), "test": len(test)},
        examples,
        length,
        tokenizer,
    )


def spread(count: int, most: int) -> np.ndarray:
    """At most so many places out of `count`, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int32)


def best_seed(directories: Mapping[int, pathlib.Path]) -> tuple[int, str]:
    """The seed to export, and why: the best on validation after the last epoch."""
    scores = {}
    for seed, directory in directories.items():
        rows = metric_writers.read(directory)
        found = [row[BEST_METRIC] for row in rows if BEST_METRIC in row]
        if found:
            scores[seed] = found[-1]
    if len(scores) < len(directories):
        seed = next(iter(directories))
        return seed, f"Seed {seed}, the first: nothing was held out to choose."
    seed = max(scores, key=lambda one: scores[one])
    return seed, (
        f"Seed {seed}, the best of {len(scores)} on the validation split after the "
        f"last epoch ({100 * scores[seed]:.2f} %)."
    )


def run(
    trained: Mapping[str, Trained],
    data: Data,
    section: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    command: str,
    citation: str,
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
    directory = workdir / "export"
    models = [_model(role, one, data, settings) for role, one in trained.items()]
    digests = {one.role: fingerprints.fingerprint_tree(one.variables) for one in models}
    if begin(directory, {"export": section, **data.fingerprints, **digests}) is None:
        examples = data.examples(settings)
        written = export.write(models, examples, directory, settings)
        if data.tokenizer is not None:
            with replacing(directory / "tokenizer.json") as temporary:
                data.tokenizer.save(str(temporary))
        about = _about(workdir.name, command, data, len(examples.labels), section)
        write_json(directory / "export.json", {"about": about, **written})
        finish(directory, {"files": [one["file"] for one in written["files"]]})
    made = read_json(directory / "export.json") or {}
    export.report(made, _story(trained, digests, data, citation), directory)
    if sentence := export.exceeded(made):
        raise UserError(sentence)


def _about(
    name: str, command: str, data: Data, num_examples: int, section: Mapping[str, Any]
) -> dict[str, Any]:
    """How the figures came about."""
    return {
        "name": name,
        "command": command,
        "dataset": data.name,
        "num_examples": num_examples,
        "versions": measure.versions() | export.versions(),
        "hardware": measure.hardware(),
        "commit": measure.commit(),
        "settings": section,
    }


def _model(
    role: str, one: Trained, data: Data, settings: export.Settings
) -> export.Model:
    variables = load_variables(one.network, one.directory)
    return dataclasses.replace(
        export.of_network(role, one.network, variables, settings.pixels),
        class_names=data.class_names,
        formats=one.formats,
        longest=data.longest,
    )


def _story(
    trained: Mapping[str, Trained],
    digests: Mapping[str, str],
    data: Data,
    citation: str,
) -> export.Story:
    told = {
        role: [*one.told, f"SHA-256 of its variables: `{digests[role]}`."]
        for role, one in trained.items()
    }
    facts = [
        f"* {name.capitalize()}: {data.counts[name]:,} examples of {data.name}, "
        f"fingerprint `{data.fingerprints[name]}`."
        for name in ("train", "test")
    ]
    if data.tokenizer is not None:
        facts.append("* `tokenizer.json` makes tokens of texts.")
    return export.Story(told, ["\n".join(facts)], citation)


def origin(section: Mapping[str, Any], directory: pathlib.Path) -> list[str]:
    """How a model was trained, or where it was imported from.

    Args:
      section: `teacher` or `student`, of the config.
      directory: of its training.
    """
    result = read_json(directory / "result.json") or {}
    path = section.get("pretrained")
    told = [f"Imported from `{path}`."] if path else []
    if not result.get("steps"):
        return told
    train = section["train"]
    rate = train["learning_rate"]
    return [
        *told,
        f"{result['steps']:,} steps, batches of {train['batch_size']}, "
        f"{train['optimizer']['name']}, learning rate {rate['base']:g} "
        f"({rate['schedule']}), in `{directory.name}`.",
    ]


def objective(distill: Mapping[str, Any]) -> str:
    """What a student learned from, of the section `distill`."""
    terms = "".join(
        f"; {name}: {term['loss']}, weight {term['weight']:g}"
        for name, term in distill["terms"].items()
    )
    return (
        "Objective: alpha T² KL(teacher ‖ student) + (1 - alpha) cross-entropy, "
        f"alpha = {distill['alpha']:g}, T = {distill['temperature']:g}{terms}; its "
        "teacher is the one above."
    )


def citation(distill: Mapping[str, Any]) -> str:
    """BibTeX of what the section `distill` uses."""
    return citations.citation(types.SimpleNamespace(terms=distill["terms"]))
