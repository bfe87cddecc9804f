"""What frozen features hold: a linear classifier fitted to a few labelled examples."""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Integer


class LinearProbe(NamedTuple):
    """A linear classifier of standardised features.

    Attributes:
      mean: of each feature over the examples fitted, `[dim]`.
      scale: its standard deviation, or 1 where it never changes, `[dim]`.
      kernel: `[dim, num_classes]`.
      bias: `[num_classes]`.
    """

    mean: np.ndarray
    scale: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    def logits(
        self, features: Float[np.ndarray, "examples dim"]
    ) -> Float[np.ndarray, "examples num_classes"]:
        """Unnormalised log-probabilities."""
        return (features - self.mean) / self.scale @ self.kernel + self.bias


def fit(
    features: Float[np.ndarray, "examples dim"],
    labels: Integer[np.ndarray, " examples"],
    *,
    num_classes: int,
    weight_decay: float,
) -> LinearProbe:
    r"""The linear probe of Alain & Bengio 2016, to the one optimum that it has.

    .. math::
      \min_{W, b} \frac{1}{N} \sum_n \mathrm{CE}(y_n, W^\top x_n + b)
        + \frac{\lambda}{2} \|W\|^2

    strictly convex in :math:`W` for :math:`\lambda > 0`, so that neither a seed nor an
    order of examples has a part in it. Features are standardised first. In float64, by
    L-BFGS, on the host: the examples are few.

    Args:
      features: of the labelled examples.
      labels: their classes.
      num_classes: how many there are.
      weight_decay: :math:`\lambda`, positive.

    Raises:
      ValueError: if the weight decay is not positive, or there is no example.

    Examples:
      >>> import numpy as np
      >>> from kdjax import probes
      >>> features = np.array([[0.0], [1.0], [9.0], [10.0]])
      >>> labels = np.array([0, 0, 1, 1])
      >>> probe = probes.fit(features, labels, num_classes=2, weight_decay=1e-3)
      >>> print(probe.logits(np.array([[4.0], [6.0]])).argmax(axis=-1))
      [0 1]
    """
    if not (weight_decay > 0 and len(features)):
        raise ValueError(
            f"Expected examples and a positive weight_decay, got {len(features)} and "
            f"{weight_decay}."
        )
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x = (features - mean) / scale
    targets = np.eye(num_classes)[labels]
    shape = x.shape[1] + 1, num_classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = np.split(flat.reshape(shape), [-1])
        log_probs = scipy.special.log_softmax(x @ kernel + bias, axis=-1)
        error = (np.exp(log_probs) - targets) / len(x)
        gradient = np.concatenate(
            [x.T @ error + weight_decay * kernel, error.sum(axis=0, keepdims=True)]
        )
        loss = -np.sum(targets * log_probs) / len(x)
        return loss + weight_decay / 2 * np.sum(kernel**2), gradient.ravel()

    found = scipy.optimize.minimize(
        objective,
        np.zeros(np.prod(shape)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "gtol": 1e-7, "ftol": 1e-14},
    )
    kernel, bias = np.split(found.x.reshape(shape), [-1])
    return LinearProbe(mean, scale, kernel, bias[0])
