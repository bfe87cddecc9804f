"""Ways of distilling, one module each: `build`, and `run`, a `stages.Runner`."""

from types import ModuleType

from kdjax.recipes import (
    assistants,
    born_again,
    consistency,
    cross_modal,
    data_free,
    encoders,
    ensemble,
    federated,
    learned_temperature,
    lm,
    methods,
    mutual,
    offline,
    self_distillation,
    study_why,
    visual_questions,
)

# From the name that `config.recipe` has to the module.
RECIPES: dict[str, ModuleType] = {
    "assistants": assistants,
    "born_again": born_again,
    "consistency": consistency,
    "cross_modal": cross_modal,
    "data_free": data_free,
    "encoders": encoders,
    "federated": federated,
    "learned_temperature": learned_temperature,
    "ensemble": ensemble,
    "lm": lm,
    "methods": methods,
    "mutual": mutual,
    "offline": offline,
    "self_distillation": self_distillation,
    "study_why": study_why,
    "visual_questions": visual_questions,
}
