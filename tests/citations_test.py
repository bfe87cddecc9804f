"""Every loss knows its papers, and the one file of papers is sound BibTeX."""

import inspect
import pathlib
import re
import subprocess
import sys
from importlib import import_module, resources

import pytest

import kdjax
from kdjax import builders, citations, default_config, losses, metrics
from kdjax.types import UserError

PACKAGE = pathlib.Path(kdjax.__file__).parent
PUBLIC = [x for x in map(losses.__dict__.get, losses.__all__) if inspect.isfunction(x)]

# What an entry must have, by its type, besides an address.
REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title", "year"},
}


def _text():
    return (resources.files("kdjax") / "citations.bib").read_text(encoding="utf-8")


def _parsed(text):
    """(type, key, fields) of each entry: character by character, counting braces."""
    position = 0
    while (start := text.find("@", position)) >= 0:
        kind, position = text[start + 1 : (brace := text.index("{", start))], brace + 1
        depth, parts, part = 1, [], ""
        while depth:
            letter, position = text[position], position + 1
            depth += (letter == "{") - (letter == "}")
            if letter == "," and depth == 1:
                parts, part = [*parts, part.strip()], ""
            elif depth:
                part += letter
        assert not part.strip()
        pairs = [field.split(" = ", 1) for field in parts[1:]]
        assert all(value[0] == "{" and value[-1] == "}" for _, value in pairs)
        assert len({name for name, _ in pairs}) == len(pairs)
        yield kind, parts[0], {name: value[1:-1] for name, value in pairs}


def test_the_file_is_bibtex():
    text = _text()
    parsed = list(_parsed(text))
    assert text.isascii()
    assert len(parsed) == text.count("@") > 70
    for kind, key, fields in parsed:
        assert REQUIRED[kind] <= fields.keys(), key
        assert re.fullmatch(r"(19|20)\d\d", fields["year"]), key
        assert fields["year"] in key, key
        assert citations.ADDRESSES.keys() & fields.keys(), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "1503.02531")), key
        assert ("eprint" in fields) == (fields.get("archiveprefix") == "arXiv"), key


def test_a_key_a_title_and_an_address_have_one_entry():
    parsed = list(_parsed(_text()))
    addresses = [
        fields[name]
        for _, _, fields in parsed
        for name in citations.ADDRESSES
        if name in fields
    ]
    for names in (
        [key for _, key, _ in parsed],
        [re.sub("[{}]", "", fields["title"]).lower() for _, _, fields in parsed],
        addresses,
    ):
        assert len(names) == len(set(names))


def test_entries_are_those_of_an_independent_parser():
    parsed = {key: fields for _, key, fields in _parsed(_text())}
    entries = citations.entries()
    assert {key: citations.fields(entry) for key, entry in entries.items()} == parsed


@pytest.mark.parametrize("loss", PUBLIC, ids=lambda loss: loss.__name__)
def test_every_public_loss_has_its_papers(loss):
    entries = citations.entries()
    keys = citations.references(loss)
    assert keys
    assert citations.citation(loss) == "\n\n".join(entries[key] for key in keys)
    assert citations.citation(loss.__name__) == citations.citation(loss)


def test_every_address_in_a_section_of_references_has_an_entry():
    """Also those of adapters, metrics, schedules and of what is yet to be exported."""
    known = citations._keys_of_addresses()
    unknown = {
        f"{path.relative_to(PACKAGE)}: {address}"
        for path in PACKAGE.rglob("*.py")
        for section in re.findall(r'\n +References:\n(.*?)"""', path.read_text(), re.S)
        for address in re.findall(r"<(https?://[^>\s]+)>`_", section)
        if address not in known
    }
    assert not unknown


@pytest.mark.parametrize("name", builders.LOSSES)
def test_every_loss_of_a_config_is_cited(name):
    distill = default_config.get_config().distill
    distill.terms = {"more": {"loss": name, "weight": 1.0}}
    cited = citations.citation([losses.soft_target_loss, builders.LOSSES[name].fn])
    assert citations.citation(distill) == cited


def test_of_a_config_hinton_comes_first_and_every_paper_once():
    config = default_config.get_config()
    assert kdjax.citation(config) == citations.entries()["hinton2015distilling"]
    config.distill.terms = {
        "a": {"loss": "dkd", "weight": 1.0, "standardize": True},
        "b": {"loss": "logit_matching", "weight": 1.0},
        "c": {"loss": "dkd", "weight": 2.0},
    }
    keys = re.findall(r"^@\w+\{(.+),$", kdjax.citation(config.distill), re.M)
    assert keys == [
        "hinton2015distilling",
        "zhao2022dkd",
        "sun2024standardization",
        "ba2014deep",
    ]
    assert kdjax.citation(config) == kdjax.citation(config.distill)


def test_names_functions_and_mixtures_of_both():
    both = citations.citation(["dkd_loss", losses.dkd_loss, metrics.agreement])
    keys = ("zhao2022dkd", "stanton2021does")
    assert both == "\n\n".join(citations.entries()[key] for key in keys)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("dkd_los", r"got 'dkd_los'\. Did you mean dkd_loss or "),
        (["soft_target_loss", "zzzzzz"], r"got 'zzzzzz'\.$"),
        (["__name__"], "got '__name__'"),
        (lambda: None, "docstring of <lambda>, got none"),
    ],
)
def test_mistakes_are_one_sentence(objective, words):
    with pytest.raises(UserError, match=words) as raised:
        citations.citation(objective)
    assert str(raised.value).startswith("Expected ")


def test_a_mistake_in_a_config_is_one_sentence():
    distill = default_config.get_config().distill
    distill.terms = {"more": {"loss": "dkdd", "weight": 1.0}}
    with pytest.raises(UserError, match=r"^Expected a loss, got 'dkdd'\. Did you mean"):
        citations.citation(distill)


def test_a_paper_without_an_entry_is_named():
    def loss():
        """A loss.

        References:
          Nobody, `Nothing <https://arxiv.org/abs/0000.00000>`_, 2026.
        """

    with pytest.raises(UserError, match=r"loss .* got https://arxiv.org/abs/0000.0000"):
        citations.references(loss)


def test_importing_the_package_imports_nothing():
    code = (
        "import sys, kdjax\n"
        "assert not {'jax', 'numpy', 'kdjax.citations'} & set(sys.modules)\n"
        "try: kdjax.nonsense\n"
        "except AttributeError as error: assert 'nonsense' in str(error)\n"
        "else: raise SystemExit('expected an AttributeError')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert kdjax.citation is import_module("kdjax.citations").citation
