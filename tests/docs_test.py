"""The pages: every public name has its place, and docstrings become Markdown."""

import doctest
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from kdjax import adapters, citations, losses, metrics

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def _load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, markup = _load("hooks"), _load("markup")


def _pages():
    return {page: hooks.on_page_markdown(page.read_text()) for page in PAGES}


def test_every_public_name_is_on_one_page():
    names = re.findall(r"^::: (kdjax\.\w+\.\w+)$", "\n".join(_pages().values()), re.M)
    assert len(names) == len(set(names))
    for module in (losses, adapters):
        expected = {f"{module.__name__}.{name}" for name in module.__all__}
        assert expected == {n for n in names if n.startswith(module.__name__ + ".")}
    assert {f"kdjax.metrics.{name}" for name in hooks.public("kdjax.metrics")} < {
        *names
    }
    assert {"agreement", "accuracy"} <= {*hooks.public(metrics.__name__)}


def test_every_page_is_in_the_navigation_and_leaves_no_marker():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page, text in _pages().items():
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation
        assert "<!--" not in text, page
        assert text.startswith("# ")
        assert text.count("```") % 2 == 0


def test_links_between_pages_lead_somewhere():
    pages = _pages()
    for page, text in pages.items():
        for path, anchor in re.findall(r"\]\(([\w./]+\.md)(?:#([\w-]+))?\)", text):
            target = (page.parent / path).resolve()
            headings = re.findall(r"^#+ (.*)$", pages[target], re.M)
            slugs = {
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            }
            assert not anchor or anchor in slugs, (page, anchor)


def test_the_table_of_a_family_has_method_paper_function_and_weight():
    table = hooks.losses_of("_batch_relations").splitlines()
    assert table[0] == "| method | paper | function | published weight |"
    assert table[2] == (
        "| Correlations of probabilities, over the classes and over the batch | [Huang "
        'et al. 2022](https://arxiv.org/abs/2205.10536 "Knowledge Distillation from A '
        'Stronger Teacher") | [`dist_loss`][kdjax.losses.dist_loss] | — |'
    )
    assert table[3].startswith("| Divergences and Gram matrices of predictions")
    assert hooks.losses_of("_contrastive").count("\n::: ") == 1
    assert "| [`pkd_loss`][kdjax.losses.pkd_loss] | 6 |" in hooks.losses_of("_channels")


def test_papers_have_their_letters():
    labels = {key: hooks._paper(key) for key in citations.entries()}
    assert not [label for label in labels.values() if re.search(r"[{}\\]", label)]
    assert labels["ba2014deep"].startswith("[Ba and Caruana 2014](")
    assert labels["huang2017nst"].startswith("[Huang and Wang 2017](")
    assert labels["touvron2021deit"].startswith("[Touvron et al. 2021](")
    assert labels["jeffreys1946invariant"].startswith("[Jeffreys 1946](https://doi.org")


@pytest.mark.parametrize("name", hooks.WEIGHTS)
def test_published_weights_stand_in_the_docstring(name):
    docstring = getattr(losses, name).__doc__
    weights = re.sub(r"CIFAR-100|\(.*?\)", "", hooks.WEIGHTS[name])
    numbers = re.findall(r"[\d.]+(?:e-?\d+)?", weights)
    assert numbers
    for number in numbers:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", docstring), number


def test_a_block_of_math_becomes_a_block():
    text = "Before:\n\n.. math::\n  \\ell = a\n    + b\n\nAfter `x`.\n"
    assert markup.to_markdown(text) == (
        "Before:\n\n$$\n\\ell = a\n+ b\n$$\n\nAfter `x`.\n"
    )


def test_math_on_the_line_of_its_directive_and_at_the_end():
    assert markup.to_markdown(".. math:: x_1") == "$$\nx_1\n$$\n\n"
    assert markup.to_markdown(".. math::\n\n  x_1\n") == "$$\nx_1\n$$\n\n"


def test_indented_math_stays_in_its_paragraph():
    text = "Args:\n  x: a number:\n\n    .. math:: x^2\n\n    positive.\n"
    assert markup.to_markdown(text) == (
        "Args:\n  x: a number:\n\n    $$\n    x^2\n    $$\n\n    positive.\n"
    )


def test_math_in_a_line_may_break_over_two():
    text = "With :math:`P = \\mathrm{softmax}\n(z / \\tau)`, and :math:`M_{i*}`."
    assert markup.to_markdown(text) == (
        "With \\(P = \\mathrm{softmax} (z / \\tau)\\), and \\(M_{i*}\\).\n"
    )


def test_links_roles_and_names():
    text = "`A\nTitle <https://a.org/b_c>`_ of :class:`~a.B`, `f` and `g`, ``h``."
    assert markup.to_markdown(text, {"f": "kdjax.f"}) == (
        "[A Title](https://a.org/b_c) of `a.B`, [`f`][kdjax.f] and `g`, ``h``.\n"
    )


def test_the_examples_of_the_conversion_run():
    assert doctest.testmod(markup) == (0, 2)


def test_formulas_are_found_again():
    markdown = markup.to_markdown("Of :math:`a`:\n\n.. math::\n  b\n  c\n\nEnd.\n")
    assert markup.formulas(markdown) == ["a", "b\nc"]


@pytest.mark.parametrize(
    "module", [losses, adapters, metrics], ids=lambda m: m.__name__
)
def test_no_rst_is_left_and_every_brace_is_closed(module):
    for name in hooks.public(module.__name__):
        markdown = markup.to_markdown(getattr(module, name).__doc__ or "", {})
        assert not re.search(r":math:|\.\. math|>`_", markdown), name
        for formula in markup.formulas(markdown):
            braces = re.sub(r"\\[{}]", "", formula)
            assert braces.count("{") == braces.count("}"), (name, formula)
            assert formula.count(r"\left") - formula.count(r"\leftarrow") == (
                formula.count(r"\right") - formula.count(r"\rightarrow")
            ), (name, formula)


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'class="arithmatex"' in (tmp_path / "losses" / "logits.html").read_text()
