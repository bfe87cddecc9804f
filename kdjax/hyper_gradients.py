r"""How a validation loss changes with a hyperparameter, and learning it by that.

A training step is a map :math:`\Phi` of parameters :math:`w` and hyperparameters
:math:`h`. The validation loss :math:`V` after the step changes with :math:`h` by

.. math:: \frac{\mathrm{d} V(\Phi(w, h))}{\mathrm{d} h}
   = \nabla V \, \frac{\partial \Phi}{\partial h},

which automatic differentiation of the step gives, at about the price of one more step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from kdjax import steps
from kdjax.optimizers import OptimizerFn
from kdjax.schedules import Constant
from kdjax.types import ApplyFn, Batch, HParams, Values, Variables


class HyperGradient(NamedTuple):
    """What `hyper_gradient` returns.

    Attributes:
      gradient: like the hyperparameters.
      loss: on validation examples, after the step.
      params: after the step.
      aux: what else the step returned.
    """

    gradient: Any
    loss: jax.Array
    params: Any
    aux: Any


def hyper_gradient(
    update_fn: Callable[[Any, Any], tuple[Any, Any]],
    validation_fn: Callable[[Any], jax.Array],
    params: Any,
    hyper: Any,
    *,
    num_terms: int = 1,
) -> HyperGradient:
    r"""Gradient of the loss after a step with respect to the step's hyperparameters.

    .. math:: \sum_{k < K} \nabla V(w') \left(\frac{\partial \Phi}{\partial w}\right)^k
       \frac{\partial \Phi}{\partial h}, \qquad w' = \Phi(w, h)

    One term is the exact gradient through the step, unrolled. Each further one goes a
    step further back, as if all steps were this one: where the parameters no longer
    move, the sum converges to the gradient of the implicit function :math:`w^*(h)`,
    by the Neumann series of the inverse Hessian.

    Args:
      update_fn: a step, from parameters and hyperparameters to new parameters and
        anything else; differentiable.
      validation_fn: from parameters to the loss that matters.
      params: before the step.
      hyper: a pytree of floating-point arrays.
      num_terms: :math:`K`, at least 1.

    Raises:
      ValueError: if `num_terms` is not positive.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import hyper_gradients
      >>> def decay(w, h):  # A step of size 0.25 on ((w - 1)**2 + h * w**2) / 2.
      ...     return w - 0.25 * (w - 1 + h * w), None
      >>> at_rest = jnp.float32(0.5)  # 1 / (1 + h) at h = 1.
      >>> for num_terms in (1, 30):
      ...     found = hyper_gradients.hyper_gradient(
      ...         decay, lambda w: w, at_rest, jnp.float32(1.0), num_terms=num_terms)
      ...     print(found.gradient)  # In the limit -1 / (1 + h)**2.
      -0.125
      -0.25

    References:
      Luketina et al., `Scalable Gradient-Based Tuning of Continuous Regularization
      Hyperparameters <https://arxiv.org/abs/1511.06727>`_, ICML 2016, section 2 (one
      step); Lorraine et al., `Optimizing Millions of Hyperparameters by Implicit
      Differentiation <https://arxiv.org/abs/1911.02590>`_, AISTATS 2020, section 3.
    """
    if num_terms < 1:
        raise ValueError(f"Expected num_terms to be at least 1, got {num_terms}.")
    new, pull_back, aux = jax.vjp(update_fn, params, hyper, has_aux=True)
    loss, cotangent = jax.value_and_grad(validation_fn)(new)
    total = jax.tree.map(jnp.zeros_like, hyper)
    for _ in range(num_terms):
        cotangent, part = pull_back(cotangent)
        total = jax.tree.map(jnp.add, total, part)
    return HyperGradient(total, loss, new, aux)


class Link(NamedTuple):
    """Between a hyperparameter and the unbounded number that is learned for it."""

    to_value: Callable[[jax.Array], jax.Array]
    from_value: Callable[[jax.Array], jax.Array]


OWN = "hyper/"  # What the schedules of the optimizer of hyperparameters begin with.
POSITIVE = Link(jnp.exp, jnp.log)
FRACTION = Link(jax.nn.sigmoid, jax.scipy.special.logit)


@flax.struct.dataclass
class Learner:
    """A student, and hyperparameters learned beside it.

    Attributes:
      student: its state.
      hyper: by name, the unbounded numbers.
      opt_state: of their optimizer.
    """

    student: steps.TrainState
    hyper: Any
    opt_state: Any

    @property
    def step(self) -> Any:
        return self.student.step

    @property
    def eval_variables(self) -> Variables:
        return self.student.eval_variables


def init(
    student: steps.TrainState,
    values: Mapping[str, float],
    links: Mapping[str, Link],
    optimizer_fn: OptimizerFn,
    hparams: HParams,
) -> Learner:
    """The state before the first step; `values` are where the learning begins."""
    hyper = {
        name: link.from_value(jnp.float32(values[name])) for name, link in links.items()
    }
    _, rates = _split(hparams, student.step)
    return Learner(
        student=student, hyper=hyper, opt_state=optimizer_fn(rates).init(hyper)
    )


def make_train_step(
    train_step: steps.TrainStep,
    validation_fn: Callable[[steps.TrainState, Any, jax.Array], jax.Array],
    links: Mapping[str, Link],
    optimizer_fn: OptimizerFn,
    *,
    num_terms: int = 1,
) -> steps.TrainStep:
    """Builds the step of a student that also takes one on its hyperparameters.

    Args:
      train_step: of the student, whose update is differentiable: SGD's is; Adam's is
        not where a second moment is zero.
      validation_fn: from the student's state, held-out examples and a key to a loss.
      links: of the hyperparameters that are learned, by their name in `hparams`.
      optimizer_fn: makes theirs, from the values that begin with `OWN`, without it.
      num_terms: of `hyper_gradient`.

    Returns:
      A pure step `(state, constants, batch, hparams)`; `constants` are `'teacher'` and
      `'held_out'`. Its metrics are those of the student's step, with the values that it
      was taken at, `hyper_loss`, and `hyper_gradient/<name>` with respect to the
      unbounded numbers.
    """

    def learn(state, constants, batch, hparams):
        student = state.student
        schedules, rates = _split(hparams, student.step)

        def update_fn(params, hyper):
            values = {n: Constant(links[n].to_value(x)) for n, x in hyper.items()}
            return _params_and_rest(
                train_step(
                    student.replace(params=params),
                    constants["teacher"],
                    batch,
                    {**schedules, **values},
                )
            )

        def loss_fn(params):
            rng = jax.random.fold_in(jax.random.fold_in(student.rng, 1), student.step)
            after = student.replace(params=params, ema_params=None)
            return validation_fn(after, constants["held_out"], rng)

        found = hyper_gradient(
            update_fn, loss_fn, student.params, state.hyper, num_terms=num_terms
        )
        updates, opt_state = optimizer_fn(rates).update(
            found.gradient, state.opt_state, state.hyper
        )
        rest, metrics = found.aux
        told = {f"hyper_gradient/{n}": x for n, x in found.gradient.items()}
        state = Learner(
            student=rest.replace(params=found.params),
            hyper=jax.tree.map(jnp.add, state.hyper, updates),
            opt_state=opt_state,
        )
        return state, {**metrics, **told, "hyper_loss": found.loss}

    return learn


def _split(hparams: HParams, step: Any) -> tuple[HParams, Values]:
    """The student's schedules, and the values of those that begin with `OWN`."""
    student = {name: x for name, x in hparams.items() if not name.startswith(OWN)}
    own = {n.removeprefix(OWN): x(step) for n, x in hparams.items() if n not in student}
    return student, own


def _params_and_rest(
    stepped: tuple[steps.TrainState, steps.Metrics],
) -> tuple[Any, Any]:
    """New parameters apart from what nothing is learned through."""
    state, metrics = stepped
    return state.params, (state, metrics)


def make_validation_fn(
    apply_fn: ApplyFn, loss_fn: Callable[..., jax.Array], batch_size: int
) -> Callable[[steps.TrainState, Batch, jax.Array], jax.Array]:
    """Builds the mean loss of a student on so many held-out examples, drawn anew.

    Args:
      apply_fn: the student.
      loss_fn: of logits and labels, `[B]`.
      batch_size: examples, drawn with replacement.
    """

    def validation_fn(state, held_out, rng):
        ids = jax.random.randint(rng, (batch_size,), 0, len(held_out["label"]))
        outputs, _ = apply_fn(state.eval_variables, held_out["image"][ids], train=False)
        return jnp.mean(loss_fn(outputs.logits, held_out["label"][ids]))

    return validation_fn
