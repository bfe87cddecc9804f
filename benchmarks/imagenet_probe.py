r"""Are imported ImageNet weights right? Twenty labelled images, by several models.

The images may have been in the training sets: the figures show that weights, names,
axes and preprocessing are right, and are no accuracy on new images.

Run:
  python benchmarks/fetch_data.py --out=data imagenet_probe resnet50_imagenet \
      resnet18_imagenet mobilenet_v2_imagenet efficientnet_lite0_imagenet
  python benchmarks/imagenet_probe.py --data=data
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from kdjax import models, networks, pretrained

# A file, the model that it is of, and how its pixels are normalised.
MODELS = (
    ("resnet50_imagenet", "resnet50_keras", "caffe"),
    ("resnet18_imagenet", "resnet18", "imagenet"),
    ("mobilenet_v2_imagenet", "mobilenet_v2", "imagenet"),
    ("efficientnet_lite0_imagenet", "efficientnet_lite0", "efficientnet_lite"),
)


def measure(data: pathlib.Path, file: str, model: str, normalize: str) -> dict:
    """How many of the images a model names first, and among the first five."""
    with np.load(data / "imagenet_probe.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    network = networks.from_linen(
        models.create(model, num_classes=1000),
        name=model,
        image_shape=images.shape[1:],
        num_classes=1000,
        **networks.NORMALIZATIONS[normalize]._asdict(),
    )
    like = jax.eval_shape(network.init, jax.random.key(0))
    variables = pretrained.load(data / f"{file}.safetensors", like)

    @jax.jit
    def predict(variables: Any, images: Any) -> Any:
        return network.apply(variables, images, train=False)[0].logits

    best = np.argsort(-np.asarray(predict(variables, images)))
    found = best == labels[:, None]
    return {
        "file": file,
        "model": model,
        "normalize": normalize,
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "images": len(labels),
        "top1": int(found[:, 0].sum()),
        "top5": int(found[:, :5].any(axis=1).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    data = parser.parse_args().data
    for row in MODELS:
        print(json.dumps(measure(data, *row)), flush=True)


if __name__ == "__main__":
    main()
