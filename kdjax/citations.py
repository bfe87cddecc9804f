"""The papers behind a config or a list of losses, as BibTeX.

`citations.bib`, beside this module, holds the papers; which of them a function
implements is in the References section of its docstring, and nowhere else.
"""

import difflib
import importlib.resources
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kdjax import losses
from kdjax.types import UserError

# Where an identifying field of an entry points, as docstrings write it.
ADDRESSES = {
    "eprint": "https://arxiv.org/abs/{}",
    "doi": "https://doi.org/{}",
    "url": "{}",
}


def citation(objective: Any) -> str:
    """BibTeX of the papers that an objective comes from.

    Of a config: Hinton's, of the soft term and of the sum of two terms, and those of
    every further term. Of losses: those of each.

    Args:
      objective: a config, or its section `distill`; or a loss of `kdjax.losses`, by
        its name or itself; or several of them. Whatever else has a docstring with a
        section References will do: an adapter, a metric.

    Returns:
      The entries, in the order of the objective and each one once, with an empty
      line between two.

    Raises:
      UserError: if a name is that of no loss, or a docstring refers to no paper.

    Examples:
      >>> import kdjax
      >>> print(kdjax.citation(["soft_target_loss"]))
      @misc{hinton2015distilling,
        author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
        title = {Distilling the Knowledge in a Neural Network},
        year = {2015},
        eprint = {1503.02531},
        archiveprefix = {arXiv},
      }
      >>> from kdjax import default_config
      >>> distill = default_config.get_config().distill
      >>> distill.terms.relations = {"loss": "dist", "weight": 2.0}
      >>> entries = kdjax.citation(distill).split("\\n\\n")
      >>> [entry.partition(",")[0] for entry in entries]
      ['@misc{hinton2015distilling', '@inproceedings{huang2022dist']
    """
    papers = entries()
    keys: dict[str, None] = {}
    for fn in _functions(objective):
        keys |= dict.fromkeys(references(fn))
    return "\n\n".join(papers[key] for key in keys)


def references(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Keys of the papers that a docstring refers to, in its order.

    Args:
      fn: what has the docstring: a loss, an adapter, a metric.

    Returns:
      Keys of `entries`.

    Raises:
      UserError: if the docstring refers to no paper, or to one without an entry.

    Examples:
      >>> from kdjax import citations, losses
      >>> citations.references(losses.logit_matching_loss)
      ('ba2014deep', 'hinton2015distilling')
    """
    name = getattr(fn, "__name__", repr(fn))
    _, _, section = (inspect.getdoc(fn) or "").partition("\nReferences:\n")
    addresses = re.findall(r"<(https?://[^>\s]+)>", section)
    if not addresses:
        raise UserError(
            f"Expected a section References with the address of a paper in the "
            f"docstring of {name}, got none."
        )
    keys = _keys_of_addresses()
    if unknown := [address for address in addresses if address not in keys]:
        raise UserError(
            f"Expected {name} to refer to papers of citations.bib, got "
            f"{', '.join(unknown)}: add an entry with that eprint, doi or url."
        )
    return tuple(dict.fromkeys(keys[address] for address in addresses))


def entries() -> dict[str, str]:
    """Every paper of `citations.bib`, as written there, by its key.

    Examples:
      >>> from kdjax import citations
      >>> print(citations.entries()["kim2018factor"].splitlines()[0])
      @inproceedings{kim2018factor,
    """
    path = importlib.resources.files("kdjax") / "citations.bib"
    text = path.read_text(encoding="utf-8")
    # An entry ends at the first brace that begins a line.
    found = re.finditer(r"^@\w+\{(.+?),\n.*?^\}", text, re.M | re.S)
    return {entry[1]: entry[0] for entry in found}


def fields(entry: str) -> dict[str, str]:
    """The fields of an entry, without the braces around each.

    Examples:
      >>> from kdjax import citations
      >>> citations.fields(citations.entries()["jin2023mlkd"])["title"]
      'Multi-Level Logit Distillation'
    """
    return dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.M))


def _keys_of_addresses() -> dict[str, str]:
    return {
        address.format(value): key
        for key, entry in entries().items()
        for name, value in fields(entry).items()
        if (address := ADDRESSES.get(name))
    }


def _functions(objective: Any) -> list[Callable[..., Any]]:
    """What an objective is made of, in its order."""
    if isinstance(objective, str) or callable(objective):
        return [_function(objective)]
    distill = getattr(objective, "distill", objective)
    if hasattr(distill, "terms"):
        found = [losses.soft_target_loss, *_functions_of_terms(distill.terms)]
        for stage in ("general", "layers"):  # Of the recipe 'encoders'.
            earlier = getattr(getattr(objective, "encoders", None), stage, None)
            found += _functions_of_terms(getattr(earlier, "terms", {}))
        return found
    return [_function(loss) for loss in objective]


def _functions_of_terms(terms: Any) -> Iterator[Callable[..., Any]]:
    # Late: it imports all of the package.
    from kdjax.builders import LOSSES

    for term in terms.values():
        name = term["loss"]
        if name not in LOSSES:
            raise UserError(_unknown("loss", name, LOSSES))
        yield LOSSES[name].fn
        if term.get("standardize", False):
            yield losses.standardize_logits


def _function(loss: Any) -> Callable[..., Any]:
    """A loss, which may be given by its name."""
    if not isinstance(loss, str):
        return loss
    if loss not in losses.__all__:
        raise UserError(_unknown("name of kdjax.losses", loss, losses.__all__))
    return getattr(losses, loss)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"Expected a {kind}, got {name!r}.{hint}"
