"""Models as files for other runtimes, each loaded back, compared and measured.

>>> from kdjax import export
>>> sorted(export.FORMATS)
['onnx', 'onnx_int8', 'safetensors', 'stablehlo']
"""

from kdjax.export.card import Story
from kdjax.export.formats import FORMATS, Settings
from kdjax.export.model import Model, of_network
from kdjax.export.reporting import exceeded, report
from kdjax.export.writing import Examples, versions, write

__all__ = [
    "FORMATS",
    "Examples",
    "Model",
    "Settings",
    "Story",
    "exceeded",
    "of_network",
    "report",
    "versions",
    "write",
]
