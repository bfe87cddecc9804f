"""A teacher that is the running average of its student: state and step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kdjax.steps import Metrics, TeacherFn, TrainState, TrainStep, hyperparameters
from kdjax.types import ApplyFn, Batch, HParams, Outputs, Values, Variables


@flax.struct.dataclass
class MeanTeacherState:
    """A student in training, and the average of all that it was.

    Attributes:
      student: its state.
      teacher: variables: averages of the student's parameters and of its batch
        statistics.
    """

    student: TrainState
    teacher: Any

    @property
    def step(self) -> jax.Array:
        return self.student.step

    @property
    def eval_variables(self) -> Variables:
        """The teacher's, which is the better of the two as a rule."""
        return self.teacher


def init_state(student: TrainState) -> MeanTeacherState:
    """The state before the first step: the teacher is the student."""
    # A copy: the first step may donate the buffers of the student.
    return MeanTeacherState(student, jax.tree.map(jnp.copy, student.eval_variables))


def see_second_view(apply_fn: ApplyFn) -> TeacherFn:
    """A teacher that sees the other view of each image, in inference mode."""

    def teacher_fn(variables: Variables, batch: Batch, values: Values) -> Outputs:
        del values
        outputs, _ = apply_fn(variables, batch["second_image"], train=False)
        return outputs

    return teacher_fn


def make_train_step(student_step: TrainStep) -> Any:
    r"""Builds `train_step(state, constants, batch, hparams)` of student and teacher.

    The student makes a step of its own, with the teacher as it stands; then the teacher
    follows:

    .. math::
      \theta' \leftarrow a_t \, \theta' + (1 - a_t) \, \theta, \qquad
      a_t = \min\!\left(a, \; 1 - \frac{1}{t + 1}\right)

    after update :math:`t = 1, 2, \ldots` with :math:`a` the value `teacher_decay` of
    the step: at first a plain mean of all that the student was, so that its initial
    weights do not linger. Batch statistics are averaged like parameters.

    Args:
      student_step: of `steps.make_train_step`, whose `teacher_fn` runs the teacher, as
        `see_second_view` does.

    Returns:
      The step; it has no constants.

    References:
      Tarvainen and Valpola, `Mean teachers are better role models
      <https://arxiv.org/abs/1703.01780>`_, NeurIPS 2017, section 2; the ramp of
      :math:`a` is that of the authors' code.
    """

    def train_step(
        state: MeanTeacherState, constants: Any, batch: Batch, hparams: HParams
    ) -> tuple[MeanTeacherState, Metrics]:
        del constants
        student, metrics = student_step(state.student, state.teacher, batch, hparams)
        decay = hyperparameters(hparams, state.step)["teacher_decay"]
        decay = jnp.minimum(decay, 1 - 1 / (student.step.astype(jnp.float32) + 1))
        teacher = jax.tree.map(
            lambda average, x: decay * average + (1 - decay) * x,
            state.teacher,
            student.eval_variables,
        )
        return MeanTeacherState(student, teacher), metrics

    return train_step
