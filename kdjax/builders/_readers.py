"""Where the arguments of losses are, for the table of methods."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax import losses
from kdjax.adapters import classify
from kdjax.builders._terms import Arguments, Modules, Seen, Setting
from kdjax.models import layers_of
from kdjax.types import UserError

# Of logits.


def logits(seen: Seen) -> list[Arguments]:
    """Those of both sides."""
    return [(seen.student.logits, seen.teacher.logits)]


def logits_and_labels(seen: Seen) -> list[Arguments]:
    """Those of both sides, and the labels."""
    return [(seen.student.logits, seen.teacher.logits, seen.batch["label"])]


def own_logits_and_labels(seen: Seen) -> list[Arguments]:
    """The student's, and the labels."""
    return [(seen.student.logits, seen.batch["label"])]


def logits_and_group(seen: Seen) -> list[Arguments]:
    """The student's, and those of a group of teachers: of the one there is."""
    return [(seen.student.logits, seen.teacher.logits[None])]


def logits_and_top(seen: Seen) -> list[Arguments]:
    """The student's, and the teacher's two largest with the mass of all others."""
    teacher = seen.teacher.logits
    temperature = seen.values.get(f"{seen.name}.temperature", 1.0)
    top, classes = jax.lax.top_k(teacher, 2)
    kept = jnp.any(jnp.arange(teacher.shape[-1]) == classes[..., None], axis=-2)
    rest = jnp.where(kept, -jnp.inf, teacher / temperature)
    return [(seen.student.logits, top, classes, jax.nn.logsumexp(rest, axis=-1))]


# Of features.


def pairs(seen: Seen) -> list[Arguments]:
    """Each layer of the student, and the teacher's."""
    return list(zip(seen.student_layers, seen.teacher_layers, strict=True))


def adapted_pairs(seen: Seen) -> list[Arguments]:
    """What the adapter made of each layer of the student, and the teacher's."""
    return list(zip(seen.adapted_layers, seen.teacher_layers, strict=True))


def predictions(seen: Seen) -> list[Arguments]:
    """Of each layer, a predicted mean and variance, and the teacher's layer."""
    return [
        (*made, layer)
        for made, layer in zip(seen.adapted_layers, seen.teacher_layers, strict=True)
    ]


def fused_pairs(seen: Seen) -> list[Arguments]:
    """What one adapter made of all layers together, and the teacher's."""
    return list(zip(seen.adapted("fusion"), seen.teacher_layers, strict=True))


def flows(seen: Seen) -> list[Arguments]:
    """Each layer with its next, of the student and of the teacher."""
    student, teacher = seen.student_layers, seen.teacher_layers
    places = range(len(student) - 1)
    return [(tuple(student[i : i + 2]), tuple(teacher[i : i + 2])) for i in places]


def stages(seen: Seen) -> list[Arguments]:
    """All layers of the student, and all of the teacher."""
    return [(tuple(seen.student_layers), tuple(seen.teacher_layers))]


def logits_and_stages(seen: Seen) -> list[Arguments]:
    """The logits and all layers of both sides."""
    return [(*logits(seen)[0], *stages(seen)[0])]


def relations(seen: Seen) -> list[Arguments]:
    """Queries, keys and values of the student, and of the teacher."""
    if len(seen.student_taps) != 3:
        raise UserError(
            f"Expected distill.terms.{seen.name} to name the queries, keys and values "
            f"of one block on each side, got {', '.join(seen.student_taps)} and "
            f"{', '.join(seen.teacher_taps)}: set student_features and "
            "teacher_features, as to 'block2_queries,block2_keys,block2_values'."
        )
    return [(*seen.student_layers, *seen.teacher_layers)]


# Of classifiers and statistics.


def hidden_states(seen: Seen) -> list[Arguments]:
    """What the classifier sees and its kernel, of the student and of the teacher."""
    return [
        (
            seen.student_layers[0],
            layers_of.classifier(seen.student.variables)[0],
            seen.teacher_layers[0],
            layers_of.classifier(seen.teacher.variables)[0],
        )
    ]


def student_bias(seen: Seen) -> jax.Array:
    """Of the student's classifier."""
    return layers_of.classifier(seen.student.variables)[1]


def teacher_bias(seen: Seen) -> jax.Array:
    """Of the teacher's classifier."""
    return layers_of.classifier(seen.teacher.variables)[1]


def hidden_states_and(
    targets: Callable[[Seen], list[Arguments]],
) -> Callable[[Seen], list[Arguments]]:
    """What the student's classifier sees and its kernel, in place of its logits."""

    def read(seen: Seen) -> list[Arguments]:
        kernel, _ = layers_of.classifier(seen.student.variables)
        ((_, *others),) = targets(seen)
        return [(seen.student_layers[0], kernel, *others)]

    return read


def class_maps(seen: Seen) -> list[Arguments]:
    """The classifiers applied at every place, of the student and of the teacher."""
    sides = (
        (seen.student, seen.student_layers[0]),
        (seen.teacher, seen.teacher_layers[0]),
    )
    return [
        tuple(
            losses.class_attention_maps(
                layer.astype(jnp.float32), *layers_of.classifier(outputs.variables)
            )
            for outputs, layer in sides
        )
    ]


def regressions(seen: Seen) -> list[Arguments]:
    """Adapted features, the teacher's, and the logits its classifier gives both."""
    (features,) = seen.adapted_layers
    kernel, bias = layers_of.classifier(seen.teacher.variables)
    student_logits = classify(features, kernel, bias)
    return [(features, seen.teacher_layers[0], student_logits, seen.teacher.logits)]


def margins(seen: Seen) -> list[Arguments]:
    """Adapted features, the teacher's, and their margins, for each stage."""
    norms = layers_of.last_norms(seen.teacher.variables)
    found = {f"stage{i}_preact": norm for i, norm in enumerate(norms, start=1)}
    return [
        (made, layer, losses.ofd_margins(*found[tap]))
        for made, layer, tap in zip(
            seen.adapted_layers, seen.teacher_layers, seen.teacher_taps, strict=True
        )
    ]


# Of what other adapters made.


def made(key: str) -> Callable[[Seen], list[Arguments]]:
    """All that the adapter called `key` returns."""
    return lambda seen: [seen.adapted(key)]


def logits_and_made(key: str) -> Callable[[Seen], list[Arguments]]:
    """The student's logits, and all that the adapter called `key` returns."""
    return lambda seen: [(seen.student.logits, *seen.adapted(key))]


def factors(seen: Seen) -> list[Arguments]:
    """The student's factor, and the teacher's, which is a constant; early, it twice."""
    factor = jax.lax.stop_gradient(seen.adapted("paraphraser")[0])
    student = jnp.where(seen.adapted("is_early"), factor, seen.adapted("translator"))
    return [(student, factor)]


def reconstruction(seen: Seen) -> jax.Array:
    """How far the paraphraser is from its input, while it is early."""
    _, reconstructed = seen.adapted("paraphraser")
    error = losses.hint_loss(
        reconstructed, seen.teacher_layers[0], where=seen.batch["mask"]
    )
    return jnp.where(seen.adapted("is_early"), error, 0)


def weak_logits(seen: Seen) -> list[Arguments]:
    """The student's logits, those of its exit, and the labels."""
    _, weak = seen.adapted_layers[0]
    return [(seen.student.logits, weak, seen.batch["label"])]


def exit_logits(seen: Seen) -> list[Arguments]:
    """Those of all exits of the student, and of the student itself."""
    exits = [logits for _, logits in seen.adapted_layers]
    return [(jnp.stack(exits), seen.student.logits)]


def exit_features(seen: Seen) -> list[Arguments]:
    """Those of all exits of the student, and of its last layer."""
    exits = [features for features, _ in seen.adapted_layers]
    return [(jnp.stack(exits), seen.student.features[seen.student_taps[-1]])]


def exit_labels(seen: Seen) -> jax.Array:
    """The exits' cross-entropy with the labels."""
    of_each = [
        losses.cross_entropy(logits, seen.batch["label"], where=seen.batch["mask"])
        for _, logits in seen.adapted_layers
    ]
    return jnp.sum(jnp.stack(of_each), axis=0)


# Adapters.


def student_layer(i: int) -> Callable[[Seen], Arguments]:
    """The student's layer number `i`, from 0."""
    return lambda seen: (seen.student_layers[i],)


def each_layer(
    make: Callable[..., nn.Module],
) -> Callable[[Seen, Setting], Modules]:
    """One for each layer of the student, made from the shape of the teacher's."""

    def modules(seen: Seen, setting: Setting) -> Modules:
        del setting
        return {
            tap: (make(layer.shape), student_layer(i))
            for i, (tap, layer) in enumerate(
                zip(seen.student_taps, seen.teacher_layers, strict=True)
            )
        }

    return modules
