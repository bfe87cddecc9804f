"""Distillation without data: students of a teacher, on images that generators make.

All that enters is the teacher's variables and how it normalises pixels. Each seed has a
student and a generator; those of all seeds are stacked, and one pure step maps over
them: a few updates of the student, then one of the generator.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from kdjax import members
from kdjax.objectives import Objective
from kdjax.optimizers import OptimizerFn
from kdjax.steps import Metrics, TrainState, hyperparameters
from kdjax.types import ApplyFn, HParams, Outputs, Values, Variables


class Generator(NamedTuple):
    """Where images come from.

    Attributes:
      init: makes the variables from a key.
      apply: maps variables, noise `[B, *noise_shape]` and `train` to pixels in
        0 to 255, floats beyond the range included, and to updated collections.
      noise_shape: of the noise for one image.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[jax.Array, Variables]]
    noise_shape: tuple[int, ...]


class Method(NamedTuple):
    """What students and generators minimise.

    Attributes:
      student: the student's objective, of its and the teacher's outputs.
      generator: the generator's, which the gradient reaches through both networks; or
        None for a generator that is not trained.
      student_steps: updates of the student for each of the generator.
      same_noise: whether the generator learns from the noise of the student's last
        update, or from noise of its own.
    """

    student: Objective
    generator: Objective | None
    student_steps: int = 1
    same_noise: bool = False

    @property
    def num_draws(self) -> int:
        """How many batches of noise a step takes."""
        own = self.generator is not None and not self.same_noise
        return self.student_steps + own


class Models(NamedTuple):
    """The three networks, and the optimizers of the two that are trained."""

    teacher: ApplyFn
    student: ApplyFn
    generator: Generator
    student_optimizer: OptimizerFn
    generator_optimizer: OptimizerFn


@flax.struct.dataclass
class DataFreeState:
    """What a run must save to resume.

    Attributes:
      step: steps made so far, an int32 scalar; each has several updates.
      student: the students of all seeds, stacked along a first axis.
      generator: their generators, likewise.
    """

    step: Any
    student: TrainState
    generator: TrainState


def from_linen(
    module: nn.Module,
    *,
    latent_dim: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Generator:
    """A Linen generator of normalised images, as pixels of the teacher's.

    Args:
      module: called as `module(latents, train=...)`.
      latent_dim: of the noise.
      mean: by channel, in units of [0, 1], that the teacher subtracts.
      std: by channel, in units of [0, 1], that the teacher divides by.
    """

    @jax.jit
    def init(rng: jax.Array) -> Variables:
        return module.init(rng, jnp.zeros((1, latent_dim)), train=False)

    def apply(
        variables: Variables, noise: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Variables]:
        state = {k: v for k, v in variables.items() if k != "params"}
        if not train:
            images: Any = module.apply(variables, noise, train=False)
            return _pixels(images, mean, std), state
        images, new = module.apply(variables, noise, train=True, mutable=list(state))
        return _pixels(images, mean, std), dict(new)

    return Generator(init, apply, (latent_dim,))


def normal_images(
    image_shape: Sequence[int], *, mean: Sequence[float], std: Sequence[float]
) -> Generator:
    """Images that are noise: normal, as normalised images are, and nothing to train."""

    def apply(
        variables: Variables, noise: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Variables]:
        del variables, train
        return _pixels(noise, mean, std), {}

    return Generator(lambda rng: {"params": {}}, apply, tuple(image_shape))


def _pixels(images: Any, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """The inverse of the teacher's normalisation; nothing is cut off at 0 or 255."""
    scale, shift = (np.asarray(x, np.float32).reshape(1, 1, 1, -1) for x in (std, mean))
    return 255 * (images * scale + shift)


def make_train_step(
    models: Models, method: Method
) -> Callable[..., tuple[DataFreeState, Metrics]]:
    """Builds `train_step(state, teacher_variables, batch, hparams)`.

    Args:
      models: the networks.
      method: what they minimise.

    Returns:
      The step. The batch holds `noise`, `[B, seeds, method.num_draws, *noise_shape]`.
      Names of hyperparameters begin with `student/` or `generator/`. Metrics are means
      over batch and seeds, of the student's last update.
    """

    of_all_seeds = members.vmap(
        functools.partial(_of_a_seed, models, method), in_axes=(0, 0, 1, None, None)
    )

    def train_step(state, teacher_variables, batch, hparams):
        student, generator, metrics = of_all_seeds(
            state.student, state.generator, batch["noise"], teacher_variables, hparams
        )
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return DataFreeState(state.step + 1, student, generator), metrics

    return train_step


def _of_a_seed(models, method, student, generator, noise, teacher_variables, hparams):
    """The updates of one seed's student, then that of its generator."""
    draws = jnp.moveaxis(noise, 1, 0)
    fixed = models, method, teacher_variables, hparams

    def student_step(student, draw):
        return _student_step(*fixed, student, _images(models, generator, draw))

    # A rolled loop costs convolutions on CPU their threads.
    unroll = jax.default_backend() == "cpu"
    student, rows = jax.lax.scan(
        student_step, student, draws[: method.student_steps], unroll=unroll
    )
    metrics = {f"student_{name}": x[-1] for name, x in rows.items()}
    if method.generator is not None:
        generator, row = _generator_step(*fixed, student, generator, draws[-1])
        metrics |= {f"generator_{name}": x for name, x in row.items()}
    return student, generator, {**metrics, "loss": metrics["student_loss"]}


def _images(models: Models, generator: TrainState, noise: jax.Array) -> jax.Array:
    """What the generator makes; its running averages are those of its own updates."""
    variables = {"params": generator.params, **generator.model_state}
    return models.generator.apply(variables, noise, train=True)[0]


def _student_step(models, method, teacher_variables, hparams, student, images):
    """One update of the student on given images."""
    values = hyperparameters(of_role(hparams, "student"), student.step)
    rng = jax.random.fold_in(student.rng, student.step)
    # Outside of the function that is differentiated: no gradient to stop.
    teacher, _ = models.teacher(teacher_variables, images, train=False)

    def loss_fn(params):
        variables = {"params": params, **student.model_state}
        outputs, state = models.student(variables, images, train=True, rng=rng)
        terms = _means(method.student(outputs, teacher, {}, values))
        return terms["loss"], (terms | _agreement(outputs, teacher), state)

    grads, (metrics, state) = jax.grad(loss_fn, has_aux=True)(student.params)
    return _updated(student, grads, state, models.student_optimizer, values), metrics


def _generator_step(
    models, method, teacher_variables, hparams, student, generator, noise
):
    """One update of the generator, through the student and the teacher as they are."""
    values = hyperparameters(of_role(hparams, "generator"), generator.step)
    student_variables = {"params": student.params, **student.model_state}
    rng = jax.random.fold_in(generator.rng, generator.step)

    def loss_fn(params):
        variables = {"params": params, **generator.model_state}
        images, state = models.generator.apply(variables, noise, train=True)
        teacher, _ = models.teacher(teacher_variables, images, train=False)
        outputs, _ = models.student(student_variables, images, train=True, rng=rng)
        terms = _means(method.generator(outputs, teacher, {}, values))
        return terms["loss"], (terms, state)

    grads, (metrics, state) = jax.grad(loss_fn, has_aux=True)(generator.params)
    return _updated(
        generator, grads, state, models.generator_optimizer, values
    ), metrics


def of_role(hparams: HParams, role: str) -> HParams:
    """The hyperparameters of the student or the generator, without the prefix."""
    return {
        name.removeprefix(f"{role}/"): schedule
        for name, schedule in hparams.items()
        if name.startswith(f"{role}/")
    }


def _means(terms: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.mean(x) for name, x in terms.items()}


def _agreement(student: Outputs, teacher: Outputs) -> dict[str, jax.Array]:
    """How often both name the same class, on generated images."""
    same = jnp.argmax(student.logits, axis=-1) == jnp.argmax(teacher.logits, axis=-1)
    return {"agreement": jnp.mean(same.astype(jnp.float32))}


def _updated(
    state: TrainState,
    grads: Any,
    model_state: Variables,
    optimizer_fn: OptimizerFn,
    values: Values,
) -> TrainState:
    updates, opt_state = optimizer_fn(values).update(
        grads, state.opt_state, state.params
    )
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
    )
