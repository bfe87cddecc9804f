"""Checkpoints as PyTorch writes them, written without PyTorch."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    """The elements of one storage, of which tensors are views."""

    def __init__(self, array):
        self.array = array


class View:
    """A tensor: what `torch._utils._rebuild_tensor_v2` is called with."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False)


def _named(name: str, module: str) -> Callable[..., None]:
    def function(*_):
        raise AssertionError("only its name is used")

    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    return function


def _names_of_torch() -> types.ModuleType:
    """A module of stand-ins, whose names are all that a pickle of them holds."""
    torch = types.ModuleType("torch")
    utils = types.ModuleType("torch._utils")
    for kind in KINDS.values():
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        setattr(utils, name, _named(name, "torch._utils"))
    torch._utils = utils
    torch.storage = types.ModuleType("torch.storage")
    torch.storage._load_from_bytes = _named("_load_from_bytes", "torch.storage")
    return torch


class _Writer(pickle.Pickler):
    protocol = 2  # Always PyTorch's.

    def __init__(self, stream: io.BytesIO, torch: types.ModuleType, legacy: bool):
        super().__init__(stream, self.protocol)
        self.torch = torch
        self.legacy = legacy
        self.storages: list[Storage] = []

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        if obj not in self.storages:
            self.storages.append(obj)
        kind = getattr(self.torch, KINDS[obj.array.dtype])
        key = str(self.storages.index(obj))
        rest = (None,) if self.legacy else ()
        return ("storage", kind, key, "cpu", obj.array.size, *rest)

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            strides = tuple(n // obj.itemsize for n in obj.strides)
            obj = View(Storage(obj.ravel(order="K")), 0, obj.shape, strides)
        if isinstance(obj, View):
            hooks = collections.OrderedDict()
            return self.torch._utils._rebuild_tensor_v2, (*obj.arguments, hooks)
        return NotImplemented


@pytest.fixture
def torch_save(monkeypatch) -> Callable[..., None]:
    """`torch.save(tree, path)`: arrays become tensors; `legacy`, as before 1.6."""
    torch = _names_of_torch()

    def save(tree, path, *, legacy=False):
        with _importable(torch, monkeypatch):
            if legacy:
                return path.write_bytes(legacy_file(tree, torch))
            stream = io.BytesIO()
            writer = _Writer(stream, torch, legacy)
            writer.dump(tree)
        contents = [x.array.tobytes() for x in writer.storages]
        return write_zip(path, stream.getvalue(), contents)

    return save


@pytest.fixture
def torch_dump(monkeypatch) -> Callable[..., None]:
    """`pickle.dump(tree, open(path, "wb"))` of tensors."""
    torch = _names_of_torch()

    def dump(tree, path):
        stream = io.BytesIO()
        with _importable(torch, monkeypatch):
            _PlainWriter(stream, torch, legacy=True).dump(tree)
        path.write_bytes(stream.getvalue())

    return dump


@contextlib.contextmanager
def _importable(torch, monkeypatch):
    """Under the names of PyTorch, as long as a checkpoint is written."""
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "torch", torch)
        for name in ("_utils", "storage"):
            context.setitem(sys.modules, f"torch.{name}", getattr(torch, name))
        yield


class _PlainWriter(_Writer):
    """`pickle.dump` of tensors: each storage is a legacy file within the pickle."""

    protocol = pickle.DEFAULT_PROTOCOL

    def persistent_id(self, obj):
        del obj

    def reducer_override(self, obj):
        if not isinstance(obj, Storage):
            return super().reducer_override(obj)
        saved = legacy_file(obj, self.torch)
        return self.torch.storage._load_from_bytes, (saved,)


def legacy_file(tree, torch) -> bytes:
    """What `torch.save` wrote before 1.6."""
    stream = io.BytesIO()
    writer = _Writer(stream, torch, legacy=True)
    writer.dump(tree)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(x, protocol=2) for x in (LEGACY_MAGIC, 1001, system)]
    contents = [x.array.tobytes() for x in writer.storages]
    keys = pickle.dumps([str(i) for i in range(len(contents))], protocol=2)
    tail = [
        struct.pack("<q", x.array.size) + content
        for x, content in zip(writer.storages, contents, strict=True)
    ]
    return b"".join([*head, stream.getvalue(), keys, *tail])


def write_zip(path, pickled, contents=(), byteorder=b"little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, content in enumerate(contents):
            archive.writestr(f"archive/data/{key}", content)


@pytest.fixture
def torch_zip():
    """Writes a checkpoint of which the pickle is given as bytes."""
    return write_zip


@pytest.fixture
def torch_view():
    """Makes a tensor of any offset, size and stride over an array as its storage."""
    return lambda array, *view: View(Storage(array), *view)
