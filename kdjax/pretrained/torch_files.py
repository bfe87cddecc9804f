"""PyTorch checkpoints, read without PyTorch and without executing anything.

A checkpoint is a pickle and the raw bytes of its tensors: in a zip since PyTorch 1.6,
one after another in a plain file before; and where `pickle.dump` wrote it in place of
`torch.save`, each storage is such a plain file within the pickle. Unpickling calls
whatever function the pickle names. This reader imports none of them: a pickle may call
only the five that rebuild tensors and storages, and the two collections below; any
other name stands for an inert class, of which a pickled module is made, and which
refuses to be called.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from kdjax.types import UserError

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# The first of the five pickles of a file from before 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# Where a training's checkpoint keeps the weights, beside the optimizer's state.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

Storages = Callable[[str], bytes]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by their dotted names.

    Of a state dict, of a whole pickled module, or of either in a training's checkpoint.

    Raises:
      UserError: if the file is no checkpoint, is damaged, or its pickle asks for
        anything but tensors and modules.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_plain(io.BytesIO(path.read_bytes()))
    except _Refused as error:
        raise UserError(f"Refused to read {path}: {error}") from error
    except Exception as error:  # Damaged bytes make the unpickler raise anything.
        raise UserError(
            f"Expected a PyTorch checkpoint (of torch.save) at {path}, but it is "
            f"damaged or of another format ({type(error).__name__}: {error}): copy it "
            "again, or convert it to safetensors."
        ) from error


class _Refused(pickle.UnpicklingError):
    """The pickle asks for what no file of weights needs."""


def _read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        if sum(x.file_size for x in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, which torch.save never does")
        (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            _check_byte_order(archive.read(f"{root}byteorder") == b"little")
        tree = _Reader(io.BytesIO(archive.read(pickled))).load()
        # zipfile checks the CRC of each.
        return _rebuild(tree, lambda key: archive.read(f"{root}data/{key}"))


def _read_plain(stream: io.BytesIO) -> dict[str, np.ndarray]:
    first = _Reader(stream).load()
    if first != _LEGACY_MAGIC:
        if not isinstance(first, Mapping | _Inert):
            raise ValueError("it does not begin like one")
        return _rebuild(first, _no_storage)  # Of pickle.dump.
    return _rebuild(*_read_legacy(stream))


def _no_storage(key: str) -> bytes:
    raise ValueError(f"a tensor's storage {key} is nowhere in it")


def _read_legacy(stream: io.BytesIO) -> tuple[Any, Storages]:
    """What stands behind the magic number: a tree, and the bytes of its storages."""
    _protocol, system = _Reader(stream).load(), _Reader(stream).load()
    _check_byte_order(system["little_endian"])
    reader = _Reader(stream)
    tree, keys = reader.load(), _Reader(stream).load()
    contents = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        itemsize = _DTYPES[reader.storages[key].kind].itemsize
        contents[key] = stream.read(count * itemsize)
    return tree, contents.__getitem__


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ValueError("it is of a big-endian machine")


class _Storage(NamedTuple):
    """The elements of a tensor; `content`, where they are in the pickle itself."""

    key: str
    kind: str
    content: bytes | None = None


def _load_storage(saved: bytes) -> _Storage:
    """A storage that was pickled as a plain file of its own."""
    stream = io.BytesIO(saved)
    if _Reader(stream).load() != _LEGACY_MAGIC:
        raise ValueError("a storage in it does not begin like one")
    storage, storages = _read_legacy(stream)
    if not isinstance(storage, _Storage):
        raise ValueError("it has something else in place of a storage")
    return storage._replace(content=storages(storage.key))


class _Tensor(NamedTuple):
    """A view of a storage, whose bytes may follow the pickle."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def to_array(self, storages: Storages) -> np.ndarray:
        content = self.storage.content
        if content is None:
            content = storages(self.storage.key)
        flat = np.frombuffer(content, _DTYPES[self.storage.kind])
        reach = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        count = math.prod(self.size)
        inside = min((self.offset, *self.size, *self.stride)) >= 0 and (
            count == 0 or (self.offset + reach < len(flat) and count <= len(flat))
        )
        if not inside:
            raise ValueError("a tensor reaches beyond its storage")
        if count == 0:
            return np.zeros(self.size, flat.dtype)
        strides = [s * flat.itemsize for s in self.stride]
        window = flat[self.offset :]
        view = np.lib.stride_tricks.as_strided(window, self.size, strides)
        return np.array(view, order="C")  # Some writers take any order for this.


class _Uncallable(type):
    """The type of `_Inert`: instances are made without `__init__`, or not at all."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise _Refused(
            f"its pickle calls {cls.__name__}, which builds no tensor; a file of "
            "weights has no need of it, and it could run any code. Ask its author for "
            "safetensors."
        )


class _Inert(metaclass=_Uncallable):
    """Stands for an instance of any class: keeps its state, does nothing."""

    def __new__(cls, *args: Any) -> "_Inert":
        del args
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; nothing is imported for it."""
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        # Functions made anew, so that a pickle that changes one changes only its own.
        allowed = {
            "torch._utils._rebuild_tensor": lambda *view: _Tensor(*view),
            "torch._utils._rebuild_tensor_v2": lambda *view: _Tensor(*view[:4]),
            "torch.storage._load_from_bytes": lambda saved: _load_storage(saved),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "collections.OrderedDict": collections.OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
        }
        full_name = f"{module}.{name}"
        return allowed.get(full_name) or _Uncallable(full_name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        """What is kept outside the pickle: storages, and the source of classes."""
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _device, _count, *view = pid
        if pid[0] != "storage" or kind not in _DTYPES or any(view):
            raise ValueError(f"it has a storage of unknown kind {pid[:2]}")
        self.storages[key] = _Storage(key, kind)
        return self.storages[key]


def _rebuild(tree: Any, storages: Storages) -> dict[str, np.ndarray]:
    for _ in range(9):  # More are a wrapper in itself.
        inside = [tree[name] for name in _WRAPPERS if _holds(tree, name)]
        if not inside:
            break
        tree = inside[0]
    return {name: x.to_array(storages) for name, x in _tensors(tree)}


def _holds(tree: Any, name: str) -> bool:
    if not isinstance(tree, Mapping):
        return False
    return isinstance(tree.get(name), Mapping | _Inert)


def _tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    if isinstance(tree, _Inert):
        for own in ("_parameters", "_buffers", "_modules"):
            yield from _tensors(vars(tree).get(own), prefix)
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            if isinstance(value, _Tensor):
                yield f"{prefix}{name}", value
            else:
                yield from _tensors(value, f"{prefix}{name}.")
