"""From the reStructuredText of docstrings to the Markdown of pages."""

import re
from collections.abc import Mapping

_MATH = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n| *\n)*)",
    re.M,
)
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_LINK = re.compile(r"`([^`<]+?)\s*<([^>`\s]+)>`_")
_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")
_CODE = re.compile(r"(?<![`\[])`([\w.]+)`(?![`\]])")


def to_markdown(text: str, targets: Mapping[str, str] | None = None) -> str:
    r"""Formulas, links and names of a docstring as Markdown understands them.

    Args:
      text: a docstring, without its indentation.
      targets: what a name in backticks links to, by the name.

    Returns:
      The text with formulas as `\(...\)` and `$$...$$`, for arithmatex.

    Examples:
      >>> print(to_markdown("At :math:`\\tau`, `A Title <https://a.org>`_.").rstrip())
      At \(\tau\), [A Title](https://a.org).
      >>> to_markdown(".. math:: a +\n  b\n\nText.\n")
      '$$\na +\nb\n$$\n\nText.\n'
    """
    text = _MATH.sub(_block, text if text.endswith("\n") else text + "\n")
    text = _INLINE_MATH.sub(lambda m: rf"\({' '.join(m[1].split())}\)", text)
    text = _LINK.sub(lambda m: f"[{' '.join(m[1].split())}]({m[2]})", text)
    text = _ROLE.sub(r"`\1`", text)
    return _CODE.sub(lambda m: _name(m[1], targets or {}), text)


def formulas(markdown: str) -> list[str]:
    """Every formula of a text that `to_markdown` has made."""
    found = re.findall(r"\$\$\n(.*?)\n *\$\$|\\\((.*?)\\\)", markdown, re.S)
    return [block or inline for block, inline in found]


def _block(match: re.Match[str]) -> str:
    lines = [match["first"], *match["rest"].splitlines()]
    body = "\n".join(match["indent"] + line.strip() for line in lines if line.strip())
    return f"{match['indent']}$$\n{body}\n{match['indent']}$$\n\n"


def _name(name: str, targets: Mapping[str, str]) -> str:
    target = targets.get(name)
    return f"[`{name}`][{target}]" if target else f"`{name}`"
