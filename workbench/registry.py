"""The parts that a config names, and how to add to them.

``MODEL.BACKBONE.NAME`` chooses from ``BACKBONES``, ``MODEL.META_ARCHITECTURE`` from ``MODELS`` and
``INPUT.DATASET_MAPPER_NAME`` from ``MAPPERS``. A Python file of one's own adds a name with a decorator::

    from workbench.registry import BACKBONES

    @BACKBONES.register("my_backbone")
    def build_my_backbone(cfg, pretrained):
        return MyBackbone()

and is imported by ``--import my_backbone.py`` on the command line, by the parameter ``imports`` of a notebook, or by
:func:`import_parts`. A run and its checkpoints record the name and the SHA-256 of each such file. Nothing is ever
imported because a config or a checkpoint names it. docs/extending.md has complete examples.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import WorkbenchError, nearest

Entry = TypeVar("Entry", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A file or module of the user's: its name as it was given, and the SHA-256 of the file."""

    name: str
    sha256: str


_imported: dict[str, Part] = {}  # by module


class Registry:
    """The functions (or classes) that one config key chooses from, by name."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Return a decorator that adds a function or class under ``names``, or under its own name.

        Raises:
            WorkbenchError: other code has the name already. The same function of the same module replaces itself, so
                that a notebook cell can be run again.
        """

        def add(entry: Entry) -> Entry:
            for name in names or (entry.__name__,):
                present = self._entries.get(name, entry)
                if _origin(present) != _origin(entry):
                    taken = f"{_origin(present)} has that name"
                    raise WorkbenchError(f"{_origin(entry)} cannot be registered as {self.key} {name!r}: {taken}")
                self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return what is registered as ``name``, or raise a WorkbenchError that lists the known names."""
        if name not in self._entries:
            raise WorkbenchError(
                f"config key {self.key} is {name!r}{nearest(name, self)}; known are {', '.join(self)}, and what a file "
                "given to --import registers"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


BACKBONES = Registry("MODEL.BACKBONE.NAME")
"""``entry(cfg, pretrained)`` -> module: (B, 3, H, W) float in, {"res2": ..., "res5": ...} at strides 4 to 32 out.
``pretrained`` is False where the weights are about to be loaded from a checkpoint."""

MODELS = Registry("MODEL.META_ARCHITECTURE")
"""``entry(cfg, vocabulary, pretrained)`` -> module: batched inputs in; a dict of weighted losses out in training, a
list of predictions in evaluation. ``vocabulary`` has ``num_classes`` K and ``num_subcategory_classes`` {name: K_s}."""

MAPPERS = Registry("INPUT.DATASET_MAPPER_NAME")
"""``entry(cfg, is_train)`` -> callable: ``mapper(dataset_dict, seed)`` in training and ``mapper(dataset_dict)`` in
evaluation give one batched input; see ``TrainMapper`` and ``TestMapper`` of :mod:`workbench.data.mapper`."""


def import_parts(names: Sequence[str]) -> None:
    """Import Python files or modules, so that they register their parts; call it before a model is built or opened.

    A file is imported as the module of its own name, from its own folder, so it may import its neighbours. A file that
    has changed since this process imported it is imported anew.

    Args:
        names: paths of files (``parts/my_backbone.py``) or modules (``my_package.parts``).

    Raises:
        WorkbenchError: there is no such file or module, its name is taken by another module, or its code fails.
    """
    for name in names:
        module, path = _locate(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if module in _imported and _imported[module].sha256 == digest:
            continue
        try:
            if module in _imported:
                importlib.reload(sys.modules[module])
            else:
                importlib.import_module(module)
        except Exception as error:  # the user's code may raise anything
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            line = f", line {lines[-1]}" if lines else ""
            raise WorkbenchError(f"{name}{line} cannot be imported: {type(error).__name__}: {error}") from error
        _imported[module] = Part(name, digest)


def imported_parts() -> list[Part]:
    """Return what :func:`import_parts` has imported; runs and checkpoints record it."""
    return list(_imported.values())


def check_parts(recorded: Sequence[Part], made: str) -> None:
    """Compare the parts that ``made`` (a run or checkpoint, in words) was made with to what has been imported.

    Nothing is imported here. A part is recognised by its hash or its module's name; one that has changed since is
    warned of.

    Raises:
        WorkbenchError: a part has not been imported. The message says what to pass.
    """
    here, missing = imported_parts(), []
    for part in recorded:
        known = [own for own in here if own.sha256 == part.sha256 or _module(own.name) == _module(part.name)]
        if not known:
            missing.append(part)
        elif part.sha256 not in [own.sha256 for own in known]:
            _log.warning(
                "%s was made with %s of sha256 %s; the file imported now has sha256 %s, so results may differ",
                *(made, part.name, part.sha256, known[0].sha256),
            )
    if missing:
        files = " and ".join(f"{part.name} (sha256 {part.sha256})" for part in missing)
        raise WorkbenchError(
            f"{made} was made with parts of {files}: pass {' '.join(f'--import {part.name}' for part in missing)}"
        )


def _locate(name: str) -> tuple[str, Path]:
    """Return the module's name and its file. A file's folder goes to the end of ``sys.path``: loader processes that
    are not forked import the module by its name."""
    file = Path(name).expanduser().resolve() if _is_file(name) else None
    if file is not None and str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    module = _module(name)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of a parent package; a module without a spec, such as __main__
        spec = None
    if file is not None and not file.is_file() or file is None and spec is None:
        hint = f"; did you mean {name}.py?" if Path(f"{name}.py").is_file() else ""
        raise WorkbenchError(f"--import {name}: there is no such {'file' if file else 'module'}{hint}")
    origin = Path(spec.origin).resolve() if spec is not None and spec.has_location else None
    if origin is None or file is not None and origin != file:
        raise WorkbenchError(f"--import {name}: another module is called {module}; rename the file")
    return module, origin


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _module(name: str) -> str:
    return Path(name).stem if _is_file(name) else name


def _origin(entry: Callable[..., Any]) -> str:
    entry = getattr(entry, "func", entry)  # of a functools.partial
    return f"{entry.__module__}.{entry.__qualname__}"
