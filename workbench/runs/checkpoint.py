"""Checkpoints: one directory that rebuilds a model by itself and survives a kill while it is replaced.

    last/
      model.safetensors     the weights to use (the moving average's, when one is kept)
      model.json            config, categories, subcategories, versions, step, metrics, size of each file
      training_state.pt     what resuming needs on top; absent where a checkpoint is for use only

A checkpoint is written beside its place (``last.new``), flushed to the disk, and swapped in by renaming. A directory
cannot be renamed over another one, so the old one is first renamed to ``last.old``; a reader that finds no ``last``
takes ``last.old``. At every instant one complete checkpoint can be read; a reader that was overtaken begins again, see
:func:`_undisturbed`. Weights that are not finite are neither written nor read, nor is a file without its checksum.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from fvcore.common.config import CfgNode
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench import __version__
from workbench.config import changes, config_from_dict, override
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError, errors_as, is_number, shown
from workbench.files import sync, write_text
from workbench.models import build_model
from workbench.models.weights import require_finite
from workbench.registry import Part, check_parts, imported_parts
from workbench.typed_files import Count, Text, Whole, check_type, read_json
from workbench.weights.reading import read_state

WEIGHTS, DESCRIPTION, STATE = "model.safetensors", "model.json", "training_state.pt"
FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class _Category:
    id: Whole
    name: Text
    isthing: Whole = 1


@dataclass(frozen=True)
class _Subcategory:
    name: Text
    classes: tuple[Text, ...]


@dataclass(frozen=True)
class ModelRecipe:
    """What a model is built from, as model.json and files for other programs hold it."""

    config: dict[Text, Any]
    categories: tuple[_Category, ...]
    subcategories: tuple[_Subcategory, ...]

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            tuple(category.id for category in self.categories),
            tuple(category.name for category in self.categories),
            {subcategory.name: subcategory.classes for subcategory in self.subcategories},
            frozenset(category.name for category in self.categories if not category.isthing),
        )


@dataclass(frozen=True)
class _Measured:
    """Size and checksum of a file."""

    bytes: Count
    crc32: Text


@dataclass(frozen=True)
class Description(ModelRecipe):
    """What model.json holds; ``files`` are the size and checksum of each other file."""

    format_version: Count
    step: Count
    files: dict[Text, _Measured]
    versions: dict[Text, Text] = field(default_factory=dict)
    imports: list[Part] = field(default_factory=list)
    metrics: dict[Text, Any] | None = None


@dataclass
class Checkpoint:
    """What a checkpoint directory holds, but for the training state, which :func:`load_state` reads."""

    path: Path
    config: CfgNode
    vocabulary: Vocabulary
    state_dict: dict[str, Tensor]
    step: int
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    imports: list[Part] = field(default_factory=list)
    digest: str = ""


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
        WorkbenchError: the disk is full or not writable, or a weight is not finite; the checkpoint at ``directory`` is
            then untouched.
    """
    directory = Path(directory)
    new, old = _beside(directory, "new"), _beside(directory, "old")
    # safetensors refuses tensors that share memory, such as tied weights: each gets its own copy.
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    weights = {name: _copy(tensor) for name, tensor in weights.items()}
    kept = "; the checkpoint saved there before is kept"
    for values in (weights, (state or {}).get("model") or {}):
        note = kept if directory.exists() else ""
        require_finite(values, f"the weights after step {step} are not saved as {directory}{note}")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(weights, new / WEIGHTS)
        if state is not None:
            _save_state(state, new / STATE)
        description = {
            "format_version": FORMAT_VERSION,
            "step": step,
            **vocabulary.to_coco(),
            "versions": versions(),
            "imports": [vars(part) for part in imported_parts()],
            "config": config,
            "files": {file.name: vars(_measure(file)) for file in new.iterdir()},
            **(extra or {}),
        }
        write_text(new / DESCRIPTION, json.dumps(description, indent=1))  # ends in }, so that any cut is noticed
        # safetensors makes its file readable by the user alone; the user's umask is to hold.
        (new / WEIGHTS).chmod((new / DESCRIPTION).stat().st_mode & 0o777)
        for file in (*new.iterdir(), new):
            sync(file)
        if directory.exists():  # otherwise `old`, left by a killed swap, is the only checkpoint
            shutil.rmtree(old, ignore_errors=True)
            os.rename(directory, old)
        os.rename(new, directory)
        sync(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(new, ignore_errors=True)
        if not directory.exists() and old.exists():
            os.rename(old, directory)
        note = kept if directory.exists() else ""
        raise WorkbenchError(f"cannot save the checkpoint {directory}: {_reason(error, directory)}{note}") from error
    return directory


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory, or the best (else last) checkpoint of a run directory, onto the CPU.

    Raises:
        WorkbenchError: it is missing, truncated, garbled, without checksums or of a newer format, or a weight is not
            finite.
    """
    return _undisturbed(path, _load)


def _load(directory: Path) -> Checkpoint:
    description = read_description(directory)
    _check_file(directory, WEIGHTS)
    weights = read_state(directory / WEIGHTS)
    require_finite(weights, f"checkpoint {directory} cannot be used")
    return Checkpoint(
        directory,
        config=config_from_dict(description.config, source=str(directory / DESCRIPTION)),
        vocabulary=description.vocabulary,
        state_dict=weights,
        step=description.step,
        metrics=description.metrics or {},
        versions=description.versions,
        imports=description.imports,
        digest=_read_digest(directory),
    )


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Return the classes of a checkpoint, or of a run's best; only model.json is read.

    Raises:
        WorkbenchError: as :func:`load_checkpoint`.
    """
    return _undisturbed(path, lambda directory: read_description(directory).vocabulary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Return the training state of a checkpoint directory, tensors on the CPU.

    Raises:
        WorkbenchError: it is missing, truncated, garbled, or holds anything but plain data and tensors.
    """
    return _undisturbed(path, _read_state)


def _read_state(directory: Path) -> dict[str, Any]:
    _check_file(directory, STATE)
    sentence = f"checkpoint file {directory / STATE} is garbled, or holds more than tensors and plain data"
    with errors_as(sentence, Exception):  # torch raises many kinds for a broken file: zip, pickle, EOF, runtime
        return torch.load(directory / STATE, map_location="cpu", weights_only=True)


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, config: CfgNode | None = None
) -> tuple[nn.Module, Checkpoint]:
    """Rebuild the model of a checkpoint, in eval mode on ``device``, from the checkpoint alone.

    ``config`` replaces the checkpoint's own, to change what follows the network (TEST.RANK_BY for example).

    Raises:
        WorkbenchError: the checkpoint was made with a user's parts that have not been imported (see
            :func:`workbench.registry.import_parts`), or does not fit the model.
    """
    checkpoint = load_checkpoint(path)
    check_parts(checkpoint.imports, f"checkpoint {checkpoint.path}")
    model = build_model(config or checkpoint.config, checkpoint.vocabulary, pretrained=False)
    other = changes(config or checkpoint.config, checkpoint.config)
    keys = "".join(f", where {key} is {shown(new)}" for key, (new, _) in other.items() if key.startswith("MODEL."))
    with errors_as(f"checkpoint {checkpoint.path} does not fit the model of its config{keys}", RuntimeError):
        model.load_state_dict(checkpoint.state_dict)
    return model.to(device).eval(), checkpoint


def checkpoint_config(path: Path, overrides: Sequence[str]) -> CfgNode:
    """Return a checkpoint's config with overrides; MODEL.DEVICE is auto (or cpu) unless they set it."""
    cfg = saved_config(path)
    device = [] if cfg.MODEL.DEVICE == "cpu" else ["MODEL.DEVICE", "auto"]
    return override(cfg, [*device, *overrides])


def saved_config(path: str | Path) -> CfgNode:
    """Return the config of a checkpoint, or of a run's best, as it was saved."""
    return _undisturbed(path, _read_config)


def _read_config(directory: Path) -> CfgNode:
    return config_from_dict(read_description(directory).config, source=str(directory / DESCRIPTION))


def _undisturbed(path: str | Path, read: Callable[[Path], T]) -> T:
    """Return what ``read`` makes of the checkpoint directory of ``path``.

    A checkpoint that was replaced during the reading is read again, so that all comes from the old or from the new one.
    """
    while True:
        directory = resolve_checkpoint(path)
        before = _identity(directory)
        try:
            value = read(directory)
        except WorkbenchError:
            if before is not None and _identity(directory) == before:
                raise
        else:
            if _identity(directory) == before:
                return value


def _identity(directory: Path) -> tuple[int, int] | None:
    """Return what tells one save of a checkpoint from the next, None where there is none at this moment."""
    try:
        status = (directory / DESCRIPTION).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint directory that ``path`` is, or the best, else the last, of a run directory.

    Where a save was killed between its two renames, it is the ``.old`` directory.

    Raises:
        WorkbenchError: there is none.
    """
    path = Path(path)
    # A swap that happens between the looks at a place and at its .old hides both, so there is a second look.
    for candidate in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        for place in (candidate, _beside(candidate, "old"), candidate):
            if (place / DESCRIPTION).is_file():
                return place
    if not path.exists():
        raise WorkbenchError(f"checkpoint {path} does not exist")
    raise WorkbenchError(f"{path} is neither a checkpoint (a directory with {DESCRIPTION}) nor a run that holds one")


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed save left beside a checkpoint: its draft, and the one before if ``directory`` is whole."""
    shutil.rmtree(_beside(directory, "new"), ignore_errors=True)
    if (directory / DESCRIPTION).is_file():
        shutil.rmtree(_beside(directory, "old"), ignore_errors=True)


def has_checkpoint(path: str | Path) -> bool:
    """Return whether a complete checkpoint can be read at ``path``."""
    try:
        resolve_checkpoint(path)
    except WorkbenchError:
        return False
    return True


def check_vocabulary(path: Path, checkpoint: Vocabulary, dataset: Vocabulary) -> None:
    """Raise WorkbenchError naming the differences if the checkpoint was trained on other classes than a dataset's."""
    differences = []
    groups = [("categories", checkpoint.categories, dataset.categories)]
    for name in sorted({*checkpoint.subcategories, *dataset.subcategories}):
        trained, wanted = checkpoint.subcategories.get(name), dataset.subcategories.get(name)
        if trained is None or wanted is None:
            where = "the dataset" if trained is None else "the checkpoint"
            differences.append(f"subcategory {name!r} is in {where} only")
        else:
            groups.append((f"classes of subcategory {name!r}", trained, wanted))
    for what, trained, wanted in groups:
        for where, some, others in (("checkpoint", trained, wanted), ("dataset", wanted, trained)):
            if only := [name for name in some if name not in others]:
                differences.append(f"{what} in the {where} only: {', '.join(map(repr, only))}")
        if set(trained) == set(wanted) and tuple(trained) != tuple(wanted):
            differences.append(f"{what} in another order: {', '.join(trained)} / {', '.join(wanted)}")
    if differences:
        raise WorkbenchError(
            f"checkpoint {path} was trained on other classes than the dataset's: {'; '.join(differences)}"
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    return {
        "workbench": __version__,
        **({"commit": commit} if (commit := _commit()) else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it takes seconds
    }


@cache
def _commit() -> str:
    """Return the commit of the checkout that this package is part of, with + where files differ; empty elsewhere."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].stdout.strip() + "+" * bool(said[1].stdout.strip())


def read_description(directory: Path) -> Description:
    """Return model.json of a checkpoint directory; WorkbenchError where it is garbled or of a newer format."""
    title = f"checkpoint file {directory / DESCRIPTION}"
    content = read_json(directory / DESCRIPTION, title)
    version = content.get("format_version") if isinstance(content, dict) else None
    if is_number(version) and version > FORMAT_VERSION:
        raise WorkbenchError(
            f"{title} has format {version}; this version reads up to {FORMAT_VERSION}, so a newer workbench is needed"
        )
    return check_type(Description, content, title)


def weights_digest(path: str | Path) -> str:
    """Return the checksum and size of a checkpoint's weights, as model.json records them.

    Raises:
        WorkbenchError: model.json is garbled or records none.
    """
    return _undisturbed(path, _read_digest)


def _read_digest(directory: Path) -> str:
    measured = _recorded(directory, WEIGHTS)
    return f"{measured.crc32}-{measured.bytes}"


def _recorded(directory: Path, name: str) -> _Measured:
    """Return the size and checksum of a file as model.json records them."""
    files = read_description(directory).files
    if name not in files:
        raise WorkbenchError(f"checkpoint file {directory / DESCRIPTION} records no size and checksum of {name}")
    return files[name]


def _beside(directory: Path, suffix: str) -> Path:
    directory = directory if directory.name else directory.absolute()  # "." has no name
    return directory.parent / f"{directory.name}.{suffix}"


def _measure(path: Path) -> _Measured:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return _Measured(size, f"{crc:08x}")


def _check_file(directory: Path, name: str) -> None:
    """Raise WorkbenchError unless a file is there and holds what was saved."""
    path = directory / name
    if not path.is_file():
        raise WorkbenchError(f"checkpoint file {path} does not exist")
    wanted = _recorded(directory, name)
    with errors_as(f"checkpoint file {path} cannot be read", OSError):
        present = _measure(path)
    if present != wanted:
        sizes = f"{present.bytes} bytes instead of {wanted.bytes}"
        raise WorkbenchError(f"checkpoint file {path} is truncated or garbled: {sizes}, or other contents")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _save_state(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # a file of Python's own, so that a full disk is reported as such
        torch.save(state, file)


def _reason(error: BaseException, directory: Path) -> str:
    """Return why writing failed. Errors of torch and safetensors may have the system's error as their context."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if "No space left" in str(error) or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {directory.parent} is full"
    return f"{cause.strerror or cause} ({cause.filename or directory})" if cause else " ".join(str(error).split())
