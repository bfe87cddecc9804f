"""Attention over the pairs of a student's and a teacher's layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm, torch_uniform


class SemanticAttention(nn.Module):
    r"""All pairs of layers brought to one shape each, and which of them suit.

    A layer is known by what it holds to be alike: row :math:`b` of :math:`F F^\top`,
    with one flattened example a row of :math:`F`. For each example two layers,
    normalised to length 1, make queries of the student's rows and keys of the
    teacher's, and the attention is

    .. math:: \alpha_{ij} = \mathrm{softmax}_j \bigl( q_i^\top k_j \bigr)

    Of a pair of maps the larger is averaged to the smaller; a 1x1, a 3x3 and a 1x1
    convolution, with BatchNorm and ReLU between, bring the student's to the teacher's
    channels. All three results are the arguments of `losses.semckd_loss`.

    Couples examples: a row is as long as the batch, and so are the first weights. A
    smaller batch is filled up with zeros.

    Attributes:
      batch_size: the most examples of the global batch; the published code's is 64.
      reduction: the batch size over the dimension of queries and keys; 4 in the
        published code.
      dtype: of the convolutions' computation.
      axis_name: of the devices under `pmap`, over which the batch is gathered.

    Raises:
      ValueError: if the batch is larger than `batch_size`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import SemanticAttention
      >>> student_features = [jnp.ones((4, 8, 8, 2)), jnp.ones((4, 4, 4, 3))]
      >>> teacher_features = [jnp.ones((4, 4, 4, 5))]
      >>> module = SemanticAttention(batch_size=4)
      >>> inputs = student_features, teacher_features
      >>> variables = module.init(jax.random.key(0), *inputs, train=False)
      >>> student_values, teacher_values, attention = module.apply(
      ...     variables, *inputs, train=False)
      >>> print(student_values[0][0].shape, teacher_values[0][0].shape, attention.shape)
      (4, 4, 4, 5) (4, 4, 4, 5) (4, 2, 1)

    References:
      Chen et al., `Cross-Layer Distillation with Semantic Calibration
      <https://arxiv.org/abs/2012.03236>`_, AAAI 2021, section 3.
    """

    batch_size: int = 64
    reduction: int = 4
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        student_features: Sequence[Float[Array, "batch _ _ _"]],
        teacher_features: Sequence[Float[Array, "batch _ _ _"]],
        *,
        train: bool,
    ) -> tuple[
        list[list[Float[Array, "batch _ _ _"]]],
        list[list[Float[Array, "batch _ _ _"]]],
        Float[Array, "batch students teachers"],
    ]:
        queries, keys = (
            jnp.stack(
                [self._embed(x, f"{name}{i}") for i, x in enumerate(features)], axis=1
            )
            for name, features in (
                ("query", student_features),
                ("key", teacher_features),
            )
        )
        attention = nn.softmax(jnp.einsum("bid,bjd->bij", queries, keys))
        students, teachers = [], []
        for i, student in enumerate(student_features):
            pairs = [_one_size(student, teacher) for teacher in teacher_features]
            teachers.append([teacher for _, teacher in pairs])
            students.append(
                [
                    _Projection(
                        teacher.shape[-1],
                        self.dtype,
                        self.axis_name,
                        name=f"projection{i}_{j}",
                    )(x, train=train)
                    for j, (x, teacher) in enumerate(pairs)
                ]
            )
        return students, teachers, attention

    def _embed(self, features: jax.Array, name: str) -> jax.Array:
        flat = features.reshape(len(features), -1).astype(jnp.float32)
        batch = flat
        if self.axis_name is not None and not self.is_initializing():
            batch = jax.lax.all_gather(flat, self.axis_name, tiled=True)
        if len(batch) > self.batch_size:
            raise ValueError(
                f"Expected at most batch_size = {self.batch_size} examples, got "
                f"{len(batch)}."
            )
        rows = jnp.pad(flat @ batch.T, ((0, 0), (0, self.batch_size - len(batch))))
        dim = self.batch_size // self.reduction
        hidden = nn.Dense(2 * dim, kernel_init=torch_uniform, name=f"{name}_hidden")(
            rows
        )
        linear = nn.Dense(dim, kernel_init=torch_uniform, name=f"{name}_linear")
        return _layers.unit(linear(nn.relu(hidden)))


class _Projection(nn.Module):
    """Student's maps with the teacher's channels, by way of twice as many."""

    channels: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, kernel in enumerate((1, 3)):
            x = _layers.conv(
                2 * self.channels, kernel, dtype=self.dtype, name=f"conv{i}"
            )(x)
            x = batch_norm(train, self.dtype, self.axis_name, name=f"norm{i}")(x)
            x = nn.relu(x)
        return _layers.conv(self.channels, 1, dtype=self.dtype, name="conv2")(x)


def _one_size(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both maps at the height and width of the smaller."""
    size = (
        min(student.shape[1], teacher.shape[1]),
        min(student.shape[2], teacher.shape[2]),
    )
    pooled = [losses.adaptive_average_pool(x, size=size) for x in (student, teacher)]
    return pooled[0], pooled[1]
