"""Weights of ImageNet classifiers name the things on twenty real images."""

import os
import pathlib
import runpy

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "imagenet_probe.py"
MEASURE = runpy.run_path(str(SCRIPT))

# Right at first, and among the first five. PyTorch with the package's own code is right
# on as many with EfficientNet-Lite0.
RIGHT = {
    "resnet50_imagenet": (19, 20),
    "resnet18_imagenet": (18, 19),
    "mobilenet_v2_imagenet": (18, 20),
    "efficientnet_lite0_imagenet": (17, 19),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", MEASURE["MODELS"], ids=lambda row: row[0])
def test_imported_models_see_what_is_there(row):
    data = pathlib.Path(os.environ.get("KDJAX_DATA", "data"))
    files = [data / "imagenet_probe.npz", data / f"{row[0]}.safetensors"]
    if not all(file.exists() for file in files):
        pytest.skip(
            f"python benchmarks/fetch_data.py --out=data imagenet_probe {row[0]}, then "
            "KDJAX_DATA=data"
        )
    found = MEASURE["measure"](data, *row)
    assert found["images"] == 20
    # A decoder of JPEG may differ in a pixel.
    for key, expected in zip(("top1", "top5"), RIGHT[row[0]], strict=True):
        assert abs(found[key] - expected) <= 1
