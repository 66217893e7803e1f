"""Files of weights, recognised by their first bytes and read without running code from them.

A pickle may call any function that it names, so ``.pkl`` files are read by an unpickler that knows arrays, tensors and
containers alone. ``.pth`` files go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import WorkbenchError, errors_as, shown

INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before 1.6


@dataclass
class WeightsFile:
    """What a file of weights holds: its tensors by name, and what lies beside them (author, step, ...)."""

    path: Path
    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> WeightsFile:
    """Return the tensors of a safetensors file, a ``.pth``, a ``.pkl``, or a folder as Hugging Face has them.

    Tensors under "model", "state_dict", "model_state" or "blobs", as training scripts write them, are unwrapped.

    Raises:
        WorkbenchError: it does not exist, is truncated or garbled, names anything but arrays and containers, or holds
            no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return WeightsFile(path, _read_folder(path))
    if not path.is_file():
        raise WorkbenchError(f"weights file {path} does not exist")
    with errors_as(f"weights file {path} cannot be read", OSError), path.open("rb") as file:
        start = file.read(32)
    # A garbled file makes the readers raise all kinds.
    with errors_as(f"weights file {path} cannot be read as tensors", Exception):
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return WeightsFile(path, load_file(path))
        if start.startswith((b"PK\x03\x04", _LEGACY_TORCH)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        elif start[:1] == b"\x80" or path.suffix == ".pkl":
            with path.open("rb") as file:
                content = _Unpickler(file, encoding="latin1").load()
        else:
            raise WorkbenchError("it is no safetensors, .pth or .pkl file, or the beginning of it is missing")
    return _unwrap(path, content)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of :func:`read_weights` alone."""
    return read_weights(path).tensors


class _Unpickler(pickle.Unpickler):
    """Builds arrays, tensors and containers; any other name in the file is an error, and nothing of it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of a pickle."""
        known = _KNOWN.get((module.replace("numpy.core", "numpy._core"), name))
        if known is None:
            raise WorkbenchError(f"it names {module}.{name}, and only arrays and containers are read from a pickle")
        return known

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to outside of the pickle."""
        raise WorkbenchError(f"it refers to {shown(pid)}, which lies outside of the file")


class _Function:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise WorkbenchError(f"it changes a function by {shown(state)}")


class _Dtype:
    """Stands for numpy.dtype, whose own state could describe memory wrongly: numbers of a size and byte order."""

    def __init__(self, text: str, *_flags: Any) -> None:
        self.dtype = np.dtype(text) if re.fullmatch(r"[<>|=]?[fiub]\d", str(text)) else None
        if self.dtype is None:
            raise WorkbenchError(f"it holds an array of {shown(text)}, not of numbers")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array that is filled by its state: version, shape, dtype, Fortran's order or not, bytes."""

    def __init__(self, *_arguments: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _filled(content, dtype, shape, "F" if fortran else "C")


def _filled(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    content = _encode(content, "latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them into protocol 2. ``_codecs.encode`` itself could import a codec."""
    if encoding != "latin1":
        raise WorkbenchError(f"it encodes text as {shown(encoding)}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """Return the storage of a tensor that was pickled by itself, as Swin's conversion to ``.pkl`` does."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _Function(lambda dtype, content: _filled(content, dtype, (), "C")),
    ("numpy._core.numeric", "_frombuffer"): _Function(_filled),
    ("collections", "OrderedDict"): _Function(OrderedDict),
    ("_codecs", "encode"): _Function(_encode),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Function(torch._utils._rebuild_parameter),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
}


def _unwrap(path: Path, content: Any) -> WeightsFile:
    """Return the tensors of a file's content, whose arrays become tensors, and what lies beside them."""
    extra: dict[str, Any] = {}
    for key in ("model", "state_dict", "model_state", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            extra |= {name: value for name, value in content.items() if name != key}
            content = content[key]
    if not isinstance(content, Mapping):
        raise WorkbenchError(f"weights file {path} holds no weights but {shown(content)}")
    # Caffe2's files hold the momentum of each tensor too.
    entries = {name: value for name, value in content.items() if not str(name).endswith("_momentum")}
    tensors = {name: tensor for name, value in entries.items() if (tensor := _tensor(value)) is not None}
    if not tensors or len(tensors) < 0.9 * len(entries) or not all(isinstance(name, str) for name in tensors):
        others = [name for name in entries if name not in tensors]
        raise WorkbenchError(f"weights file {path} holds no weights: {', '.join(map(shown, others[:3])) or 'nothing'}")
    return WeightsFile(path, tensors, extra)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    array = value.array if isinstance(value, _Array) else value
    if not isinstance(array, np.ndarray):
        return None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder of Hugging Face's, in one file or in several that an index names."""
    index = next((folder / name for name in INDEX if (folder / name).is_file()), None)
    if index is None:
        single = next((folder / name for name in SINGLE if (folder / name).is_file()), None)
        if single is None:
            raise WorkbenchError(f"the folder {folder} holds no weights: there is no {SINGLE[0]}")
        return read_weights(single).tensors
    tensors: dict[str, Tensor] = {}
    for name in shards(index):
        tensors |= read_weights(folder / name).tensors
    return tensors


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index of Hugging Face's names; none leads out of its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WorkbenchError(f"{index} names no files of weights")
    files = sorted(set(names.values()))
    if strange := next((name for name in files if Path(name).name != name), None):
        raise WorkbenchError(f"{index} names a file outside of its folder, {shown(strange)}")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds."""
    with errors_as(f"{path} cannot be read", OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise WorkbenchError(f"{path} holds no JSON object")
    return content
