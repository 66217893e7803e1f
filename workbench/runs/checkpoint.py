"""Checkpoints: one directory that rebuilds a model by itself and survives being killed while it is replaced.

    last/
      model.safetensors     the weights to use (the moving average's, when one is kept)
      model.json            config, categories, subcategories, versions, step, metrics, size of each file
      training_state.pt     what resuming needs on top; absent where a checkpoint is for use only

A checkpoint is written whole beside its place (``last.new``), flushed to the disk, and swapped in by
renaming. A directory cannot be renamed over another one, so the old one steps aside to ``last.old`` for a
moment; a reader that finds no ``last`` takes ``last.old``. At every instant one complete checkpoint can be
found.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench import __version__
from workbench.config import config_from_dict, config_to_dict, load_config
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.files import sync, write_json
from workbench.registry import check_parts, imported_parts

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

WEIGHTS, DESCRIPTION, STATE = "model.safetensors", "model.json", "training_state.pt"
FORMAT_VERSION = 1


@dataclass
class Checkpoint:
    """What a checkpoint directory holds. ``state`` is filled by :func:`load_state` only."""

    path: Path
    config: CfgNode
    vocabulary: Vocabulary
    state_dict: dict[str, Tensor]
    step: int
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    imports: list[dict[str, str]] = field(default_factory=list)


def save_checkpoint(
    directory: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    *,
    config: dict[str, Any],
    vocabulary: Vocabulary,
    step: int,
    state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and put it in place of the one at ``directory``, if any.

    Args:
        directory: where it goes; its parent is made.
        model: the module, or its state dict.
        config: plain dictionary, as ``config_to_dict`` gives.
        vocabulary: categories with their ids, and subcategories.
        step: optimiser steps done.
        state: what resuming needs; tensors, numbers, text, lists and dictionaries only.
        extra: more keys for model.json, such as ``metrics``.

    Raises:
        WorkbenchError: the disk is full or not writable; the checkpoint at ``directory`` is then untouched.
    """
    directory = Path(directory)
    new, old = _beside(directory, "new"), _beside(directory, "old")
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        files = {WEIGHTS: _write(new / WEIGHTS, lambda path: save_file(_storable(weights), path))}
        if state is not None:
            files[STATE] = _write(new / STATE, lambda path: _save_state(state, path))
        description = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "categories": _categories(vocabulary),
            "subcategories": [{"name": n, "classes": list(c)} for n, c in vocabulary.subcategories.items()],
            "versions": versions(),
            "imports": imported_parts(),
            "config": config,
            "files": files,
            **(extra or {}),
        }
        write_json(new / DESCRIPTION, description, indent=1)
        # safetensors lets nobody else read what it writes; the user's own rules shall hold.
        (new / WEIGHTS).chmod((new / DESCRIPTION).stat().st_mode & 0o777)
        sync(new)
        if directory.exists():  # only then is an `old` one left over from a killed swap not needed any more
            shutil.rmtree(old, ignore_errors=True)
            os.rename(directory, old)
        os.rename(new, directory)
        sync(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(new, ignore_errors=True)
        if not directory.exists() and old.exists():
            os.rename(old, directory)
        kept = "; the checkpoint saved there before is kept" if directory.exists() else ""
        raise WorkbenchError(f"cannot save the checkpoint {directory}: {_reason(error, directory)}{kept}") from error
    return directory


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory, or the best (else last) checkpoint of a run directory, onto the CPU.

    Raises:
        WorkbenchError: it is missing, truncated, garbled, or of a newer format.
    """
    directory = resolve_checkpoint(path)
    description = read_description(directory)
    with _described(directory):
        config = config_from_dict(description["config"], source=str(directory / DESCRIPTION))
        step, metrics = int(description["step"]), dict(description.get("metrics") or {})
        vocabulary = _vocabulary(description)
    _check_file(directory, WEIGHTS, description)
    state_dict = read_safetensors(directory / WEIGHTS)
    recorded = description.get("versions", {}), description.get("imports", [])
    return Checkpoint(directory, config, vocabulary, state_dict, step, metrics, *recorded)


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Return the classes of a checkpoint, or of a run's best; only model.json is read.

    Raises:
        WorkbenchError: as :func:`load_checkpoint`.
    """
    directory = resolve_checkpoint(path)
    description = read_description(directory)
    with _described(directory):
        return _vocabulary(description)


@contextmanager
def _described(directory: Path) -> Iterator[None]:
    """Name model.json in what a missing or garbled key of it raises."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkbenchError(f"checkpoint {directory / DESCRIPTION} lacks or garbles the key {error}") from None


def _vocabulary(description: dict[str, Any]) -> Vocabulary:
    categories = description["categories"]
    return Vocabulary(
        category_ids=tuple(int(c["id"]) for c in categories),
        categories=tuple(str(c["name"]) for c in categories),
        subcategories={str(s["name"]): tuple(s["classes"]) for s in description["subcategories"]},
    )


def load_state(path: str | Path) -> dict[str, Any]:
    """The training state of a checkpoint directory, tensors on the CPU."""
    directory = resolve_checkpoint(path)
    if not (directory / STATE).is_file():
        raise WorkbenchError(f"checkpoint {directory} has no {STATE}, so training cannot continue from it")
    _check_file(directory, STATE, read_description(directory))
    return read_torch_file(directory / STATE)


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, config: CfgNode | None = None
) -> tuple[nn.Module, Checkpoint]:
    """Rebuild the model of a checkpoint, in eval mode on ``device``, from the checkpoint alone.

    ``config`` takes the place of the checkpoint's own, to change what follows the network (TEST.RANK_BY say).

    Raises:
        WorkbenchError: the checkpoint was made with a user's parts that have not been imported (see
            :func:`workbench.registry.import_parts`), or does not fit the model.
    """
    from workbench.models import build_model

    checkpoint = load_checkpoint(path)
    check_parts(checkpoint.imports, f"checkpoint {checkpoint.path}")
    model = build_model(config or checkpoint.config, checkpoint.vocabulary, pretrained=False)
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise WorkbenchError(
            f"checkpoint {checkpoint.path} does not fit the model of its config: {_one_line(error)}"
        ) from None
    return model.to(device).eval(), checkpoint


def checkpoint_config(path: Path, overrides: Sequence[str]) -> CfgNode:
    """A checkpoint's config with overrides; a GPU it was trained on is not asked for again unless they do."""
    values = read_description(path).get("config") or {}
    cfg = config_from_dict(values, source=str(path / DESCRIPTION)).clone()
    cfg.defrost()
    if cfg.MODEL.DEVICE != "cpu":
        cfg.MODEL.DEVICE = "auto"
    checked = load_config(None, overrides)  # types and names are checked there
    for key in overrides[::2]:
        *parents, leaf = key.split(".")
        source, target = checked, cfg
        for part in parents:
            source, target = source[part], target[part]
        target[leaf] = source[leaf]
    return config_from_dict(config_to_dict(cfg), source="the overrides")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory meant by ``path``: itself, or the best, else the last, of a run directory.

    Where a save was killed between its two renames, that is the leftover ``.old`` directory.
    """
    path = Path(path)
    for candidate in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        for place in (candidate, _beside(candidate, "old")):
            if (place / DESCRIPTION).is_file():
                return place
    if not path.exists():
        raise WorkbenchError(f"checkpoint {path} does not exist")
    if path.is_dir() and (path / WEIGHTS).exists():
        raise WorkbenchError(f"checkpoint {path} has no {DESCRIPTION}")
    raise WorkbenchError(f"{path} is neither a checkpoint (a directory with {DESCRIPTION}) nor a run that holds one")


def has_checkpoint(path: str | Path) -> bool:
    """Whether a complete checkpoint can be read at ``path``."""
    try:
        resolve_checkpoint(path)
    except WorkbenchError:
        return False
    return True


def vocabulary_differences(checkpoint: Vocabulary, dataset: Vocabulary) -> list[str]:
    """What differs between the classes of a checkpoint and of a dataset, one clause each."""
    differences = []
    groups = [("categories", checkpoint.categories, dataset.categories)]
    for name in sorted({*checkpoint.subcategories, *dataset.subcategories}):
        ours, theirs = checkpoint.subcategories.get(name), dataset.subcategories.get(name)
        if ours is None or theirs is None:
            where = "the dataset" if ours is None else "the checkpoint"
            differences.append(f"subcategory {name!r} is in {where} only")
        else:
            groups.append((f"classes of subcategory {name!r}", ours, theirs))
    for what, ours, theirs in groups:
        only_ours = [n for n in ours if n not in theirs]
        only_theirs = [n for n in theirs if n not in ours]
        if only_ours:
            differences.append(f"{what} in the checkpoint only: {', '.join(map(repr, only_ours))}")
        if only_theirs:
            differences.append(f"{what} in the dataset only: {', '.join(map(repr, only_theirs))}")
        if not only_ours and not only_theirs and tuple(ours) != tuple(theirs):
            differences.append(f"{what} in another order: {', '.join(ours)} / {', '.join(theirs)}")
    return differences


def check_vocabulary(path: Path, checkpoint: Vocabulary, dataset: Vocabulary) -> None:
    """Raise WorkbenchError naming the differences if the checkpoint was trained on other classes."""
    differences = vocabulary_differences(checkpoint, dataset)
    if differences:
        raise WorkbenchError(
            f"checkpoint {path} was trained on other classes than the dataset's: {'; '.join(differences)}"
        )


def _categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    pairs = zip(vocabulary.category_ids, vocabulary.categories, strict=True)
    return [{"id": number, "name": name} for number, name in pairs]


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    from importlib.metadata import version  # not an import of torchvision, which takes seconds

    return {
        "workbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }


def read_description(directory: Path) -> dict[str, Any]:
    """model.json of a checkpoint directory."""
    path = directory / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkbenchError(f"checkpoint file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WorkbenchError(f"checkpoint file {path} is garbled or cut off: {_one_line(error)}") from None
    if not isinstance(description, dict) or not isinstance(description.get("format_version"), int):
        raise WorkbenchError(f"checkpoint file {path} does not describe a checkpoint: it has no format_version")
    if description["format_version"] > FORMAT_VERSION:
        raise WorkbenchError(
            f"checkpoint {directory} has format {description['format_version']}; this version reads up to "
            f"{FORMAT_VERSION}, so a newer workbench is needed"
        )
    return description


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, on the CPU."""
    if not path.is_file():
        raise WorkbenchError(f"checkpoint file {path} does not exist")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WorkbenchError(f"checkpoint file {path} is truncated or garbled: {_one_line(error)}") from None


def read_torch_file(path: Path) -> Any:
    """What a .pt or .pth file holds, tensors on the CPU; anything but plain data and tensors is refused."""
    if not path.is_file():
        raise WorkbenchError(f"checkpoint file {path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file: zip, pickle, EOF, runtime
        raise WorkbenchError(
            f"checkpoint file {path} is truncated, garbled, or holds more than tensors and plain data: "
            f"{_one_line(error)}"
        ) from None


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(f"{directory.name}.{suffix}")


def _write(path: Path, write: Callable[[Path], Any]) -> dict[str, Any]:
    """Write a file through to the disk; return its size and CRC-32."""
    write(path)
    sync(path)
    return _measure(path)


def _measure(path: Path) -> dict[str, Any]:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def _check_file(directory: Path, name: str, description: dict[str, Any]) -> None:
    path = directory / name
    expected = description.get("files", {}).get(name)
    if not path.is_file():
        raise WorkbenchError(f"checkpoint file {path} does not exist")
    if expected is None:
        return
    if path.stat().st_size != expected["bytes"]:
        raise WorkbenchError(
            f"checkpoint file {path} is {path.stat().st_size} bytes long instead of {expected['bytes']}"
        )
    if _measure(path) != expected:
        raise WorkbenchError(f"checkpoint file {path} is garbled: its contents are not what was saved")


def _storable(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two in one storage: safetensors refuses tied weights, each gets a copy."""
    storable, seen = {}, set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        storable[name] = tensor
    return storable


def _save_state(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # a file of Python's own, so that a full disk is reported as such
        torch.save(state, file)


def _reason(error: BaseException, directory: Path) -> str:
    """Why writing failed, for a person. What torch and safetensors raise may hide the system's error."""
    systems = error
    while systems is not None and not isinstance(systems, OSError):
        systems = systems.__context__
    if "No space left" in str(error) or getattr(systems, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {directory.parent} is full"
    if isinstance(systems, OSError):
        return f"{systems.strerror or systems} ({systems.filename or directory})"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
