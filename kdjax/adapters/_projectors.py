"""Maps of the last features, and what is done with them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.adapters import _layers
from kdjax.models.layers import batch_norm


def classify(
    features: Float[Array, "batch *places channels"],
    kernel: Float[Array, "channels classes"],
    bias: Float[Array, " classes"] | None = None,
) -> Float[Array, "batch classes"]:
    r"""Logits of a given linear classifier for features averaged over the places.

    .. math:: z = W^\top \Bigl( \frac{1}{P} \sum_p f_p \Bigr) + b

    Of the teacher's classifier and the student's features: what a student of SimKD
    predicts by, and what `losses.srrl_loss` compares to the teacher's logits.

    Args:
      features: as the classifier's network has them before its average,
        `[batch, ..., channels]`.
      kernel: of the linear layer, `[channels, num_classes]`.
      bias: of the linear layer, if it has one, `[num_classes]`.

    Returns:
      The logits, `[batch, num_classes]`, in at least float32.

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if an array is not floating-point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import classify
      >>> features = jnp.array([[1.0, 0.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
      >>> kernel, bias = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]), jnp.ones(3)
      >>> print(classify(features, kernel, bias))
      [[3. 3. 7.]]

    References:
      Chen et al., `Knowledge Distillation with the Reused Teacher Classifier
      <https://arxiv.org/abs/2203.14001>`_, CVPR 2022, section 3.
    """
    maps = _layers.as_maps(features)
    average = losses.adaptive_average_pool(maps, size=(1, 1))
    return losses.class_attention_maps(average, kernel, bias)[:, 0, 0]


class SimKDProjector(nn.Module):
    r"""A bottleneck from the student's last maps to the teacher's, for its classifier.

    A 1x1, a 3x3 and a 1x1 convolution, each with BatchNorm and a ReLU, and a fraction
    of the teacher's channels between them. The student has no classifier of its own:
    `losses.hint_loss` between the output and the teacher's last maps is all that is
    trained, and `classify` predicts from the output with the teacher's linear layer.

    Attributes:
      channels: of the teacher's maps.
      reduction: the teacher's channels over those between; 2 in the paper.
      size: the height and width to average the student's maps to, if given: that of
        the teacher's where theirs are smaller. Where theirs are larger, average them
        by `losses.adaptive_average_pool`.
      dtype: of the computation.
      axis_name: of the devices under `pmap`, for the statistics of BatchNorm.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import SimKDProjector, classify
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> projector = SimKDProjector(channels=32)
      >>> variables = projector.init(jax.random.key(0), student_features, train=False)
      >>> projected = projector.apply(variables, student_features, train=False)
      >>> teacher_kernel, teacher_bias = jnp.ones((32, 10)), jnp.zeros(10)
      >>> logits = classify(projected, teacher_kernel, teacher_bias)
      >>> print(projected.shape, logits.shape)
      (2, 8, 8, 32) (2, 10)

    References:
      Chen et al., `Knowledge Distillation with the Reused Teacher Classifier
      <https://arxiv.org/abs/2203.14001>`_, CVPR 2022, section 3.
    """

    channels: int
    reduction: int = 2
    size: tuple[int, int] | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch _ _ student_channels"], *, train: bool
    ) -> Float[Array, "batch _ _ channels"]:
        x = features
        if self.size is not None:
            x = losses.adaptive_average_pool(x, size=self.size)
        between = self.channels // self.reduction
        shapes = (between, 1), (between, 3), (self.channels, 1)
        for i, (width, kernel) in enumerate(shapes):
            x = _layers.conv(width, kernel, dtype=self.dtype, name=f"conv{i}")(x)
            x = batch_norm(train, self.dtype, self.axis_name, name=f"norm{i}")(x)
            x = nn.relu(x)
        return x


class MaskedGenerator(nn.Module):
    r"""Two convolutions that generate a teacher's features from parts of a student's.

    In training a random part of the student's maps is set to zero, by
    `losses.mgd_mask`, after a 1x1 convolution where the channels differ from the
    teacher's; two 3x3 convolutions with a ReLU between them fill it in, for
    `losses.mgd_loss`. In inference nothing is masked.

    The mask is drawn from the key `dropout`, for each example of the global batch on
    its own, so it is the same on one device and on several.

    Attributes:
      channels: of the teacher's features.
      masked: the fraction that is masked; 0.15 for classifiers and mostly 0.65 for
        detectors in the paper.
      over: `'channels'` for classifiers, `'places'` for detectors.
      dtype: of the computation.
      axis_name: of the devices under `pmap`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.adapters import MaskedGenerator
      >>> student_features = jnp.ones((2, 8, 8, 16))
      >>> generator = MaskedGenerator(channels=32)
      >>> variables = generator.init(jax.random.key(0), student_features, train=False)
      >>> generated = generator.apply(
      ...     variables, student_features, train=True,
      ...     rngs={"dropout": jax.random.key(1)})
      >>> print(generated.shape)
      (2, 8, 8, 32)

    References:
      Yang et al., `Masked Generative Distillation
      <https://arxiv.org/abs/2205.01529>`_, ECCV 2022, section 3.
    """

    channels: int
    masked: float = 0.65
    over: str = "places"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch height width student_channels"],
        mask: Bool[Array, "batch _ _ _"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Generated features; a given `mask` takes the place of a random one."""
        x = features
        if x.shape[-1] != self.channels:
            x = _layers.conv(
                self.channels, 1, use_bias=True, dtype=self.dtype, name="align"
            )(x)
        if mask is None and train:
            mask = self._random_mask(x)
        if mask is not None:
            x = jnp.where(mask, x, 0)
        for i in range(2):
            x = nn.relu(x) if i else x
            x = _layers.conv(
                self.channels, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}"
            )(x)
        return x

    def _random_mask(self, x: jax.Array) -> jax.Array:
        first: int | jax.Array = 0
        if self.axis_name is not None:
            first = jax.lax.axis_index(self.axis_name) * len(x)
        fold = functools.partial(jax.random.fold_in, self.make_rng("dropout"))
        keys = jax.vmap(fold)(first + jnp.arange(len(x)))

        def draw(key: jax.Array) -> jax.Array:
            return losses.mgd_mask(key, x[:1], masked=self.masked, over=self.over)[0]

        return jax.vmap(draw)(keys)
