"""Files of weights: what is read, what is refused by name, and that nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.errors import WorkbenchError
from workbench.weights.reading import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.arange(3, dtype=torch.int64)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_arrays_are_read(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True} if wrapped else arrays
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    file = read_weights(tmp_path / "w.pkl")
    assert file.tensors.keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in file.tensors.items())
    assert file.extra.get("__author__") == ("somebody" if wrapped else None)


def test_caffe2_files_of_python_2_are_read(tmp_path: Path) -> None:
    """Python 2 pickles arrays as byte strings, which are latin1 text to Python 3; blobs are unwrapped."""
    raw = np.arange(3, dtype="<f4").tobytes().decode("latin1")
    reduce = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"U" + bytes([len(raw)]) + raw.encode("latin1")
    array = reduce + b"(K\x01K\x03\x85" + dtype + b"\x89" + data + b"tb"
    blobs = b"}(U\x07conv1_w" + array + b"U\x10conv1_w_momentum" + array + b"u"
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}U\x05blobs" + blobs + b"s.")
    tensors = read_weights(tmp_path / "R-50.pkl").tensors
    assert list(tensors) == ["conv1_w"] and torch.equal(tensors["conv1_w"], torch.arange(3.0))


def test_pickled_tensors_are_read(tmp_path: Path) -> None:
    """As the published conversion of Swin writes them."""
    (tmp_path / "swin.pkl").write_bytes(pickle.dumps({"model": STATE, "__author__": "third_party"}))
    tensors = read_weights(tmp_path / "swin.pkl").tensors
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in tensors.items())


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("place", ["value", "name", "beside", "storage"])
def test_nothing_in_a_pickle_runs(tmp_path: Path, place: str, suffix: str) -> None:
    evil = Hostile(os.mkdir, str(tmp_path / "ran"))
    if place == "storage":  # a pickle inside of what is admitted
        evil = Hostile(torch.storage._load_from_bytes, pickle.dumps(evil))
    beside = {"model": STATE, "x": evil}
    content = beside if place == "beside" else {evil: 1} if place == "name" else {"model": {"a": evil}}
    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(WorkbenchError, match=r"w\.p.. cannot be read as tensors"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Hostile(print, "x"), r"builtins\.print"),
        (Hostile(np.load, "x"), r"numpy\.load"),
        (Hostile(torch.load, "x"), r"torch\.serialization\.load"),
    ],
)
def test_what_a_pickle_names_is_named(tmp_path: Path, call: Hostile, named: str) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": call}}))
    with pytest.raises(WorkbenchError, match=f"it names {named}, and only arrays and containers"):
        read_weights(tmp_path / "w.pkl")


def test_what_a_pickle_may_call_it_cannot_change(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever lies on the stack, functions of torch too."""
    change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}U\x0c__defaults__K\x01stb."
    (tmp_path / "w.pkl").write_bytes(change)
    with pytest.raises(WorkbenchError, match="it changes a function"):
        read_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize("array", [np.array([None]), np.array(["text"]), np.zeros(1, [("a", "f4"), ("b", "O")])])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": array}))
    with pytest.raises(WorkbenchError, match="cannot be read as tensors: it holds an array of"):
        read_weights(tmp_path / "w.pkl")


def test_arrays_come_in_either_order_of_bytes_and_axes(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    state = {"big": values.astype(">f8"), "fortran": np.asfortranarray(values), "number": np.float64(3)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(state))
    tensors = read_weights(tmp_path / "w.pkl").tensors
    assert all(torch.equal(tensors[name], torch.from_numpy(values)) for name in ("big", "fortran"))
    assert tensors["number"].item() == 3


def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for content, said in (([1, 2], r"no weights but \[1, 2\]"), ({"a": "b"}, "no weights: 'a'"), ({}, "nothing")):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(WorkbenchError, match=said):
            read_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_files_are_one_sentence(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {name: tensor.numpy() for name, tensor in STATE.items()}}))
    elif suffix == ".pth":
        torch.save({"model": STATE}, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WorkbenchError, match=rf"weights file \S+w{suffix} cannot be read as tensors") as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


def test_content_and_not_the_suffix_says_what_a_file_is(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.pkl")
    torch.save(STATE, tmp_path / "w.bin")
    for name in ("w.pkl", "w.bin"):
        assert read_weights(tmp_path / name).tensors.keys() == STATE.keys()


def test_a_folder_in_pieces_is_read_whole(tmp_path: Path) -> None:
    files = {"a.weight": "one.safetensors", "a.bias": "two.safetensors"}
    for name, file in files.items():
        save_file({name: STATE[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert read_weights(tmp_path).tensors.keys() == STATE.keys()
    index.write_text(json.dumps({"weight_map": {"a.weight": "../secret.safetensors"}}))
    with pytest.raises(WorkbenchError, match=r"outside of its folder, '\.\./secret"):
        read_weights(tmp_path)
