"""A teacher that runs once in a step, for all students that see the same batch."""

from typing import Any

from kdjax.builders._roles import run_teacher
from kdjax.types import Batch, Outputs, Values, Variables

# Entry of a batch with the teacher's logits, where it ran once for many students; with
# the name of a feature behind it, that feature.
TEACHER = "teacher/"


def run_once(apply_fn: Any, variables: Variables, batch: Batch) -> Batch:
    """The teacher's outputs, once for all students that see the batch."""
    outputs = run_teacher(apply_fn, variables, batch, {})
    found = {f"{TEACHER}{name}": x for name, x in outputs.features.items()}
    return {**batch, **found, TEACHER: outputs.logits}


def read_prepared(variables: Variables, batch: Batch, values: Values) -> Outputs:
    """What `run_once` left in the batch."""
    del variables, values
    features = {
        name.removeprefix(TEACHER): x
        for name, x in batch.items()
        if name.startswith(TEACHER) and name != TEACHER
    }
    return Outputs(batch[TEACHER], features)


def as_it_is(variables: Variables, batch: Batch) -> Batch:
    """For students without a teacher, or whose batch has its outputs."""
    del variables
    return batch


def everything(variables: Variables) -> Variables:
    """What steps read of a teacher that runs, or whose classifier they need."""
    return variables


def nothing(variables: Variables) -> Variables:
    """What they read of a teacher whose outputs are cached."""
    del variables
    return {}
