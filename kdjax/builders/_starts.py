"""Trainings that start from weights in a file."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import features, networks, parallel, pretrained
from kdjax.types import Variables


def start_from(
    path: str, fresh: Variables, network: networks.Network, role: str
) -> Variables:
    """The variables of a file, and from `fresh` what these are without.

    That is, a classifier if the file has none or one of other classes, and adapters.

    Args:
      path: of the file.
      fresh: random variables of the network, and of adapters.
      network: what they are of.
      role: of the network, for the sentence that is printed.

    Raises:
      UserError: as `pretrained.load`.
    """
    own, adapters = features.split(fresh)
    own, heads = jax.device_get(own), network.classifiers()
    loaded = pretrained.load(path, own, optional=heads)
    new = [head for head in heads if _equal(_at(head, loaded), _at(head, own))]
    classifier = (
        f"with a new classifier of {network.num_classes} classes ({', '.join(new)})"
        if new
        else "its classifier included"
    )
    _say(f"The {role} starts from the weights in {path}, {classifier}.")
    return features.join(jax.tree.map(jnp.asarray, loaded), adapters)


def digests(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a role with its file's digest in place of the path, for inputs."""
    path = section["pretrained"]
    digest = None if path is None else pretrained.fingerprint(path)
    return {**section, "pretrained": digest}


def _at(path: str, variables: Variables) -> Any:
    return functools.reduce(lambda tree, key: tree[key], path.split("/"), variables)


def _equal(one: Any, two: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, two))


@functools.cache
def _say(sentence: str) -> None:
    """Once, however many seeds there are."""
    if parallel.is_main_process():
        print(sentence, flush=True)
