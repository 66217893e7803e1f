"""The pinned environment and its three descriptions: pyproject.toml, requirements.lock, environment.yml."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
PYPI_ONLY = {"hotcoco"}  # the editable install at the end of environment.yml brings them


def test_torch_and_torchvision_belong_together() -> None:
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 6.0, 6.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
    assert kept.tolist() == [1, 2]


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _declared(*extras: str) -> list[Requirement]:
    project = _project()
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for texts in lists for text in texts]


def _locked(python: str) -> dict[str, list[Version]]:
    """Versions that requirements.lock installs on Linux x86-64 with that Python."""
    machine = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    machine |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    found: dict[str, list[Version]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(machine):
            (pin,) = requirement.specifier
            found.setdefault(canonicalize_name(requirement.name), []).append(Version(pin.version))
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_every_declared_package_within_its_range(python: str) -> None:
    locked = _locked(python)
    assert all(len(versions) == 1 for versions in locked.values()), "a package is pinned twice"
    for requirement in _declared("dev", "cuda", "export"):
        machine = {"python_version": python, "sys_platform": "linux"}
        if requirement.marker is not None and not requirement.marker.evaluate(machine):
            continue
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock for Python {python}"
        assert locked[name][0] in requirement.specifier, f"{name} {locked[name][0]} on Python {python}"


@pytest.mark.parametrize("python", PYTHONS)
def test_locked_torch_suits_locked_torchvision_and_python(python: str) -> None:
    locked = _locked(python)
    (torch,), (torchvision,) = locked["torch"], locked["torchvision"]
    assert torchvision == Version("0.29.2")  # its metadata: torch >= 2.14, Python >= 3.10
    assert torch in SpecifierSet(">=2.14")
    if python == "3.10":
        assert torch < Version("2.15")  # which needs Python 3.11


def test_lock_is_exact_and_names_no_place() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;*/+]+( ; [^/@]+)?", line), line
        assert "://" not in line and "file:" not in line, line


def test_installed_packages_are_those_of_the_lock() -> None:
    from importlib.metadata import PackageNotFoundError, version

    if not any((Path(sys.prefix)).glob(".installed-*")):
        pytest.skip("this environment was not made by `make env`")
    locked = _locked(f"{sys.version_info.major}.{sys.version_info.minor}")
    for requirement in _declared("dev", "cuda", "export"):
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            try:
                assert Version(version(name)).public == str(locked[name][0]), name
            except PackageNotFoundError:
                pytest.fail(f"{name} is not installed")


def test_conda_environment_holds_the_same_ranges_and_detectron2() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    conda = {}
    for line in environment["dependencies"]:
        if isinstance(line, str):
            name, sign, lowest = line.partition(">=")
            conda[name] = sign + lowest
    wanted = {
        CONDA_NAMES.get(r.name, r.name): str(r.specifier) for r in _declared("dev", "export") if r.name not in PYPI_ONLY
    }
    wanted |= {"python": _project()["requires-python"], "pip": "", "detectron2": ""}
    assert conda == wanted
    assert {"pip": ["--editable ."]} in environment["dependencies"]


def test_lock_brings_the_nvcc_of_torchs_cuda() -> None:
    for python in PYTHONS:
        locked = _locked(python)
        (toolkit,) = locked["cuda-toolkit"]
        for name in ("nvidia-cuda-nvcc", "nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-nvvm"):
            assert locked[name][0].release[:2] == toolkit.release[:2], f"{name} on Python {python}"


def test_wheel_carries_the_sources_that_it_compiles(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("workbench", "ops"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = {name.removeprefix("workbench/ops/source/") for name in file.namelist() if "/source/" in name}
    files = (path for path in (ROOT / "ops").rglob("*") if path.is_file())
    assert packed == {path.relative_to(ROOT / "ops").as_posix() for path in files}


def test_version_is_the_packages_own() -> None:
    from importlib.metadata import version

    import workbench

    assert version("workbench") == workbench.__version__


def test_notebook_kernel_is_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """papermill runs notebooks in the environment it was started from, whatever the user has registered."""
    from jupyter_client.kernelspec import KernelSpecManager

    registered = tmp_path / "kernels" / "python3"
    registered.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python"], "display_name": "registered elsewhere", "language": "python"}
    (registered / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    argv = KernelSpecManager().get_kernel_spec("python3").argv
    assert argv[0] in ("python", sys.executable)


def test_import_is_light() -> None:
    """Neither torch nor any other heavy package comes with ``import workbench`` or ``workbench --help``."""
    code = (
        "import sys, workbench, workbench.cli\n"
        "try: workbench.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'matplotlib', 'pandas', 'scipy', 'accelerate', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_makefile_refuses_an_old_python_in_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo Python 3.8.1 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for python, said in ((str(old), "Python 3.8.1"), ("no-such-python", "was not found")):
        done = subprocess.run(
            ["make", "env", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "needs Python 3.10 or newer" in done.stderr and said in done.stderr
        assert not (tmp_path / ".venv").exists()
