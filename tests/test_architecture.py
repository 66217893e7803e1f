"""Data flows one way, and so do imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "workbench"

# A part imports only from those above it.
ORDER = (
    "errors",
    "files",
    "registry",
    "config",
    "data",
    "ops",
    "environment",
    "losses",
    "models",
    "evaluation",
    "visualization",
    "runs",
    "training",
    "workflows",
    "notebook",
    "detectron2",
    "cli",
)
PLAIN = ("models", "losses", "ops")  # plain PyTorch: no config object, no framework, no files
FORBIDDEN_IN_PLAIN = {
    "accelerate",
    "fvcore",
    "yacs",
    "yaml",
    "detectron2",
    "transformers",
    "lightning",
    "json",
    "pandas",
    "matplotlib",
    "pycocotools",
}

UNSAFE = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load"}

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Dotted names of modules a file imports anywhere, type checking and functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module)
            if node.module == "workbench":
                names |= {f"workbench.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        return
    for name in _imports(path):
        if not name.startswith("workbench."):
            continue
        other = name.split(".")[1]
        if other.startswith("_") or other == part:
            continue
        assert ORDER.index(other) < ORDER.index(part), f"{part} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if _part(p) in PLAIN], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_models_losses_and_ops_are_plain_pytorch(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path)}
    if path.name == "build.py":  # models/build.py translates the config; ops/build.py keeps a cache on disk
        roots -= {"fvcore", "json"}
    assert not roots & FORBIDDEN_IN_PLAIN
    if path.name != "build.py":
        assert not any(name.startswith(("workbench.config", "workbench.data")) for name in _imports(path))


def test_nothing_unpickles_or_evaluates() -> None:
    """Files of strangers: no pickle, no eval, yaml and torch only in their safe forms."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in UNSAFE, f"{path.name}:{node.lineno} calls {called}"
            if called == "torch.load":
                assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords), path
