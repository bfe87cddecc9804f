"""Tests of measure.py."""

import pathlib
import subprocess

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import kdjax
from kdjax import measure


class _ConvNet(nn.Module):
    """Stem 3x3, depthwise 3x3 of stride 2, and a classifier."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3), padding="SAME", use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(8, (3, 3), (2, 2), padding="SAME", feature_group_count=8)(x)
        return nn.Dense(5)(x.mean((1, 2)))


def _conv_net(size=11):
    model = _ConvNet()
    images = jnp.zeros((1, size, size, 3))
    variables = model.init(jax.random.key(0), images)
    return measure.Subject(model.apply, variables)


def _dense(classes, width=12):
    def apply_fn(variables, images):
        pixels = images.reshape(len(images), -1).astype(jnp.float32)
        return pixels @ variables["params"]["kernel"]

    return measure.Subject(
        apply_fn, {"params": {"kernel": jnp.ones((width, classes))}, "batch_stats": {}}
    )


# What is counted.


def test_flops_of_a_conv_net_are_twice_its_hand_counted_multiply_accumulates():
    apply_fn, variables = _conv_net()
    images = jax.ShapeDtypeStruct((1, 11, 11, 3), jnp.float32)
    stem = 11 * 11 * 8 * (3 * 3 * 3)
    depthwise = 6 * 6 * 8 * (3 * 3)
    classifier = 8 * 5
    expected = 2 * (stem + depthwise + classifier)
    assert measure.count_flops(apply_fn, variables, images) == expected


def test_flops_of_an_mlp():
    def mlp(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(x @ kernel)
        return x

    kernels = [jnp.ones((7, 11)), jnp.ones((11, 4))]
    flops = measure.count_flops(mlp, kernels, jnp.ones((3, 7)))
    assert flops == 2 * 3 * (7 * 11 + 11 * 4)


def test_what_no_output_needs_costs_no_flops():
    def early_exit(x, kernel):
        hidden = x @ kernel
        _unused = hidden @ kernel @ kernel
        return hidden

    x, kernel = jnp.ones((2, 3)), jnp.ones((3, 3))
    assert measure.count_flops(early_exit, x, kernel) == 2 * 2 * 3 * 3
    assert measure.count_flops(jax.jit(early_exit), x, kernel) == 2 * 2 * 3 * 3


def test_flops_of_a_batched_product():
    flops = measure.count_flops(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        jnp.ones((2, 3, 4)),
        jnp.ones((2, 4, 5)),
    )
    assert flops == 2 * 2 * 3 * 4 * 5


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, kernel):
        x, _ = lax.scan(lambda x, _: (x @ kernel, None), x, length=7)
        return lax.fori_loop(0, 4, lambda _, x: x @ kernel, x)

    flops = measure.count_flops(loop, jnp.ones((2, 3)), jnp.ones((3, 3)))
    assert flops == (7 + 4) * 2 * 2 * 3 * 3


def test_a_loop_of_unknown_length_is_an_error_naming_it():
    def loop(x, kernel):
        return lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ kernel, x)

    with pytest.raises(ValueError, match="loops of known length, got a while loop"):
        measure.count_flops(loop, jnp.ones((2, 3)), jnp.ones((3, 3)))


def test_of_a_platform_dependent_the_default_branch_counts():
    def product(x, kernel):
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: x @ kernel @ jnp.ones((5, 5)),
            default=lambda x, kernel: x @ kernel,
        )

    flops = measure.count_flops(product, jnp.ones((2, 3)), jnp.ones((3, 5)))
    assert flops == 2 * 2 * (3 * 5)


def test_of_a_cond_the_dearest_branch_counts():
    def product(x, kernel):
        return lax.cond(x.sum() > 0, lambda: x @ kernel @ kernel, lambda: x @ kernel)

    flops = measure.count_flops(product, jnp.ones((2, 3)), jnp.ones((3, 3)))
    assert flops == 2 * (2 * 2 * 3 * 3)


def test_custom_derivatives_and_rematerialisation_count_the_forward_pass_once():
    @jax.custom_vjp
    def product(x, kernel):
        return x @ kernel

    product.defvjp(
        lambda x, kernel: (product(x, kernel), (x, kernel)),
        lambda saved, g: (g @ saved[1].T, saved[0].T @ g),
    )
    x, kernel = jnp.ones((2, 3)), jnp.ones((3, 3))
    once = 2 * 2 * 3 * 3
    assert measure.count_flops(jax.jit(product), x, kernel) == once
    assert measure.count_flops(jax.checkpoint(product), x, kernel) == once
    relu_product = jax.custom_jvp(lambda x, kernel: jax.nn.relu(x @ kernel))
    relu_product.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
    assert measure.count_flops(relu_product, x, kernel) == once


def test_a_sharded_product_counts_all_shares():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    product = jax.shard_map(
        lambda x, kernel: x @ kernel,
        mesh=mesh,
        in_specs=(spec, jax.sharding.PartitionSpec()),
        out_specs=spec,
    )
    assert measure.count_flops(product, jnp.ones((8, 3)), jnp.ones((3, 5))) == 240


def test_a_transposed_convolution_costs_what_its_forward_twin_costs():
    small, large = jnp.ones((1, 5, 5, 4)), jnp.ones((1, 10, 10, 4))
    kernel = jnp.ones((2, 2, 4, 4))
    down = measure.count_flops(
        lambda x: lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        large,
    )
    up = measure.count_flops(
        lambda x: lax.conv_transpose(x, kernel, (2, 2), "VALID"), small
    )
    assert up == down == 2 * 5 * 5 * 4 * (2 * 2 * 4)


def test_parameters_and_bytes_leave_out_other_collections():
    _, variables = _conv_net()
    expected = 3 * 3 * 3 * 8 + 2 * 8 + (3 * 3 * 8 + 8) + (8 * 5 + 5)
    assert measure.count_parameters(variables) == expected
    assert measure.count_bytes(variables) == 4 * expected
    half = {"params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)}
    assert measure.count_bytes(half) == 2 * measure.count_parameters(half)


# What is timed.


def test_costs_of_several_models():
    subjects = {"teacher": _conv_net(), "student": _conv_net()}
    costs = measure.measure_costs(
        subjects,
        (11, 11, 3),
        image_dtype=jnp.float32,
        batch_size=5,
        latency_runs=4,
        throughput_runs=3,
    )
    assert list(costs) == ["teacher", "student"]
    teacher = costs["teacher"]
    assert teacher.parameters == measure.count_parameters(subjects["teacher"].variables)
    assert teacher.flops == 2 * (26136 + 2592 + 40)
    assert 0 < teacher.latency_ms.p50 <= teacher.latency_ms.p95
    assert teacher.throughput > 0
    assert teacher.compile_seconds > 0
    assert (teacher.latency_runs, teacher.throughput_runs) == (4, 3)
    assert teacher.batch_size == 5


def test_a_slower_model_is_measured_slower():
    def slow(variables, images):
        pixels = images.reshape(len(images), -1).astype(jnp.float32)
        x = pixels @ variables["params"]["kernel"]
        return lax.fori_loop(0, 300, lambda _, x: jnp.sin(x @ jnp.eye(400)), x)

    subjects = {"slow": measure.Subject(slow, _dense(400).variables), "fast": _dense(4)}
    costs = measure.measure_costs(
        subjects, (2, 2, 3), batch_size=16, latency_runs=5, throughput_runs=3
    )
    assert costs["slow"].latency_ms.p50 > 3 * costs["fast"].latency_ms.p50
    assert costs["slow"].throughput < costs["fast"].throughput / 3


def test_uint8_images_reach_a_model_that_normalises_them_itself():
    dtypes = []

    def apply_fn(variables, images):
        dtypes.append(images.dtype)
        return images.astype(jnp.float32).sum() * variables["params"]["scale"]

    subject = measure.Subject(apply_fn, {"params": {"scale": jnp.ones(())}})
    measure.measure_costs(
        {"student": subject},
        (2, 2, 1),
        batch_size=2,
        latency_runs=1,
        throughput_runs=1,
    )
    assert set(dtypes) == {np.dtype("uint8")}


def test_variables_spread_over_devices_are_measured_on_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    subject = _dense(3)
    subject = subject._replace(variables=jax.device_put(subject.variables, everywhere))
    costs = measure.measure_costs(
        {"student": subject},
        (2, 2, 3),
        batch_size=3,
        latency_runs=1,
        throughput_runs=1,
    )
    assert costs["student"].flops == 2 * 12 * 3


def test_a_model_whose_flops_cannot_be_counted_is_still_timed():
    def apply_fn(variables, images):
        x = images.reshape(len(images), -1).astype(jnp.float32)
        kernel = variables["params"]["kernel"]
        return lax.while_loop(lambda x: x.max() > 10, lambda x: 0.5 * (x @ kernel), x)

    subject = measure.Subject(apply_fn, {"params": {"kernel": jnp.eye(12) * 0.5}})
    costs = measure.measure_costs(
        {"student": subject}, (2, 2, 3), latency_runs=1, throughput_runs=1
    )
    assert costs["student"].flops is None
    assert costs["student"].throughput > 0


@pytest.mark.parametrize("name", ["batch_size", "latency_runs", "throughput_runs"])
def test_counts_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"Expected {name} >= 1, got 0."):
        measure.measure_costs({"student": _dense(3)}, (2, 2, 3), **{name: 0})


def test_no_model_is_an_error():
    with pytest.raises(ValueError, match="Expected subjects >= 1"):
        measure.measure_costs({}, (2, 2, 3))


# What is recorded about the run.


def test_hardware_and_versions_name_what_is_here():
    found = measure.hardware()
    assert found["platform"] == jax.devices()[0].platform
    assert found["device_count"] == jax.device_count()
    assert found["process_count"] == 1
    assert found["cores"] >= 1
    assert found["cpu"]
    versions = measure.versions()
    assert versions["jax"] == jax.__version__
    assert versions["numpy"] == np.__version__
    assert {"python", "kdjax"} <= set(versions)


def _git(directory, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_commit_is_that_of_the_source_and_marks_changes(tmp_path, monkeypatch):
    source = tmp_path / "kdjax" / "measure.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    monkeypatch.setattr(measure, "__file__", str(source))
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    assert measure.commit() is None  # Not tracked by the repository around it.
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    head = _git(tmp_path, "rev-parse", "HEAD").strip()
    assert measure.commit() == head
    source.write_text("a = 2\n")
    assert measure.commit() == f"{head}+changes"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", str(pathlib.Path(kdjax.__file__).parent))
    assert measure.commit() is None
