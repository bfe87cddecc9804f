"""What a language model is worth, and which way a teacher's entries turn a student."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses, parallel, sampling
from kdjax.builders._lm_steps import LanguageModel
from kdjax.types import Variables

_NUM_BINS = 15

Angles = dict[str, dict[int, tuple[float, float]]]
"""By method and number of draws or classes: degrees, and different classes a token."""


def evaluator(
    model: LanguageModel, devices: parallel.Parallel, batch_size: int
) -> Callable[[Variables, np.ndarray], dict[str, float]]:
    """A function from variables and windows to `nll`, `perplexity`, `accuracy`, `ece`.

    All are means over the tokens; the calibration error is that of the likeliest
    token, over 15 bins.
    """

    def step(variables, windows):
        log_probs = jax.nn.log_softmax(model.logits(variables, windows[:, :-1]))
        labels = windows[:, 1:]
        at_label = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
        right = jnp.argmax(log_probs, axis=-1) == labels
        confidence = jnp.exp(jnp.max(log_probs, axis=-1))
        return jnp.stack([-at_label, right.astype(jnp.float32), confidence], axis=1)

    program = devices.predict_program(step)

    def evaluate(variables: Variables, windows: np.ndarray) -> dict[str, float]:
        variables = devices.replicate(variables)
        parts = []
        for start in range(0, len(windows), batch_size):
            rows = windows[start : start + batch_size]
            padding = (0, batch_size - len(rows)), (0, 0)
            found = program(variables, np.pad(rows, padding))
            parts.append(found[: len(rows)])
        nll, right, confidence = np.moveaxis(np.concatenate(parts), 1, 0)
        mean = float(np.mean(nll, dtype=np.float64))
        return {
            "nll": mean,
            "perplexity": float(np.exp(mean)),
            "accuracy": 100 * float(np.mean(right)),
            "ece": 100 * _calibration_error(confidence.ravel(), right.ravel()),
        }

    return evaluate


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """As `metrics.expected_calibration_error`, of what it makes of logits."""
    index = np.clip(np.ceil(confidence * _NUM_BINS).astype(int) - 1, 0, _NUM_BINS - 1)
    gaps = np.bincount(index, right.astype(np.float64) - confidence, _NUM_BINS)
    return float(np.sum(np.abs(gaps)) / len(right))


def angles(
    student: LanguageModel,
    teacher: LanguageModel,
    *,
    draws: Sequence[int],
    top_k: Sequence[int],
    seed: int,
) -> Callable[[Variables, Variables, Any], Angles]:
    """How far the gradient of a sparse teacher points from that of the whole one.

    Returns:
      A function of both models' variables and of tokens `[B, L]`.
    """
    gradient = _gradient(student)
    teachers, students = (_probabilities(model) for model in (teacher, student))

    def measure(
        student_variables: Variables, teacher_variables: Variables, tokens: Any
    ) -> Angles:
        params, tokens = student_variables["params"], jnp.asarray(tokens)
        probs = teachers(teacher_variables, tokens)
        own = students(student_variables, tokens)
        whole = gradient(params, tokens, probs)
        found: Angles = {}
        rng = jax.random.key(seed)
        for method, size, targets in _sparse(probs, own, draws, top_k, rng):
            kept = float(size)
            if method == "random_sampling":
                kept = float(jnp.mean(jnp.sum(targets > 0, -1, dtype=jnp.float32)))
            angle = _degrees(whole, gradient(params, tokens, targets))
            found.setdefault(method, {})[size] = angle, kept
        return found

    return measure


def _probabilities(model: LanguageModel) -> Callable[..., jax.Array]:
    """Of each next token, `[B, L, vocab]`, from variables and tokens."""
    return jax.jit(lambda variables, x: jax.nn.softmax(model.logits(variables, x)))


def _gradient(student: LanguageModel) -> Callable[..., np.ndarray]:
    """Of the cross-entropy with soft labels `[B, L, vocab]`, as one vector."""

    def loss_fn(params, tokens, targets):
        inputs = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
        outputs, _ = student.network.apply({"params": params}, inputs, train=True)
        log_probs = jax.nn.log_softmax(outputs.logits)
        return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))

    grad_fn = jax.jit(jax.grad(loss_fn))

    def gradient(params, tokens, targets) -> np.ndarray:
        leaves = jax.tree.leaves(grad_fn(params, tokens, targets))
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])

    return gradient


def _sparse(
    probs: jax.Array,
    own: jax.Array,
    draws: Sequence[int],
    top_k: Sequence[int],
    rng: jax.Array,
) -> Iterator[tuple[str, int, jax.Array]]:
    """Methods, their sizes, and soft labels with the gradient of the method's loss."""
    drawn = jax.jit(_drawn, static_argnums=1)
    for size in draws:
        yield "random_sampling", size, drawn(probs, size, rng)
    for method, targets in (("top_k", _top_k), ("top_k_tail", _top_k_tail)):
        compiled = jax.jit(targets)
        for size in top_k:
            yield method, size, compiled(probs, own, jnp.asarray(size))


def _drawn(probs: jax.Array, num_draws: int, rng: jax.Array) -> jax.Array:
    """Frequencies of classes drawn from the teacher, `[B, L, vocab]`."""
    ids, counts = losses.sample_sparse_targets(jnp.log(probs), rng, num_draws=num_draws)
    rows = jax.vmap(lambda i, n: jnp.zeros(probs.shape[-1]).at[i].add(n))
    flat = (x.reshape(-1, num_draws) for x in (ids, counts.astype(jnp.float32)))
    return rows(*flat).reshape(probs.shape) / num_draws


def _top_k(probs: jax.Array, own: jax.Array, k: jax.Array) -> jax.Array:
    """The largest probabilities, renormalised."""
    del own
    kept = jnp.where(_rank(probs) < k, probs, 0)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def _top_k_tail(probs: jax.Array, own: jax.Array, k: jax.Array) -> jax.Array:
    """These, and the tail's mass as the student divides it: no force within it."""
    kept = jnp.where(_rank(probs) < k, probs, 0)
    rest = jnp.where(_rank(probs) < k, 0, own)
    mass = 1 - jnp.sum(kept, axis=-1, keepdims=True)
    return kept + mass * rest / jnp.sum(rest, axis=-1, keepdims=True)


def _rank(probs: jax.Array) -> jax.Array:
    return jnp.argsort(jnp.argsort(-probs, axis=-1), axis=-1)


def _degrees(a: np.ndarray, b: np.ndarray) -> float:
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def greedy(
    model: LanguageModel, variables: Variables, prompt: Sequence[int], num_tokens: int
) -> list[int]:
    """The prompt and its likeliest continuation."""
    rngs = sampling.keys(jax.random.key(0), 0, jnp.zeros(1, jnp.int32))
    prompts = jnp.asarray(prompt, jnp.int32)[None]
    sample = jax.jit(
        functools.partial(model.sample, num_tokens=num_tokens, temperature=0.0)
    )
    return np.asarray(sample(variables, prompts, rngs).tokens[0]).tolist()
