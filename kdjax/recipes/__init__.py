"""Ways of distilling, one module each: `STAGES`, `build` and `run`."""

from types import ModuleType

from kdjax.recipes import (
    born_again,
    cross_modal,
    data_free,
    mutual,
    offline,
    self_distillation,
)

# From the name that `config.recipe` has to the module.
RECIPES: dict[str, ModuleType] = {
    "born_again": born_again,
    "cross_modal": cross_modal,
    "data_free": data_free,
    "mutual": mutual,
    "offline": offline,
    "self_distillation": self_distillation,
}
