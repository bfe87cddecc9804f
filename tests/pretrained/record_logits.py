"""Writes recorded.json: names, shapes and logits of reference models, from PyTorch.

    python tests/pretrained/record_logits.py

needs the extra 'parity'. The weights are `noise` of their shapes, so that the test that
reads the file makes the same ones without PyTorch.
"""

import json
import math
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("recorded.json")

# By leaf of the name: what is added to the noise, and the noise's factor.
SPREADS = {
    "bias": (0.0, 0.1),
    "running_mean": (0.0, 0.1),
    "running_var": (1.0, 0.5),
}


def noise(shape, seed):
    """Uniform in [-1, 1), of integer arithmetic: the same in every library."""
    i = np.arange(math.prod(shape), dtype=np.uint64)
    bits = i * i * np.uint64(2654435761) + i * np.uint64(40503) + np.uint64(seed)
    return (bits % np.uint64(2**32) / 2**31 - 1).reshape(shape).astype(np.float32)


def weight(name, shape):
    """A tensor by its name in PyTorch: of He's variance, or near 1, or near 0."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "weight" and len(shape) == 1:
        return 1 + noise(shape, len(name)) / 2
    if leaf == "weight":
        scale = np.float32(math.sqrt(6 / math.prod(shape[1:])))
        return scale * noise(shape, len(name))
    mean, factor = SPREADS.get(leaf, (0.0, 1.0))  # Tokens and positions.
    return np.float32(mean) + np.float32(factor) * noise(shape, len(name))


def main():
    """Of torchvision and timm, with four classes."""
    import timm
    import torch
    import torchvision

    small = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
    vit = timm.models.vision_transformer.VisionTransformer
    deit = timm.models.deit.VisionTransformerDistilled
    nets = {
        "mobilenet_v3_small": torchvision.models.mobilenet_v3_small(num_classes=4),
        "efficientnet_lite0": timm.create_model("tf_efficientnet_lite0", num_classes=4),
        "vit": vit(num_classes=4, **small),
        "deit": deit(num_classes=4, **small),
    }
    recorded = {}
    for name, net in nets.items():
        shapes = {key: list(x.shape) for key, x in net.state_dict().items()}
        net.load_state_dict(
            {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
        )
        with torch.no_grad():
            logits = net.eval()(torch.from_numpy(noise((1, 3, 32, 32), 6)))
        recorded[name] = {
            "versions": {m.__name__: m.__version__ for m in (torch, torchvision, timm)},
            "shapes": shapes,
            "logits": [float(f"{x:.6g}") for x in logits[0].tolist()],
        }
        print(name, recorded[name]["logits"])
    PATH.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
