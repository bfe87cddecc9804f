"""Distillation between the clients of a federation and their server."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _checks, _divergences, _masking, _teachers


def feddf_loss(
    student_logits: Float[Array, "*batch classes"],
    client_logits: Float[Array, "clients *batch classes"],
    *,
    average: str = "losses",
    weights: Float[Array, " clients"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of a server's student from its clients, on examples without labels.

    Ensemble distillation for model fusion: clients of any architectures are fused by
    their predictions :math:`z^k`, weighed by their numbers of examples :math:`n_k`:

    .. math::
      \ell = \sum_k w_k \, \mathrm{KL}\!\left(
        \mathrm{softmax}(z^k) \,\|\, \mathrm{softmax}(z^s)\right), \qquad
      w_k = \frac{n_k}{\sum_j n_j}

    which averages `'losses'`, as the authors' code does by default. With `'logits'`
    the teacher is :math:`\mathrm{softmax}(\sum_k w_k z^k)`, as in the paper and in
    the published commands; with `'probs'`, :math:`\sum_k w_k \mathrm{softmax}(z^k)`,
    which has the gradient of `'losses'`.

    Args:
      student_logits: unnormalised log-probabilities, `[..., num_classes]`.
      client_logits: those of the clients, `[clients, ..., num_classes]`.
      average: what of the clients is averaged: `'losses'`, `'logits'` or `'probs'`.
      weights: not negative, such as numbers of examples, `[clients]`. Equal if
        absent. Divided by their sum.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit, or `average` is unknown.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> client_logits = jnp.array([[100.0, 0.0], [0.0, 100.0]])  # They disagree.
      >>> for average in ("losses", "logits", "probs"):
      ...     print(losses.feddf_loss(
      ...         student_logits, client_logits, average=average).round(4))
      0.6931
      0.0
      0.0

    References:
      Lin et al., `Ensemble Distillation for Robust Model Fusion in Federated Learning
      <https://arxiv.org/abs/2006.07242>`_, NeurIPS 2020, section 3, algorithm 1.
    """
    _checks.check_choice(("losses", "logits", "probs"), average=average)
    if average == "losses":
        return _teachers.multi_teacher_loss(
            student_logits, client_logits, weights=weights, where=where
        )
    ensemble = (
        _teachers.average_logits if average == "logits" else _teachers.average_probs
    )
    teacher_logits = ensemble(client_logits, weights=weights, where=where)
    return _divergences.forward_kl(student_logits, teacher_logits, where=where)


def fedmd_consensus(
    client_logits: Float[Array, "clients *batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Mean of the clients' logits, which each then learns by `fedmd_loss`.

    What the server of a federation sends back in each round, of logits on public
    examples that all have sent, of whatever architectures:

    .. math:: z = \frac{1}{K} \sum_k z^k

    Logits before any softmax, so that no information is lost in probabilities near 0.
    It is `average_logits` with equal weights.

    Args:
      client_logits: unnormalised log-probabilities, `[clients, ..., num_classes]`.
      where: which examples are valid, `[...]`. All other rows are zeros with zero
        gradient, even if they are not finite.

    Returns:
      The consensus, `[..., num_classes]`, in at least float32.

    Raises:
      ValueError: if the shape of `where` does not fit.
      TypeError: if the logits are not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> client_logits = jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> print(losses.fedmd_consensus(client_logits))
      [1. 2.]

    References:
      Li and Wang, `FedMD: Heterogenous Federated Learning via Model Distillation
      <https://arxiv.org/abs/1910.03581>`_, 2019, algorithm 1.
    """
    return _teachers.average_logits(client_logits, where=where)


def fedgkd_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "models *batch classes"],
    *,
    weights: Float[Array, " models"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Half the weighted divergences of a client from past global models.

    A client that trains on its own, biased data is held near what the federation
    knows: to one teacher, whose parameters are the mean of the last global models'
    (`federated_average`), or, by the method's voting variant, to each of them:

    .. math::
      \ell = \sum_m \frac{\gamma_m}{2} \, \mathrm{KL}\!\left(
        \mathrm{softmax}(z^m) \,\|\, \mathrm{softmax}(z^s)\right)

    The weights are not divided by their sum: they say how much distillation there is
    beside the cross-entropy. The paper's is 0.2.

    Args:
      student_logits: the client's unnormalised log-probabilities,
        `[..., num_classes]`.
      teacher_logits: those of one or more global models, `[models, ..., num_classes]`.
      weights: the coefficients :math:`\gamma`, `[models]`; 0.2 shared by the models
        if absent.
      where: which examples are valid, `[...]`. The loss and the gradient of every
        other example are exactly zero, even if its logits are not finite.

    Returns:
      The loss of each example in nats, `[...]`, in at least float32.

    Raises:
      ValueError: if shapes do not fit.
      TypeError: if an array is not floating-point, or `where` is not boolean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> student_logits = jnp.array([0.0, 0.0])
      >>> teacher_logits = jnp.array([[100.0, 0.0]])  # log(2), halved.
      >>> print(losses.fedgkd_loss(
      ...     student_logits, teacher_logits, weights=jnp.array([1.0])).round(4))
      0.3466

    References:
      Yao et al., `Local-Global Knowledge Distillation in Heterogeneous Federated
      Learning with Non-IID Data <https://arxiv.org/abs/2107.00051>`_, 2021, section
      3; later `FedGKD <https://doi.org/10.1109/TC.2023.3315066>`_, IEEE Transactions
      on Computers 2023.
    """
    total: Any = 0.2
    if weights is not None:
        total = jnp.sum(weights)
        weights = jnp.where(total > 0, weights, 1)  # Zeros have no mean.
    mean = _teachers.multi_teacher_loss(
        student_logits, teacher_logits, weights=weights, where=where
    )
    return 0.5 * jnp.asarray(total, mean.dtype) * mean


def federated_average(
    stacked_params: Any, *, weights: Float[Array, " clients"] | None = None
) -> Any:
    r"""Weighted mean of the parameters of several clients, leaf by leaf.

    Federated averaging, at the server, after a round of local training:

    .. math:: \theta = \sum_k n_k \theta^k \Big/ \sum_k n_k

    The clients must have one architecture and have begun from one initialisation.
    Batch statistics may be averaged likewise.

    Args:
      stacked_params: a tree of arrays `[clients, ...]`, such as
        `jax.tree.map(lambda *x: jnp.stack(x), *params)` makes.
      weights: not negative, such as numbers of examples, `[clients]`. Equal if
        absent. Divided by their sum.

    Returns:
      The tree of means, `[...]` each, computed in at least float32, in its own dtypes.

    Raises:
      ValueError: if the numbers of clients differ, or there are no arrays.
      TypeError: if a leaf is not floating-point: counts have no mean.

    Examples:
      >>> import jax.numpy as jnp
      >>> from kdjax import losses
      >>> stacked_params = {"kernel": jnp.array([[0.0, 4.0], [8.0, 0.0]])}
      >>> print(losses.federated_average(
      ...     stacked_params, weights=jnp.array([3.0, 1.0]))["kernel"])
      [2. 3.]

    References:
      McMahan et al., `Communication-Efficient Learning of Deep Networks from
      Decentralized Data <https://arxiv.org/abs/1602.05629>`_, AISTATS 2017,
      algorithm 1.
    """
    leaves = jax.tree.leaves(stacked_params)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"Expected floating-point stacked_params, got {leaf.dtype}."
            )
    counts = {leaf.shape[:1] for leaf in leaves}
    counts |= set() if weights is None else {weights.shape}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise ValueError(
            "Expected leaves [clients, ...] and weights [clients] of as many clients, "
            f"got numbers of clients {sorted(counts)}."
        )
    if weights is None:
        weights = jnp.ones(counts.pop())

    def mean(leaf: jax.Array) -> jax.Array:
        (wide,) = _masking.drop_invalid(None, leaf.reshape(len(leaf), -1))
        shares = (weights / jnp.sum(weights)).astype(wide.dtype)
        average = jnp.sum(shares[:, None] * wide, axis=0)
        return average.reshape(leaf.shape[1:]).astype(leaf.dtype)

    return jax.tree.map(mean, stacked_params)
