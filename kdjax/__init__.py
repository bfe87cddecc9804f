"""Knowledge distillation in JAX, from two arrays of logits to a deployed student."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdjax.citations import citation

__all__ = ["citation"]


def __getattr__(name: str) -> Any:
    # On first use: `import kdjax` is on the way to every module, and imports nothing.
    if name == "citation":
        from kdjax.citations import citation

        return citation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
