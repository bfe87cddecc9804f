"""StableHLO files: for any batch, for several platforms, without kdjax."""

import jax
import numpy as np
import pytest

from kdjax.export import stablehlo_files
from kdjax.types import UserError
from tests.export.conftest import images, model, truth


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    one = model("student", "resnet8", image_shape=(8, 8, 3))
    path = tmp_path_factory.mktemp("stablehlo") / "model.stablehlo"
    stablehlo_files.write(one, path, ("cpu", "cuda", "tpu"))
    return one, path


@pytest.mark.parametrize("count", [1, 5])
def test_a_file_says_what_its_model_says_of_raw_pixels(written, count):
    one, path = written
    pixels = images(count, (8, 8, 3))
    logits = stablehlo_files.load(path)({"images": pixels})
    np.testing.assert_allclose(logits, truth(one, pixels), rtol=1e-4, atol=1e-5)


def test_a_file_is_for_all_platforms_and_has_an_open_batch(written):
    _, path = written
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(batch, 8, 8, 3)"
    assert exported.in_avals[0].dtype == np.uint8


def test_a_fresh_process_without_kdjax_says_the_same(written):
    one, path = written
    pixels = images(5, (8, 8, 3))
    logits = stablehlo_files.run_in_fresh_process(path, {"images": pixels}, 2)
    np.testing.assert_allclose(logits, truth(one, pixels), rtol=1e-4, atol=1e-5)


def test_a_damaged_file_is_told_in_a_sentence(written, tmp_path):
    path = tmp_path / "model.stablehlo"
    path.write_bytes(written[1].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"Expected .* to run in a fresh process, but"):
        stablehlo_files.run_in_fresh_process(path, {"images": images(1, (8, 8, 3))}, 1)
