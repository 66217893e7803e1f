"""Data flows one way, and so do imports; the documents name the files that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workbench"

# A part imports only from those above it.
ORDER = (
    "errors",
    "console",
    "files",
    "yaml_files",
    "typed_files",
    "registry",
    "config_keys",
    "config",
    "data",
    "ops",
    "environment",
    "losses",
    "weights",
    "models",
    "evaluation",
    "visualization",
    "runs",
    "training",
    "workflows",
    "notebook",
    "detectron2",
    "cli",
    "__main__",
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


def _tree(readme: Path) -> set[str]:
    """Return the paths that the tree of a README names: folders end in "/", two spaces a level."""
    tree = re.search(r"```\n(notebooks/\n.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)[1]
    paths, folders = set(), []
    for line in tree.splitlines():
        folders = [*folders[: (len(line) - len(line.lstrip())) // 2], line.split()[0]]
        paths.add("".join(folders))
    return paths


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_tree_names_every_module_and_only_what_is_there(name: str) -> None:
    named = _tree(ROOT / name)
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    modules = {path.relative_to(ROOT).as_posix() for path in FILES if path.name != "__init__.py"}
    assert sorted(modules - named) == []


def test_paths_in_the_documents_exist() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:workbench|tests|benchmarks|notebooks|ops)/[\w./]+)`", text):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
