"""Checkpoints of a training, by Orbax: asynchronous, atomic, exact.

Each checkpoint carries the digest of its state. Orbax notices truncated and missing
files, but restores a flipped byte in silence; the digest does not.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from kdjax import fingerprints
from kdjax.types import UserError

BEST_METRIC = "validation_accuracy"


class Checkpoints:
    """The checkpoints of one training: the last few, and the best by validation.

    A save returns as soon as the state is copied to the host, and becomes visible in
    one rename: a process killed in the middle of it leaves the checkpoints before.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        self.directory = directory
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_score
        )
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_names=("state", "digest")
        )

    def save(self, step: int, state: Any, metrics: Mapping[str, float]) -> None:
        """Starts to save `state`; `metrics` decide whether it is kept as the best."""
        if step in self._manager.all_steps():
            return  # A resumed run comes by here again, with the same state.
        host_state = to_host(state)
        digest = {"sha256": fingerprints.fingerprint_tree(host_state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host_state),
                digest=ocp.args.JsonSave(digest),
            ),
            metrics={name: float(value) for name, value in metrics.items()},
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the highest validation accuracy; the later of equals."""
        best = self._manager.best_step()
        if best is None or BEST_METRIC not in self._manager.metrics(best):
            return None
        return best

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, on the host, in the structure of `like`.

        Raises:
          UserError: if it is damaged, or was saved from another kind of state.
        """
        template = to_host(like)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), digest=ocp.args.JsonRestore()
        )
        path = self.directory / str(step)
        advice = (
            f"Move {path} away to go on from an earlier checkpoint, or "
            f"{self.directory.parent} to start afresh."
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:  # Orbax lets through whatever its parts raise.
            raise UserError(
                f"Expected a complete checkpoint of this model at {path}, but it does "
                f"not read back ({_first_line(error)}). {advice}"
            ) from error
        # Orbax reshapes nothing, but neither does it complain.
        for x, y in zip(
            jax.tree.leaves(restored.state), jax.tree.leaves(template), strict=True
        ):
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                raise UserError(
                    f"Expected a checkpoint of this model at {path}, with an array of "
                    f"{y.dtype} {y.shape}, got {x.dtype} {x.shape}. {advice}"
                )
        found = fingerprints.fingerprint_tree(restored.state)
        if found != restored.digest["sha256"]:
            raise UserError(
                f"Expected the checkpoint at {path} to have the digest recorded when "
                f"it was saved, but its bytes have changed since. {advice}"
            )
        return from_host(restored.state, like)

    def wait(self) -> None:
        """Waits until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves, then frees what the manager holds."""
        self._manager.close()


def to_host(tree: Any) -> Any:
    """NumPy arrays of a tree; typed PRNG keys become their data."""
    return jax.device_get(
        jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
    )


def from_host(tree: Any, like: Any) -> Any:
    """The inverse of `to_host`: key data become PRNG keys where `like` has them."""
    return jax.tree.map(
        lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like
    )


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.dtypes.issubdtype(
        x.dtype, jax.dtypes.prng_key
    )


def _score(metrics: Mapping[str, float]) -> float:
    """Checkpoints saved between evaluations have no metrics: never the best."""
    return metrics.get(BEST_METRIC, float("-inf"))


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0][:200]


def load_variables(directory: pathlib.Path) -> dict[str, Any]:
    """The variables in an Orbax directory, on the host.

    Either the checkpoints of a training, of which the newest counts, or one checkpoint
    of bare variables.

    Raises:
      UserError: if there are no variables in it, or they don't read back.
    """
    steps = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
    place = directory / str(max(steps)) / "state" if steps else directory
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(place.absolute())
    except Exception as error:  # Orbax lets through whatever its parts raise.
        raise UserError(
            f"Expected an Orbax checkpoint at {place}, but it does not read back "
            f"({_first_line(error)})."
        ) from error
    if not isinstance(tree, Mapping) or "params" not in tree:
        raise UserError(f"Expected 'params' in the checkpoint at {place}, got none.")
    params = tree.get("ema_params") or tree["params"]
    state = tree.get("model_state")
    if state is None:
        state = {k: v for k, v in tree.items() if k == "batch_stats"}
    return {"params": params, **state}
