"""Ways of distilling, one module each: `STAGES`, `build` and `run`."""

from types import ModuleType

from kdjax.recipes import offline

# From the name that `config.recipe` has to the module.
RECIPES: dict[str, ModuleType] = {
    "offline": offline,
}
