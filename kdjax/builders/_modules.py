"""The adapters of the methods that a config can name."""

import jax.numpy as jnp
from flax import linen as nn

from kdjax import adapters
from kdjax.builders._readers import student_layer
from kdjax.builders._terms import Modules, Seen, Setting
from kdjax.types import UserError

Shape = tuple[int, ...]


# For one layer, from the shape of the teacher's.


def hint(shape: Shape) -> nn.Module:
    """A regressor to the hint layer."""
    return adapters.Regressor(hint_shape=shape)


def connect(shape: Shape) -> nn.Module:
    """A 1x1 convolution to the teacher's channels."""
    return adapters.Connector(channels=shape[-1])


def connect_active(shape: Shape) -> nn.Module:
    """The same, with a ReLU."""
    return adapters.Connector(channels=shape[-1], activation=True)


def project(shape: Shape) -> nn.Module:
    """A bottleneck to the teacher's maps."""
    return adapters.SimKDProjector(channels=shape[-1], size=(shape[1], shape[2]))


def embed(shape: Shape) -> nn.Module:
    """A linear map to the teacher's dimension."""
    return adapters.Embed(dim=shape[-1], normalize=False)


def per_token(shape: Shape) -> nn.Module:
    """A linear map of each token to the teacher's dimension."""
    return TokenMap(shape[-1])


def generate(shape: Shape) -> nn.Module:
    """Masked features, filled in."""
    return adapters.MaskedGenerator(channels=shape[-1])


def predict(shape: Shape) -> nn.Module:
    """Mean and variance of the teacher's features."""
    size = (shape[1], shape[2]) if len(shape) == 4 else None
    return adapters.VariationalRegressor(channels=shape[-1], size=size)


class TokenMap(nn.Module):
    """A linear map of the last axis, as TinyBERT's from the student's dimension."""

    dim: int

    @nn.compact
    def __call__(self, x, *, train):
        del train  # Nothing here depends on it.
        return nn.Dense(self.dim, name="linear")(x)


class Before(nn.Module):
    """Whether it is earlier than some epoch; nothing here is trained."""

    epochs: float

    def __call__(self, epoch, *, train):
        del train  # It is as late in either.
        return epoch < self.epochs


# For a whole term.


def fuse(seen: Seen, setting: Setting) -> Modules:
    """One map of all the student's layers to all the teacher's."""
    del setting
    shapes = tuple(layer.shape for layer in seen.teacher_layers)
    module = adapters.ReviewFusion(teacher_shapes=shapes)
    return {"fusion": (module, lambda seen: tuple(seen.student_layers))}


def attend(seen: Seen, setting: Setting) -> Modules:
    """Attention over the pairs of layers."""
    del seen
    module = adapters.SemanticAttention(batch_size=setting.batch_size)
    return {
        "attention": (module, lambda seen: (seen.student_layers, seen.teacher_layers))
    }


def paraphrase(
    seen: Seen, setting: Setting, *, paraphrase_epochs: float = 30.0
) -> Modules:
    """The teacher's layer to a factor and back, and the student's to the factor.

    The first learns in the first epochs, the second after them; the published code
    trains the first before the student begins.
    """
    del setting
    paraphraser = adapters.Paraphraser()
    factors = round(seen.teacher_layers[0].shape[-1] * paraphraser.rate)
    return {
        "paraphraser": (paraphraser, lambda seen: (seen.teacher_layers[0],)),
        "translator": (
            adapters.Translator(factors=factors),
            lambda seen: (seen.student_layers[0],),
        ),
        "is_early": (Before(paraphrase_epochs), lambda seen: (seen.epoch,)),
    }


def remember(
    seen: Seen,
    setting: Setting,
    *,
    dim: int = 128,
    num_negatives: int = 16384,
    positives: str = "exact",
) -> Modules:
    """Embeddings of both sides, and their memory."""
    del seen
    module = adapters.ContrastMemory(
        setting.labels(), dim=dim, num_negatives=num_negatives, positives=positives
    )

    def inputs(seen: Seen) -> tuple:
        batch = seen.batch
        layers = seen.student_layers[0], seen.teacher_layers[0]
        return *layers, batch["example_id"], batch["mask"]

    return {"memory": (module, inputs)}


def exits(seen: Seen, setting: Setting) -> Modules:
    """One exit for each of the student's layers, of the shape of the last."""
    del setting
    last = seen.student_layers[-1].shape
    if len(last) != 4:
        raise UserError(
            f"Expected distill.terms.{seen.name}.student_features to be maps, got "
            f"{seen.student_taps[-1]} of shape {last[1:]}."
        )
    num_classes = seen.student.logits.shape[-1]
    module = adapters.Exit(last[-1], (last[1], last[2]), num_classes)
    return {tap: (module, student_layer(i)) for i, tap in enumerate(seen.student_taps)}


def learn_temperature(
    seen: Seen,
    setting: Setting,
    *,
    instance_wise: bool = False,
    reversal_epochs: float = 10.0,
) -> Modules:
    """A temperature that is learned against the student."""
    del seen, setting

    def inputs(seen: Seen) -> tuple:
        reversal = adapters.ctkd_reversal(seen.epoch, num_epochs=reversal_epochs)
        return seen.student.logits, seen.teacher.logits, reversal

    module = adapters.LearnedTemperature(instance_wise=instance_wise)
    return {"temperature": (module, inputs)}


def permute(seen: Seen, setting: Setting) -> Modules:
    """The teacher's logits, but for the largest in another order each step."""
    del seen, setting
    return {
        "permuted": (adapters.PermutedTeacher(), lambda seen: (seen.teacher.logits,))
    }


def sample(seen: Seen, setting: Setting, *, num_draws: int = 50) -> Modules:
    """Classes drawn from the teacher."""
    del seen, setting
    module = adapters.SampledTargets(num_draws)
    return {"sampled": (module, lambda seen: (jnp.asarray(seen.teacher.logits),))}
