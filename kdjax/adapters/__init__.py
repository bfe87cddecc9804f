"""Trainable maps that bring a student's features to its teacher's, for some losses.

Each is a Flax module that is trained along with the student and dropped afterwards,
except for `SimKDProjector`, by which the student predicts.
"""

from kdjax.adapters._draws import PermutedTeacher, SampledTargets
from kdjax.adapters._exits import Exit
from kdjax.adapters._factors import Paraphraser, Translator
from kdjax.adapters._memories import ContrastMemory
from kdjax.adapters._projectors import MaskedGenerator, SimKDProjector, classify
from kdjax.adapters._regressors import Connector, Regressor, VariationalRegressor
from kdjax.adapters._relations import Embed, LearnedTemperature, ctkd_reversal
from kdjax.adapters._reviews import ReviewFusion
from kdjax.adapters._semantics import SemanticAttention

__all__ = [
    "Connector",
    "ContrastMemory",
    "Embed",
    "Exit",
    "LearnedTemperature",
    "MaskedGenerator",
    "Paraphraser",
    "PermutedTeacher",
    "Regressor",
    "ReviewFusion",
    "SampledTargets",
    "SemanticAttention",
    "SimKDProjector",
    "Translator",
    "VariationalRegressor",
    "classify",
    "ctkd_reversal",
]
