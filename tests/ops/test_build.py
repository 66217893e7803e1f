"""The compiled operators' cache: never stale, built once, safe, and honest when it cannot build."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.ops import backends, build, cuda, selftest

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no compiled back ends there")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ops"


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A compiler that copies its source to its output and writes down every call."""
    path = tmp_path / "compiler"
    path.write_text(
        f"""#!{sys.executable}
import pathlib, sys, time
here = pathlib.Path(__file__)
if sys.argv[1:] == ["--version"]:
    print(here.with_name("version").read_text())
    sys.exit()
with open(here.with_name("calls"), "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
text = pathlib.Path(sys.argv[-3]).read_text()
if "slow" in text:
    time.sleep(0.5)
if "error" in text:
    print("kernel.cpp:1: no such thing")
    sys.exit(1)
pathlib.Path(sys.argv[-1]).write_text(text)
"""
    )
    path.chmod(0o755)
    path.with_name("version").write_text("compiler 1.0")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder of this test's own."""
    folder = tmp_path / "source"
    (folder / "cpu").mkdir(parents=True)
    (folder / "cpu" / "kernel.cpp").write_text("kernel")
    (folder / "deform_attn.h").write_text("header")
    return folder


def _recipe(compiler: Path, *flags: str) -> build.Recipe:
    start = (str(compiler), *flags)
    return build.Recipe(
        name="cpu",
        source=compiler.with_name("source"),
        suffixes=(".h", ".cpp"),
        compiler=(str(compiler), build.version_text(str(compiler))),
        compile=((*start, "{source}/cpu/kernel.cpp", "-o", "{out}/kernel.o"),),
        link=(*start, "{out}/kernel.o", "-o", "{out}/library.so"),
    )


def _calls(compiler: Path) -> int:
    path = compiler.with_name("calls")
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_nothing_changed_builds_nothing(cache, source, compiler):
    first = build.build(_recipe(compiler))
    again = build.build(_recipe(compiler))
    assert (first.cached, again.cached) == (False, True)
    assert first.library == again.library and first.library.read_text() == "kernel"
    assert _calls(compiler) == 2  # one compilation, one link
    assert again.seconds == first.seconds


@pytest.mark.parametrize("change", ["source", "header", "new file", "compiler", "flags"])
def test_any_change_builds_anew(cache, source, compiler, change):
    first = build.build(_recipe(compiler))
    flags = ()
    if change == "source":
        (source / "cpu" / "kernel.cpp").write_text("kernel 2")
    elif change == "header":
        (source / "deform_attn.h").write_text("header 2")
    elif change == "new file":
        (source / "cpu" / "more.h").write_text("")
    elif change == "compiler":
        compiler.with_name("version").write_text("compiler 1.1")
    else:
        flags = ("-O1",)
    second = build.build(_recipe(compiler, *flags))
    assert not second.cached and second.library != first.library
    assert build.build(_recipe(compiler, *flags)).cached


def test_force_builds_anew(cache, source, compiler):
    first = build.build(_recipe(compiler))
    assert not build.build(_recipe(compiler), force=True).cached
    assert _calls(compiler) == 4 and first.library.is_file()


def test_a_failed_build_says_why_and_leaves_nothing(cache, source, compiler):
    (source / "cpu" / "kernel.cpp").write_text("error")
    for _ in range(2):
        with pytest.raises(WorkbenchError, match=r"compiler.*kernel.cpp:1: no such thing"):
            build.build(_recipe(compiler))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_processes_at_once_build_once(cache, source, compiler):
    (source / "cpu" / "kernel.cpp").write_text("slow")
    program = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("build", {build.__file__!r})  # without torch, which takes seconds
build = sys.modules["build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
start = ({str(compiler)!r},)
source = pathlib.Path({str(source)!r})
print(build.build(build.Recipe("cpu", source, (".cpp",), (start[0], build.version_text(start[0])),
    ((*start, "{{source}}/cpu/kernel.cpp", "-o", "{{out}}/kernel.o"),),
    (*start, "{{out}}/kernel.o", "-o", "{{out}}/library.so"))).cached)
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["False", "True", "True"]
    assert _calls(compiler) == 2


def test_an_interrupted_build_is_no_build(cache, source, compiler):
    made = build.build(_recipe(compiler))
    (made.library.parent / "build.json").unlink()  # it is written last
    assert not build.build(_recipe(compiler)).cached


@pytest.mark.parametrize("note", ["", '{"compiler": "c++", "sec', "[]", "{}", '{"seconds": NaN}', "\udc80"])
def test_a_cut_note_builds_anew(cache, source, compiler, note):
    made = build.build(_recipe(compiler))
    (made.library.parent / "build.json").write_text(note, errors="surrogateescape")
    assert not build.build(_recipe(compiler)).cached
    assert build.build(_recipe(compiler)).cached


@pytest.mark.parametrize("name", ["library.so", "build.json", "."])
def test_a_build_that_others_can_write_is_built_anew(cache, source, compiler, name):
    made = build.build(_recipe(compiler))
    (made.library.parent / name).chmod(0o770)
    assert not build.build(_recipe(compiler)).cached
    assert build.build(_recipe(compiler)).cached


def test_a_build_that_the_umask_opens_to_the_group_is_kept(cache, source, compiler):
    before = os.umask(0o002)
    try:
        build.build(_recipe(compiler))
    finally:
        os.umask(before)
    assert build.build(_recipe(compiler)).cached


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["library.so", "build.json", "."])
def test_a_build_of_another_user_is_built_anew(cache, source, compiler, name):
    made = build.build(_recipe(compiler))
    os.chown(made.library.parent / name, 65534, -1)
    assert not build.build(_recipe(compiler)).cached


@pytest.mark.parametrize(("place", "mode"), [(".", 0o777), (".", 0o770), ("..", 0o777)])
def test_a_cache_that_others_can_write_is_refused(cache, place, mode):
    cache.mkdir(parents=True)
    cache.chmod(0o700)
    (cache / place).resolve().chmod(mode)
    with pytest.raises(WorkbenchError, match="can be written by others"):
        build.cache_directory()


def test_a_cache_below_a_sticky_folder_is_used(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o700)
    cache.parent.chmod(0o1777)
    assert build.cache_directory() == cache


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_refused(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o700)
    os.chown(cache, 65534, -1)
    with pytest.raises(WorkbenchError, match="can be written by others"):
        build.cache_directory()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_names_the_remedy(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(WorkbenchError, match="set WORKBENCH_CACHE"):
        build.cache_directory()


def test_a_cache_below_a_file_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkbenchError, match="set WORKBENCH_CACHE"):
        build.cache_directory()


def test_importing_compiles_nothing(cache, compiler):
    environment = {**os.environ, "CXX": str(compiler)}
    subprocess.run(
        [sys.executable, "-c", "import workbench.ops, workbench.ops.selftest"],
        cwd=REPOSITORY,
        env=environment,
        check=True,
    )
    assert not cache.exists() and _calls(compiler) == 0


def test_a_compiler_that_does_not_run_is_named(monkeypatch, compiler):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(WorkbenchError, match="no-such-compiler"):
        build.cpu_recipe()
    compiler.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(WorkbenchError, match=r"does not run: broken"):
        build.cpu_recipe()


def test_a_cached_library_that_does_not_load_is_built_again(cache, monkeypatch):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_failed", {})
    monkeypatch.setattr(build, "X86_SETS", {"generic": ()})
    monkeypatch.setattr(build, "CPU_FLAGS", ("-O0", "-std=c++17", "-fPIC", "-DWB_ONLY_GENERIC"))
    recipe = build.cpu_recipe()
    target = build.cache_directory() / f"cpu-{build.build_key(recipe)}"
    target.mkdir()
    (target / "library.so").write_bytes(b"\x7fELF cut short")
    (target / "build.json").write_text(json.dumps({"compiler": "", "seconds": 0}))
    native = backends.load("cpu")
    assert not native.build.cached and list(native.instruction_sets()) == ["generic"]


# ---- CUDA --------------------------------------------------------------------------------------------------


def _fake_nvcc(folder: Path, version: str) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    path.chmod(0o755)
    return path


def test_the_machines_nvcc_is_taken_when_its_major_version_fits(tmp_path, monkeypatch):
    nvcc = _fake_nvcc(tmp_path / "toolkit", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    path, version, why = cuda.find_nvcc(13)
    assert path == str(nvcc) and "13.0" in version and "the machine's nvcc" in why


@pytest.mark.parametrize("home", [None, ""])
def test_a_toolkit_in_usr_local_is_found_without_cuda_home(home, tmp_path, monkeypatch):
    for folder, version in (("cuda-12.4", "12.4"), ("cuda-13.0", "13.0")):
        _fake_nvcc(tmp_path / folder, version)
    monkeypatch.setattr(cuda, "TOOLKITS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CUDA_HOME", raising=False) if home is None else monkeypatch.setenv("CUDA_HOME", home)
    path, version, _ = cuda.find_nvcc(13)
    assert path == str(tmp_path / "cuda-13.0" / "bin" / "nvcc") and "13.0" in version


def test_pypis_nvcc_is_taken_when_the_machines_does_not_fit(tmp_path, monkeypatch):
    _fake_nvcc(tmp_path / "toolkit", "12.4")
    nvcc = _fake_nvcc(tmp_path / "nvidia" / "cu13", "13.2")
    monkeypatch.setattr(cuda, "_nvidia_folders", lambda: [tmp_path / "nvidia"])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    path, _, why = cuda.find_nvcc(13)
    assert path == str(nvcc)
    assert why == "PyPI's nvcc, because the machine's nvcc has major version 12, torch's CUDA 13"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert cuda.find_nvcc(13)[2] == "PyPI's nvcc, because the machine has no nvcc"
    monkeypatch.setattr(cuda, "_nvidia_folders", list)
    with pytest.raises(WorkbenchError, match=r"no nvcc to build with.*none of CUDA 13 was installed from PyPI"):
        cuda.find_nvcc(13)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("13.2", "pip install 'cuda-toolkit[nvcc,cccl]==13.2.*'"),
        ("12.8", "conda install -c conda-forge cuda-nvcc=12.8"),  # PyPI's packages lack the program itself
        (None, "install a C++ compiler"),
    ],
)
def test_the_way_to_an_nvcc_fits_torchs_cuda(monkeypatch, version, said):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_failed", {})
    monkeypatch.setenv("CUDA_HOME", os.devnull)
    monkeypatch.setattr(cuda, "_nvidia_folders", list)
    monkeypatch.delenv("WORKBENCH_OPS", raising=False)
    with pytest.warns(RuntimeWarning, match=re.escape(said)):
        assert backends.choose(torch.device("cuda"), torch.float32) is None


# ---- the self-test -----------------------------------------------------------------------------------------


def test_the_selftest_checks_every_back_end(monkeypatch):
    monkeypatch.delenv("WORKBENCH_OPS", raising=False)
    result = selftest.run_selftest()
    assert result["in_use"]["cpu"] in ("cpu", "reference")
    assert all(check["passed"] for check in result["checks"])
    assert any(check["backend"] == "reference" for check in result["checks"])
    text = selftest.format_selftest(result)
    assert "deform_attn on cpu" in text and "passed" in text and "FAILED" not in text


def test_the_selftest_of_a_wrong_back_end_fails(monkeypatch):
    try:
        native = backends.load("cpu")
    except WorkbenchError as error:
        pytest.skip(str(error))
    forward = native.forward
    monkeypatch.setattr(native, "forward", lambda *arguments: forward(*arguments) * 1.001)
    with pytest.raises(WorkbenchError, match="computes wrong numbers with cpu"):
        selftest.build_ops()


def test_the_selftest_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_failed", {})
    monkeypatch.setenv("CXX", "no-such-compiler")
    text = selftest.build_ops()
    assert "deform_attn on cpu: reference back end" in text
    assert "cpu: not available: No C++ compiler was found (looked for no-such-compiler)" in text
