"""A checkpoint gives back the very state, or says what is wrong with it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import checkpoints, optimizers, schedules, steps
from kdjax.types import UserError

HPARAMS = {
    "learning_rate": schedules.Constant(0.1),
    "momentum": schedules.Constant(0.9),
    "weight_decay": schedules.Constant(0.0),
}


def _state(step=0, width=3):
    variables = {
        "params": {"kernel": jnp.arange(4.0 * width).reshape(4, width) + step},
        "batch_stats": {"mean": jnp.ones(width, jnp.bfloat16)},
    }
    state = steps.init_state(
        variables, optimizers.sgd(), HPARAMS, jax.random.key(step), ema=True
    )
    return state.replace(step=jnp.int32(step))


def _saved(directory, accuracies, keep=2):
    saved = checkpoints.Checkpoints(directory / "checkpoints", keep=keep)
    for step, accuracy in accuracies.items():
        metrics = {} if accuracy is None else {"validation_accuracy": accuracy}
        saved.save(step, _state(step), metrics)
    saved.wait()
    return saved


def _steps_on_disk(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir())


def test_a_restored_state_equals_the_saved_one_to_the_last_bit(tmp_path):
    saved = _saved(tmp_path, {5: 0.5})
    restored = saved.restore(5, _state())
    expected, actual = (checkpoints.to_host(x) for x in (_state(5), restored))
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert actual.model_state["batch_stats"]["mean"].dtype == jnp.bfloat16
    # The key is a key again, and gives the same numbers.
    draws = [jax.random.bits(state.rng) for state in (restored, _state(5))]
    assert draws[0] == draws[1]
    saved.close()


def test_the_latest_and_the_best_are_kept(tmp_path):
    saved = _saved(tmp_path, {1: 0.1, 2: 0.9, 3: None, 4: 0.5, 5: 0.4, 6: None})
    assert (saved.latest_step, saved.best_step) == (6, 2)
    assert _steps_on_disk(tmp_path) == [2, 5, 6]
    saved.close()
    reopened = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=2)
    assert (reopened.latest_step, reopened.best_step) == (6, 2)
    reopened.close()


def test_a_step_saved_twice_is_saved_once(tmp_path):
    saved = _saved(tmp_path, {1: 0.1})
    saved.save(1, _state(1), {"validation_accuracy": 0.1})
    saved.wait()
    assert saved.latest_step == 1
    saved.close()


def test_there_is_no_best_without_validation(tmp_path):
    saved = _saved(tmp_path, {1: None, 2: None})
    assert saved.best_step is None
    saved.close()


def _largest_file(directory: pathlib.Path) -> pathlib.Path:
    files = (p for p in directory.rglob("*") if p.is_file())
    return max(files, key=lambda p: p.stat().st_size)


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("damage", [_flip_a_byte, _truncate, pathlib.Path.unlink])
def test_damage_is_one_sentence_that_names_the_checkpoint(tmp_path, damage):
    _saved(tmp_path, {7: None}).close()
    damage(_largest_file(tmp_path / "checkpoints" / "7" / "state"))
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoint.* at .*7.*Move .*7 away"):
        saved.restore(7, _state())
    saved.close()


def test_another_model_is_refused(tmp_path):
    saved = _saved(tmp_path, {7: None})
    with pytest.raises(UserError, match="Expected a checkpoint of this model at"):
        saved.restore(7, _state(width=4))
    saved.close()


def test_optimizer_states_survive():
    state = _state()
    assert isinstance(state.opt_state, tuple)
    assert any(isinstance(x, optax.TraceState) for x in state.opt_state)
