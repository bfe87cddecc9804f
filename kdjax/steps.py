"""Pure train and predict steps, ready for `jax.jit` or `jax.pmap`."""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from kdjax import features
from kdjax.objectives import Objective, Term, weighted_terms
from kdjax.optimizers import OptimizerFn
from kdjax.types import ApplyFn, Batch, HParams, Outputs, Values, Variables

Metrics: TypeAlias = dict[str, jax.Array]
TeacherFn: TypeAlias = Callable[[Variables, Batch, Values], Outputs]


@flax.struct.dataclass
class TrainState:
    """Everything a run must save to resume; the frozen teacher is not in it.

    Attributes:
      step: updates made so far, an int32 scalar.
      params: what is trained.
      model_state: collections that are not trained: batch statistics.
      opt_state: of the Optax optimizer.
      ema_params: the running average of `params`, or None where it isn't kept.
      rng: the key that every step's key is folded from.
    """

    step: Any  # Leaves are arrays: on the device, or on the host to be saved.
    params: Any
    model_state: Any
    opt_state: Any
    ema_params: Any
    rng: Any

    @property
    def eval_variables(self) -> Variables:
        """What the model is evaluated, exported and kept with: no adapters."""
        params = self.params if self.ema_params is None else self.ema_params
        own, _ = features.split({"params": params, **self.model_state})
        return own


@runtime_checkable
class TrainStep(Protocol):
    """One update: returns the new state, and means over the valid examples."""

    def __call__(
        self,
        state: TrainState,
        teacher_variables: Variables,
        batch: Batch,
        hparams: HParams,
    ) -> tuple[TrainState, Metrics]: ...


def init_state(
    variables: Variables,
    optimizer_fn: OptimizerFn,
    hparams: HParams,
    rng: jax.Array,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step, from a model's initial variables."""
    model_state = {k: v for k, v in variables.items() if k != "params"}
    params = variables["params"]
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        step=step,
        params=params,
        model_state=model_state,
        opt_state=optimizer_fn(hyperparameters(hparams, step)).init(params),
        # A copy: the first step may donate the buffers of the parameters.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        rng=rng,
    )


def make_train_step(
    student_fn: ApplyFn,
    teacher_fn: TeacherFn,
    objective: Objective,
    optimizer_fn: OptimizerFn,
    *,
    adapters: Mapping[str, features.Adapter] = MappingProxyType({}),
    num_microbatches: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds `train_step(state, teacher_variables, batch, hparams)`.

    The step is pure and untransformed. Wrap it in `jax.jit` with a sharded batch
    and no `axis_name`, or in `jax.pmap` with the same `axis_name` given here: the
    two agree. Teacher variables are an argument, never closed over, so they are
    not baked into the compiled program; the teacher runs outside the function
    that is differentiated, so there is no gradient to stop.

    Args:
      student_fn: the model that is trained.
      teacher_fn: maps `teacher_variables, batch, values` to the teacher's outputs, by
        running it or by reading logits computed ahead of time from the batch.
      objective: returns values of shape `[B]`. The one called `'loss'` is minimised;
        all are reported. It sees the batch of all devices.
      optimizer_fn: makes the optimizer from the step's hyperparameter values.
      adapters: what is trained beside the student, as `features.init` began it; the
        objective reads their outputs among the student's features.
      num_microbatches: splits the batch and adds up the gradients of the parts before
        the one update, for less memory. The update is the same, unless the student
        normalises over the batch, or the objective couples examples: such a
        student sees the parts one by one.
      axis_name: the `jax.pmap` axis to reduce over, if any.

    Returns:
      The train step. `batch['mask']`, `[B]`, says which examples are valid.
    """

    forward = _make_forward(student_fn, teacher_fn, objective, adapters, axis_name)

    def train_step(state, teacher_variables, batch, hparams):
        values = hyperparameters(hparams, state.step)
        num_valid = _num_valid(batch, axis_name)

        def part_grads(model_state, part, rng):
            means_fn = forward(teacher_variables, part, values, num_valid, rng)

            def loss_fn(params):
                means, new_state = means_fn(params, model_state)
                return means["loss"], (new_state, means)

            grads, (model_state, means) = jax.grad(loss_fn, has_aux=True)(state.params)
            return model_state, (grads, means)

        rng = jax.random.fold_in(state.rng, state.step)
        model_state, totals = _accumulate(
            part_grads, state.model_state, batch, rng, num_microbatches
        )
        grads, means = _across_devices(totals, axis_name)
        updates, opt_state = optimizer_fn(values).update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema_params=_average(state.ema_params, params, values),
        )
        return state, {**values, **means, "grad_norm": optax.tree.norm(grads)}

    return train_step


def make_diagnose_step(
    student_fn: ApplyFn,
    teacher_fn: TeacherFn,
    terms: Mapping[str, Term],
    *,
    adapters: Mapping[str, features.Adapter] = MappingProxyType({}),
    num_microbatches: int = 1,
    axis_name: str | None = None,
) -> Callable[[TrainState, Variables, Batch, HParams], Metrics]:
    r"""Builds `diagnose_step(state, teacher_variables, batch, hparams)`.

    For the gradients :math:`g_i` of the weighted terms :math:`w_i \ell_i` with respect
    to the student's own parameters, adapters left out, it gives

    .. math::
      \|g_i\| \quad\text{and}\quad \frac{g_i \cdot g_j}{\|g_i\| \|g_j\|}

    as `grad_norm/<term>` and `grad_cosine/<term>/<term>`. The gradients are those of
    the update that a train step would make of the same arguments, and their sum is its
    gradient. Nothing is updated.

    Args:
      student_fn: as of `make_train_step`, and so are the others.
      teacher_fn: likewise.
      terms: what the objective is the weighted sum of.
      adapters: likewise.
      num_microbatches: likewise.
      axis_name: likewise.

    Returns:
      A pure step, to be wrapped as the train step is. A cosine is NaN where one of the
      two gradients is zero, which has no direction.
    """
    objective = weighted_terms(terms)
    forward = _make_forward(student_fn, teacher_fn, objective, adapters, axis_name)

    def diagnose_step(state, teacher_variables, batch, hparams):
        values = hyperparameters(hparams, state.step)
        num_valid = _num_valid(batch, axis_name)

        def part_grads(model_state, part, rng):
            means_fn = forward(teacher_variables, part, values, num_valid, rng)
            means, pull_back, model_state = jax.vjp(
                lambda params: means_fn(params, model_state), state.params, has_aux=True
            )
            # Not mapped over the terms: batched convolutions are slow on CPU.
            chosen = {n: {k: jnp.float32(k == n) for k in means} for n in terms}
            return model_state, {n: pull_back(chosen[n])[0] for n in terms}

        rng = jax.random.fold_in(state.rng, state.step)
        _, grads = _accumulate(
            part_grads, state.model_state, batch, rng, num_microbatches
        )
        grads = _across_devices(grads, axis_name)
        # JAX sorts the names in a dictionary; here they keep the order of the terms.
        return _compare({name: grads[name] for name in terms})

    return diagnose_step


def _compare(grads: Mapping[str, Any]) -> Metrics:
    """Norms, and cosines between each two, of gradients by name."""
    own = {
        n: features.split({"params": x})[0].get("params", {}) for n, x in grads.items()
    }
    norms = {name: optax.tree.norm(x) for name, x in own.items()}
    found = {f"grad_norm/{name}": norm for name, norm in norms.items()}
    for first, second in itertools.combinations(own, 2):
        product = optax.tree.vdot(own[first], own[second])
        cosine = product / (norms[first] * norms[second])
        found[f"grad_cosine/{first}/{second}"] = cosine
    return found


def make_predict_step(
    apply_fn: ApplyFn,
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Builds `predict_step(variables, images) -> logits`, in inference mode."""

    def predict_step(variables, images):
        outputs, _ = apply_fn(variables, images, train=False)
        return outputs.logits

    return predict_step


def hyperparameters(hparams: HParams, step: jax.Array) -> dict[str, jax.Array]:
    """The value of every schedule at `step`."""
    return {name: schedule(step) for name, schedule in hparams.items()}


def _make_forward(student_fn, teacher_fn, objective, adapters, axis_name):
    """Builds the function of parameters that steps differentiate.

    `forward` runs the teacher on part of a batch, and returns a function of parameters
    and model state: to the sums of all losses of this device's examples, over
    `num_valid`, and the new model state.
    """

    def forward(teacher_variables, part, values, num_valid, rng):
        teacher = teacher_fn(teacher_variables, part, values)

        def means_fn(params, model_state):
            own, extra = features.split({"params": params, **model_state})
            student, own = student_fn(own, part["image"], train=True, rng=rng)
            seen = _everyones((student, teacher, _without_image(part)), axis_name)
            student, teacher_seen, batch_seen = seen
            student = student.replace(variables={"params": params})
            teacher_seen = teacher_seen.replace(variables=teacher_variables)
            student, extra = features.adapt(
                adapters, extra, student, teacher_seen, batch_seen, values, rng
            )
            losses = objective(student, teacher_seen, batch_seen, values)
            losses["accuracy"] = _correct(student, batch_seen)
            sums = jax.tree.map(jnp.sum, _own(losses, axis_name))
            means = jax.tree.map(lambda x: x / num_valid, sums)
            return means, features.join(own, extra)

        return means_fn

    return forward


def _num_valid(batch: Batch, axis_name: str | None) -> jax.Array:
    """How many examples of all devices count, at least 1.

    A mean of per-device means would weigh examples by how full their device's shard
    happens to be.
    """
    num_valid = jnp.sum(batch["mask"].astype(jnp.float32))
    return jnp.maximum(_across_devices(num_valid, axis_name), 1.0)


def _without_image(batch: Batch) -> Batch:
    return {name: x for name, x in batch.items() if name != "image"}


def _everyones(tree: Any, axis_name: str | None) -> Any:
    """The examples of all devices: what an objective and adapters see.

    Under `pmap` every device computes both for the whole batch, which is little beside
    the networks, and then keeps its own part: so losses may couple examples, and the
    adapters' BatchNorm and memories need not know of devices.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def _own(tree: Any, axis_name: str | None) -> Any:
    """This device's part of what is of the examples of all."""
    if axis_name is None:
        return tree
    num_devices = jax.lax.axis_size(axis_name)

    def part(x: jax.Array) -> jax.Array:
        size = len(x) // num_devices
        start = jax.lax.axis_index(axis_name) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    return jax.tree.map(part, tree)


def _correct(student: Outputs, batch: Batch) -> jax.Array:
    """1 where the student is right about a valid example, else 0."""
    right = jnp.argmax(student.logits, axis=-1) == batch["label"]
    return (right & batch["mask"]).astype(jnp.float32)


def _accumulate(part_grads, model_state, batch, rng, num_parts):
    """Calls `part_grads` on `num_parts` parts of the batch and adds up the results."""
    if num_parts == 1:
        return part_grads(model_state, batch, rng)
    # Part i holds the examples i, i + num_parts, ...: each device's shard of the
    # batch then gives every part an equal share, and nothing moves between devices.
    parts = jax.tree.map(
        lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add_part(carry, part_and_index):
        model_state, totals = carry
        part, index = part_and_index
        model_state, new = part_grads(model_state, part, jax.random.fold_in(rng, index))
        return (model_state, jax.tree.map(jnp.add, totals, new)), None

    first = jax.tree.map(lambda x: x[0], parts)
    rest = jax.tree.map(lambda x: x[1:], parts), jnp.arange(1, num_parts)
    carry = part_grads(model_state, first, jax.random.fold_in(rng, 0))
    # A rolled loop costs convolutions on CPU their threads: 10 to 60 times slower.
    unroll = jax.default_backend() == "cpu"
    carry, _ = jax.lax.scan(add_part, carry, rest, unroll=unroll)
    return carry


def _average(ema_params: Any, params: Any, values: Values) -> Any:
    """The exponential moving average, one step on; None stays None."""
    if ema_params is None:
        return None
    decay = values["ema_decay"]
    return jax.tree.map(
        lambda average, x: average + (1 - decay) * (x - average), ema_params, params
    )


def _across_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
