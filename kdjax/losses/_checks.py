"""Checks of shapes and dtypes, made while tracing: compiled code is as fast."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike


def check_logits(**arrays: jax.Array) -> None:
    """Raises, naming every argument, unless all are floating and of one shape.

    Raises:
      TypeError: if an array is not floating-point.
      ValueError: if shapes differ, or there are no classes to compare.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"Expected floating-point {name}, got {x.dtype}.")
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"Expected {name} [..., num_classes], got {x.shape}.")
    if len({x.shape for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"Expected arguments of one shape, got {found}.{_class_hint(arrays)}"
        )


def _class_hint(arrays: dict[str, jax.Array]) -> str:
    """The likely cause, where only the numbers of classes differ."""
    if len({x.shape[:-1] for x in arrays.values()}) > 1:
        return ""
    most = max(arrays, key=lambda name: arrays[name].shape[-1])
    return (
        f" {most} has more classes: does its model have a background class, or a "
        "padded vocabulary, to drop?"
    )


def check_labels(logits: jax.Array, labels: jax.Array) -> None:
    """Raises unless `labels` are integers, one for each row of `logits`.

    Raises:
      TypeError: if `labels` are not integers.
      ValueError: if the shape is not that of `logits` without its classes.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"Expected integer labels, got {labels.dtype}. Class probabilities go "
            "to soft_cross_entropy."
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"Expected labels {logits.shape[:-1]}, one for each row of the logits "
            f"{logits.shape}, got {labels.shape}."
        )


def check_where(where: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Raises unless `where` is absent, or boolean and of the result's shape.

    Raises:
      TypeError: if `where` is not boolean.
      ValueError: if its shape is not that of the returned values.
    """
    if where is None:
        return
    if where.dtype != jnp.bool_:
        raise TypeError(f"Expected boolean where, got {where.dtype}: compare it to 0?")
    if where.shape != shape:
        raise ValueError(
            f"Expected where {shape}, as the returned values, got {where.shape}."
        )


def check_num_classes(minimum: int, **arrays: jax.Array) -> None:
    """Raises `ValueError` unless every array has at least `minimum` classes."""
    for name, x in arrays.items():
        if x.shape[-1] < minimum:
            raise ValueError(
                f"Expected {name} of at least {minimum} classes, got {x.shape}."
            )


def check_positive(**scalars: ScalarLike) -> None:
    """Raises `ValueError` unless every concrete Python number is positive."""
    for name, x in scalars.items():
        if isinstance(x, int | float) and not x > 0:
            raise ValueError(f"Expected {name} > 0, got {x}.")


def check_fraction(**scalars: ScalarLike) -> None:
    """Raises `ValueError` unless every concrete Python number is in [0, 1]."""
    for name, x in scalars.items():
        if isinstance(x, int | float) and not 0 <= x <= 1:
            raise ValueError(f"Expected {name} between 0 and 1, got {x}.")


def check_choice(choices: tuple[str, ...], **arguments: str) -> None:
    """Raises `ValueError` unless every argument is one of `choices`."""
    for name, x in arguments.items():
        if x not in choices:
            raise ValueError(f"Expected {name} to be one of {choices}, got {x!r}.")
