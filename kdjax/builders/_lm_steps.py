"""The train step of a language model: on given text, or on the student's own."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kdjax import losses, networks, optimizers, sampling, steps
from kdjax.builders import _lm_methods
from kdjax.models.decoder import head_kernel
from kdjax.teacher_cache.encodings import RECORD
from kdjax.types import HParams, Values, Variables

_ON_POLICY = 0x6F6E706F  # What the choice of text is drawn for.


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A network of tokens, and the module with its cache of keys and values."""

    network: networks.Network
    module: nn.Module

    @property
    def dim(self) -> int:
        """Of a token's state."""
        return self.module.dim

    def states(self, variables: Variables, tokens: jax.Array) -> jax.Array:
        """The last hidden states, `[B, L, dim]`, float32."""
        inputs = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
        outputs, _ = self.network.apply(variables, inputs, train=False)
        return outputs.features["hidden"]

    def logits(self, variables: Variables, tokens: jax.Array) -> jax.Array:
        """Of each next token, `[B, L, vocab]`."""
        inputs = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
        outputs, _ = self.network.apply(variables, inputs, train=False)
        return outputs.logits

    def sample(
        self, variables: Variables, prompts: jax.Array, rngs: jax.Array, **kwargs: Any
    ) -> sampling.Sampled:
        """Continuations of prompts, see `sampling.sample`."""

        def next_fn(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            return self.module.apply(variables, tokens, cache, method="extend")

        size = prompts.shape[1] + kwargs["num_tokens"]
        cache = self.module.init_cache(len(prompts), size)
        return sampling.sample(next_fn, cache, prompts, rngs, **kwargs)


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """When and how the student's own text takes the place of the given one.

    Attributes:
      share: of the steps.
      prompt: tokens of each given text that the student continues.
      temperature: of its sampling.
    """

    share: float
    prompt: int
    temperature: float


@dataclasses.dataclass(frozen=True)
class Taid:
    """How the interpolation of TAID grows, by Shing et al. 2025, section 3.3."""

    start: float
    end: float
    rate: float
    decay: float
    num_steps: int


@flax.struct.dataclass
class TaidState:
    """Where the interpolation is, and how the loss has gone."""

    interpolation: Any
    momentum: Any
    loss: Any

    @classmethod
    def begin(cls, taid: Taid) -> "TaidState":
        return cls(*(jnp.asarray(x, jnp.float32) for x in (taid.start, 0.0, 0.0)))


def advance(
    taid: Taid, state: TaidState, step: jax.Array, loss: jax.Array
) -> TaidState:
    r"""The interpolation after a step: further where the loss falls faster.

    .. math::
      m \leftarrow \beta m + (1 - \beta) \frac{\ell' - \ell}{\ell'}, \qquad
      t \leftarrow \min\bigl(t_1, \max(t_{lin}, t + \alpha \sigma(m) (1 - t))\bigr)

    with the loss before, :math:`\ell'`, and the straight line :math:`t_{lin}` from
    start to end.
    """
    done = (step.astype(jnp.float32) + 1) / taid.num_steps
    line = taid.start + (taid.end - taid.start) * done
    fall = jnp.where(step > 0, (state.loss - loss) / (state.loss + 1e-15), 0)
    momentum = taid.decay * state.momentum + (1 - taid.decay) * fall
    t = state.interpolation
    t = t + taid.rate * jax.nn.sigmoid(momentum) * (1 - t)
    return TaidState(jnp.minimum(taid.end, jnp.maximum(line, t)), momentum, loss)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a student is taught, whatever the seed.

    Attributes:
      student: what is trained.
      optimizer_fn: makes the optimizer of a step's values.
      method: of the teacher's part; none for text alone.
      teacher: runs in the step, where it is given; else its entries are in the batch.
      teacher_dim: of its hidden states.
      hard: whether the text itself is a part of the loss.
      on_policy: where the student's own text is taught too.
      taid: how its interpolation grows, for that method.
      chunk_size: tokens whose logits are in memory at a time.
    """

    student: LanguageModel
    optimizer_fn: optimizers.OptimizerFn
    method: _lm_methods.Method | None
    teacher: LanguageModel | None
    teacher_dim: int
    hard: bool
    on_policy: OnPolicy | None
    taid: Taid | None
    chunk_size: int

    def init_state(self, seed: int, hparams: HParams, variables: Variables | None):
        """The state before the first step; of given variables, if there are any."""
        init_rng, rng = jax.random.split(jax.random.key(seed))
        if variables is None:
            variables = self.student.network.init(init_rng)
        if self.taid is not None:
            variables = {**variables, "taid": TaidState.begin(self.taid)}
        return steps.init_state(variables, self.optimizer_fn, hparams, rng)

    def train_step(self, state, teacher_variables, batch, hparams):
        """One update, as `steps.TrainStep`."""
        values = steps.hyperparameters(hparams, state.step)
        if self.taid is not None:
            t = state.model_state["taid"].interpolation
            values = {**values, "interpolation": t}
        text = self._text(state, batch, values)
        teacher = self._taught(teacher_variables, batch, text["tokens"])

        def loss_fn(params):
            terms = self._terms(params, teacher, text, values)
            count = jnp.maximum(jnp.sum(text["where"], dtype=jnp.float32), 1)
            means = {name: jnp.sum(x) / count for name, x in terms.items()}
            return means["loss"], means

        grads, means = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = self.optimizer_fn(values).update(
            grads, state.opt_state, state.params
        )
        model_state = state.model_state
        if self.taid is not None:
            model_state = {
                "taid": advance(
                    self.taid, model_state["taid"], state.step, means["soft"]
                )
            }
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        drawn = text["drawn"].astype(jnp.float32)
        return state, {
            **values,
            **means,
            "on_policy": drawn,
            "grad_norm": optax.tree.norm(grads),
        }

    def _text(self, state, batch, values) -> dict[str, jax.Array]:
        """Tokens, next tokens, where they count; and whether the student wrote them."""
        given = {
            "tokens": batch["tokens"],
            "label": batch["label"],
            "where": jnp.broadcast_to(batch["mask"][:, None], batch["label"].shape),
            "drawn": jnp.zeros((), bool),
        }
        if self.on_policy is None:
            return given
        own, length = self.on_policy, batch["tokens"].shape[1]

        def write() -> dict[str, jax.Array]:
            rngs = sampling.keys(state.rng, state.step, batch["example_id"])
            sampled = self.student.sample(
                {"params": state.params},
                batch["tokens"][:, : own.prompt],
                rngs,
                num_tokens=length + 1 - own.prompt,
                temperature=own.temperature,
            )
            return {
                "tokens": sampled.tokens[:, :-1],
                "label": sampled.tokens[:, 1:],
                "where": sampled.mask[:, 1:],
                "drawn": jnp.ones((), bool),
            }

        key = jax.random.fold_in(jax.random.fold_in(state.rng, _ON_POLICY), state.step)
        chosen = jax.random.uniform(key) < own.share
        return jax.lax.cond(chosen, write, lambda: given)

    def _taught(self, variables, batch, tokens) -> Any:
        """The teacher's states and head, or the entries of a cache."""
        if self.method is None:
            return None
        if self.teacher is not None:
            return self.teacher.states(variables, tokens), head_kernel(variables)
        found = _lm_methods.entries(self.method.reads, batch)
        if self.method.reads != "hidden":
            return found
        states = found[RECORD].astype(jnp.float32)
        states = states.reshape(*tokens.shape, self.teacher_dim)
        return states, head_kernel(variables)

    def _terms(self, params, teacher, text, values: Values) -> dict[str, jax.Array]:
        """The loss of each token and its parts, `[B, L]`."""
        inputs = {
            "tokens": text["tokens"],
            "mask": jnp.ones(text["tokens"].shape, bool),
        }
        outputs, _ = self.student.network.apply({"params": params}, inputs, train=True)
        hidden, kernel = outputs.features["hidden"], head_kernel({"params": params})
        terms = {}
        if self.method is not None:
            seen = _lm_methods.Seen(
                hidden, kernel, teacher, text["where"], values, self.chunk_size
            )
            terms["soft"] = self.method.fn(seen)
        if self.hard:
            terms["hard"] = losses.linear_cross_entropy(
                hidden,
                kernel,
                text["label"],
                chunk_size=self.chunk_size,
                # What the student wrote is no example for it.
                where=text["where"] & ~text["drawn"],
            )
        if self.method is None:
            return {**terms, "loss": terms["hard"]}
        if not self.hard:
            return {**terms, "loss": terms["soft"]}
        alpha = values["alpha"]
        loss = alpha * terms["soft"] + (1 - alpha) * terms["hard"]
        return {**terms, "loss": loss}
