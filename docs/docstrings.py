"""An extension of Griffe, which reads docstrings for mkdocstrings."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
import hooks
import markup


class Markup(griffe.Extension):
    """Rewrites every docstring of the package to Markdown."""

    def __init__(self) -> None:
        self._targets = hooks.targets()
        self._done: set[int] = set()

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Is called for every module, class, function and attribute."""
        docstring = obj.docstring
        if docstring is not None and id(docstring) not in self._done:
            self._done.add(id(docstring))
            docstring.value = markup.to_markdown(docstring.value, self._targets)
