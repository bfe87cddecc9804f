"""Fills the pages from docstrings, configs and README, while MkDocs builds them.

A line `<!-- name: arguments -->` of a page is replaced by what `EXPANSIONS[name]` makes
of the arguments. Needs the package, not MkDocs.
"""

import ast
import html
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdjax import citations, losses, types

ROOT = Path(__file__).parents[1]

NOTE = (
    "Weights are the paper's or those of the code that is named; the text below says "
    "for which form and data. A dash: it names none."
)

# Settings that every term of a config has, or every one of features.
COMMON = ("weight", "standardize", "student_features", "teacher_features")

# Of the papers or, where named, of other code. Each number stands in the docstring,
# which says more.
WEIGHTS = {
    "activation_loss": "0.1",
    "attention_transfer_loss": "500 (authors' code), 1000 (RepDistiller)",
    "batch_norm_statistics_loss": "0.01",
    "byot_feature_loss": "1e-6 times the batch size",
    "byot_loss": "0.1",
    "cat_kd_loss": "15 (CIFAR-100), 0.5 (ImageNet)",
    "correlation_congruence_loss": "0.02 (RepDistiller)",
    "cosine_loss": "1",
    "crd_loss": "0.8",
    "cwd_loss": "10 (MMRazor, detectors)",
    "factor_loss": "500, 200 (RepDistiller)",
    "fsp_loss": "50 (RepDistiller)",
    "hidden_cosine_loss": "1 (DistilBERT)",
    "hint_loss": "100 (RepDistiller)",
    "image_total_variation": "1e-4",
    "information_entropy_loss": "5",
    "mgd_loss": "7e-5",
    "nst_loss": "50",
    "ofd_loss": "1e-3 (CIFAR), 1e-4 (ImageNet)",
    "one_hot_loss": "1",
    "patient_loss": "10, 100, 500 or 1000",
    "pkd_loss": "6",
    "pkt_loss": "30000 (RepDistiller)",
    "review_loss": "5 (CIFAR-100), 1 or 8 (ImageNet)",
    "rkd_angle_loss": "50",
    "rkd_distance_loss": "25",
    "semckd_loss": "400",
    "similarity_preserving_loss": "3000",
    "srrl_loss": "1",
    "standardize_logits": "9",
    "tinybert_attention_loss": "1",
    "tinybert_hidden_loss": "1",
    "tinybert_prediction_loss": "1",
    "uld_loss": "1.5, 1 (authors' code)",
    "vid_loss": "1",
    "wsld_loss": "2.5 (ImageNet), 2.25 (CIFAR-100)",
}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """What MkDocs calls for every page."""

    def expand(match: re.Match[str]) -> str:
        return EXPANSIONS[match[1]](*match[2].split())

    return re.sub(r"^<!-- (\w+):(.*) -->$", expand, markdown, flags=re.M)


def losses_of(*modules: str) -> str:
    """A table of the losses of some modules of `kdjax.losses`, and each in full."""
    names = [name for module in modules for name in public_losses(module)]
    rows = "\n".join(_row(name) for name in names)
    head = "| method | paper | function | published weight |\n|---|---|---|---|"
    return f"{head}\n{rows}\n\n{NOTE}\n\n{_objects('kdjax.losses', names)}"


def methods_of(module: str) -> str:
    """A table of the losses that a config can name, from the table of the builders."""
    table = importlib.import_module(module).LOSSES
    rows = [
        f"| `{name}` | [`{method.fn.__name__}`][kdjax.losses.{method.fn.__name__}] "
        f"| {f'`{method.taps}`' if method.taps else ''} "
        f"| {', '.join(f'`{x}`' for x in method.options() if x not in COMMON)} |"
        for name, method in sorted(table.items())
    ]
    head = "| `loss=` | function | layers | settings |\n|---|---|---|---|"
    return head + "\n" + "\n".join(rows)


def members_of(module: str) -> str:
    """Every public name of a module, in full."""
    return _objects(module, public(module))


def configs_of(folder: str) -> str:
    """The lab notebook of each config: its docstring."""
    return "\n\n".join(
        f"### {folder}/{path.name}\n\n{_fenced('text', _docstring(path))}"
        for path in sorted((ROOT / folder).glob("*.py"))
    )


def source_of(path: str) -> str:
    """A file of the repository, in full."""
    return _fenced("python", (ROOT / path).read_text())


def flags_of(module: str) -> str:
    """A table of the flags that a module defines."""
    from absl import flags

    importlib.import_module(module)
    found = flags.FLAGS.flags_by_module_dict()[module]
    rows = [
        f"| `--{flag.name}` | {html.escape(' '.join((flag.help or '').split()))} |"
        for flag in sorted(found, key=lambda flag: flag.name)
        if "." not in flag.name
    ]
    return "| flag | meaning |\n|---|---|\n" + "\n".join(rows)


def readme_of(*title: str) -> str:
    """A section of the README without its heading; all of it but the title if none."""
    text = (ROOT / "README.md").read_text()
    if title:
        text = re.split(rf"^## {re.escape(' '.join(title))}$", text, flags=re.M)[1]
        text = re.split(r"^## ", text, flags=re.M)[0]
    else:
        text = text.partition("\n")[2]
    text = text.replace("](docs/figures/", "](figures/")
    # Other links into the repository lead nowhere from here.
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)[^)]*\)", _unlinked, text).strip()


EXPANSIONS: dict[str, Callable[..., str]] = {
    "losses": losses_of,
    "members": members_of,
    "methods": methods_of,
    "configs": configs_of,
    "flags": flags_of,
    "readme": readme_of,
    "source": source_of,
}


def public(module: str) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes it defines."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return list(loaded.__all__)
    return [
        name
        for name, x in vars(loaded).items()
        if not name.startswith("_") and getattr(x, "__module__", None) == module
        if inspect.isfunction(x) or inspect.isclass(x)
    ]


def public_losses(module: str) -> list[str]:
    """The names of `kdjax.losses` that one of its modules defines, in its order."""
    names = set(losses.__all__)
    tree = ast.parse((ROOT / "kdjax" / "losses" / f"{module}.py").read_text())
    return [node.name for node in tree.body if getattr(node, "name", None) in names]


def targets() -> dict[str, str]:
    """Where a name in the backticks of a docstring leads, by the name."""
    found: dict[str, str] = {}
    for module in ("metrics", "adapters", "losses"):
        for name in public(f"kdjax.{module}"):
            found[f"{module}.{name}"] = f"kdjax.{module}.{name}"
            found[f"kdjax.{module}.{name}"] = f"kdjax.{module}.{name}"
            if module != "metrics":
                found[name] = f"kdjax.{module}.{name}"
    return found


def _row(name: str) -> str:
    loss = getattr(losses, name)
    summary = (inspect.getdoc(loss) or "").partition("\n")[0].rstrip(".")
    try:
        papers = ", ".join(_paper(key) for key in citations.references(loss))
    except types.UserError:  # A class of what a loss takes has none.
        papers = ""
    return (
        f"| {summary} | {papers} | [`{name}`][kdjax.losses.{name}] | "
        f"{WEIGHTS.get(name, '—')} |"
    )


def _paper(key: str) -> str:
    """First author and year, with a link and the title on hovering."""
    fields = citations.fields(citations.entries()[key])
    authors = [_plain(author) for author in fields["author"].split(" and ")]
    last = authors[0].split(",")[0]
    others = {1: "", 2: f" and {authors[-1].split(',')[0]}"}
    label = f"{last}{others.get(len(authors), ' et al.')} {fields['year']}"
    return f'[{label}]({_address(fields)} "{_plain(fields["title"])}")'


def _address(fields: dict[str, str]) -> str:
    return next(
        address.format(fields[name])
        for name, address in citations.ADDRESSES.items()
        if name in fields
    )


def _plain(text: str) -> str:
    """BibTeX's text without its braces, and with its accents."""
    accents = {r"{\'e}": "é", r"{\"u}": "ü", r"{\"a}": "ä", r"\&": "&"}
    for code, letter in accents.items():
        text = text.replace(code, letter)
    return re.sub("[{}]", "", text)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _objects(module: str, names: list[str]) -> str:
    return "\n\n".join(f"::: {module}.{name}" for name in names)


def _unlinked(match: re.Match[str]) -> str:
    return match[1] if "`" in match[1] else f"`{match[1]}`"
