"""A PyTorch checkpoint gives its tensors, or a sentence; it never runs code."""

import collections
import os
import pickle
import subprocess
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from kdjax.pretrained import torch_files
from kdjax.types import UserError

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"little_endian": True}
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def tensors():
    """One of every dtype, and of each unusual shape; no two of the same elements."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 3, 2, 2)).astype(np.float32)
    return {
        "conv.weight": kernel,
        "conv.channels_last": kernel.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
        "transposed": rng.normal(size=(3, 4)).T,
        "half": rng.normal(size=7).astype(np.float16),
        "brain": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        "count": np.array(2**40),
        "mask": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)
        assert found[name].flags.c_contiguous, name


@FORMATS
def test_a_state_dict_gives_its_tensors(torch_save, tmp_path, legacy):
    path = tmp_path / "weights.pth"
    torch_save(collections.OrderedDict(tensors()), path, legacy=legacy)
    assert_same(torch_files.read(path), tensors())


def test_pickled_tensors_give_theirs(torch_dump, tmp_path):
    """Of a state dict that `pickle.dump` wrote, each storage a file in the pickle."""
    path = tmp_path / "weights.pkl"
    torch_dump({"state_dict": tensors()}, path)
    assert_same(torch_files.read(path), tensors())


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model", "net"])
def test_of_a_training_checkpoint_only_the_weights(torch_save, tmp_path, legacy, key):
    state = {"momentum": np.ones(3)}
    tree = {"epoch": 3, "optimizer": {"state": {0: state}}, key: tensors()}
    path = tmp_path / "checkpoint.pt"
    torch_save(tree, path, legacy=legacy)
    assert_same(torch_files.read(path), tensors())


@pytest.fixture
def author(monkeypatch):
    """A module of somebody's own, importable while a checkpoint is written."""
    module = types.ModuleType("author.models")
    module.Net = type("Net", (), {"__module__": module.__name__})
    module.relu = lambda x: x
    module.relu.__module__, module.relu.__qualname__ = module.__name__, "relu"
    monkeypatch.setitem(sys.modules, "author", types.ModuleType("author"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@FORMATS
def test_a_pickled_module_gives_its_tensors(
    torch_save, author, tmp_path, monkeypatch, legacy
):
    """Also one that mentions a function, which as long as it isn't called is inert."""

    def module(parameters=(), buffers=(), modules=()):
        made = author.Net()
        made._parameters = dict(parameters)
        made._buffers = collections.OrderedDict(buffers)
        made._modules = dict(modules)
        made._backward_hooks = set()
        made.activation = author.relu
        return made

    bias, mean = np.arange(3.0), np.arange(4.0)
    inner = module({"weight": bias, "bias": None}, {"mean": mean})
    tree = module({"scale": mean}, modules={"inner": inner, "absent": None})
    path = tmp_path / "module.pth"
    torch_save(tree, path, legacy=legacy)
    monkeypatch.delitem(sys.modules, "author.models")
    expected = {"scale": mean, "inner.weight": bias, "inner.mean": mean}
    assert_same(torch_files.read(path), expected)


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(marker):
    """Pickles that would each make the file `marker`, in the protocols of Python."""
    python = f"open({str(marker)!r}, 'w').close()"
    command = f"touch {marker}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(Calls(os.system, command), protocol)
        yield pickle.dumps({"weight": Calls(exec, python)}, protocol)
        yield pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)]), protocol)
        yield pickle.dumps(Calls(marker.touch), protocol)
    text = command.encode()
    yield b"(S'" + text + b"'\nios\nsystem\n."  # INST.
    yield b"(cos\nsystem\nS'" + text + b"'\no."  # OBJ.
    yield b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."
    # A storage that is another attack.
    for inner in (pickle.dumps(Calls(os.system, command), 2), b"\x80\x02N.", b""):
        load = b"\x80\x02ctorch.storage\n_load_from_bytes\n"
        yield load + b"B" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
    # A mapping whose methods are others.
    items = b"ccollections\nOrderedDict\n)R}S'items'\nc%s\nsb."
    yield items % b"os\nsystem"
    # By name within a module, or of an attribute of what is allowed.
    for name in (b"torch\n_utils.os.system", b"collections\nOrderedDict.__init__"):
        yield b"\x80\x04c" + name + b"\nX\x01\x00\x00\x001\x85R."
    # A class made without a call, then given what is to be called on its instances.
    yield b"cauthor\nNet\n(N}S'__setstate__'\ncos\nsystem\nstb."


def test_a_pickle_that_calls_anything_is_refused(torch_zip, tmp_path):
    marker = tmp_path / "executed"
    for number, attack in enumerate(attacks(marker)):
        for wrap in (torch_zip, lambda path, pickled: path.write_bytes(pickled)):
            path = tmp_path / f"{number}.pth"
            wrap(path, attack)
            with pytest.raises(UserError, match=r"(Refused to read|damaged)"):
                torch_files.read(path)
            assert not marker.exists(), attack


def test_the_refusal_names_what_is_called(torch_zip, tmp_path):
    path = tmp_path / "evil.pth"
    torch_zip(path, pickle.dumps(Calls(os.system, "true"), 2))
    with pytest.raises(UserError, match=rf"calls {os.system.__module__}.system, which"):
        torch_files.read(path)


def test_a_pickle_cannot_change_the_reader(torch_zip, torch_save, tmp_path):
    """Attributes put on the functions that rebuild tensors are gone with the file."""
    # BUILD with (None, {'__defaults__': ()}) on a function that is allowed.
    tamper = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n)stb."
    path = tmp_path / "tampering.pth"
    torch_zip(path, tamper)
    assert torch_files.read(path) == {}
    for target in (b"ctorch\nFloatStorage\n", b"cbuiltins\nset\n"):
        torch_zip(path, target + b"(N}S'itemsize'\nI1\nstb.")
        with pytest.raises(UserError):
            torch_files.read(path)
    torch_save(tensors(), path)
    assert_same(torch_files.read(path), tensors())


@pytest.mark.parametrize(
    "view",
    [
        (0, (7,), (1,)),
        (6, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 3), (4, 1)),
        (0, (7,), (0,)),
        (0, (10**12,), (0,)),
        (0, (-2,), (1,)),
        (0, (2,), (10**30,)),
        (0, (2, 2), (1,)),
    ],
)
def test_a_tensor_beyond_its_storage_is_an_error(
    torch_save, torch_view, tmp_path, view
):
    path = tmp_path / "beyond.pth"
    torch_save({"weight": torch_view(np.arange(6.0), *view)}, path)
    with pytest.raises(UserError, match="damaged"):
        torch_files.read(path)


def test_a_scalar_of_an_empty_storage_is_an_error(torch_save, torch_view, tmp_path):
    path = tmp_path / "beyond.pth"
    torch_save({"weight": torch_view(np.zeros(0), 0, (), ())}, path)
    with pytest.raises(UserError, match="damaged"):
        torch_files.read(path)


def test_views_share_a_storage(torch_save, torch_view, tmp_path):
    storage = np.arange(10.0)
    path = tmp_path / "views.pth"
    tree = {
        "row": torch_view(storage, 2, (3,), (1,)),
        "column": torch_view(storage, 1, (2, 2), (1, 4)),
        "last": torch_view(storage, 9, (), ()),
    }
    torch_save(tree, path)
    found = torch_files.read(path)
    np.testing.assert_array_equal(found["row"], [2, 3, 4])
    np.testing.assert_array_equal(found["column"], [[1, 5], [2, 6]])
    np.testing.assert_array_equal(found["last"], 9)


@FORMATS
def test_damage_is_a_sentence(torch_save, tmp_path, legacy):
    """Cut short or with a byte changed, anywhere; only a zip notices in the data."""
    path = tmp_path / "weights.pth"
    torch_save(tensors(), path, legacy=legacy)
    content = path.read_bytes()
    for length in range(0, len(content), 61):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            torch_files.read(path)
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            found = torch_files.read(path)
        except UserError:
            continue
        if not legacy:
            assert_same(found, tensors())


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02.", b"import os\n" * 9])
def test_another_file_is_a_sentence(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Expected a PyTorch checkpoint"):
        torch_files.read(path)


def test_big_endian_is_refused(torch_zip, tmp_path):
    path = tmp_path / "big.pth"
    torch_zip(path, pickle.dumps({}, 2), byteorder=b"big")
    with pytest.raises(UserError, match="big-endian"):
        torch_files.read(path)


def test_a_compressed_file_is_a_sentence(tmp_path):
    """A few bytes that unpack to more than the memory holds."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(UserError, match="it is compressed"):
        torch_files.read(path)


def test_a_wrapper_in_itself_is_a_sentence(torch_zip, tmp_path):
    tree = {}
    tree["model"] = tree
    path = tmp_path / "endless.pth"
    torch_zip(path, pickle.dumps(tree, 2))
    with pytest.raises(UserError, match="RecursionError"):
        torch_files.read(path)


def test_storages_in_storages_are_a_sentence(tmp_path):
    head = b"".join(pickle.dumps(x, protocol=2) for x in (MAGIC, 1001, SYSTEM))
    inner = b""
    for _ in range(500):
        load = b"\x80\x02ctorch.storage\n_load_from_bytes\n"
        size = len(inner).to_bytes(4, "little")
        inner = head + load + b"B" + size + inner + b"\x85R."
    path = tmp_path / "deep.pth"
    path.write_bytes(inner)
    with pytest.raises(UserError, match="damaged"):
        torch_files.read(path)


def test_nested_without_end_is_a_sentence(torch_zip, tmp_path):
    tree = {}
    tree["tree"] = tree
    path = tmp_path / "endless.pth"
    torch_zip(path, pickle.dumps(tree, 2))
    with pytest.raises(UserError, match="RecursionError"):
        torch_files.read(path)
