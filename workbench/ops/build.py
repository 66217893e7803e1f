"""Compile the native back ends into a per-user cache.

The key of a build is a hash of the sources, the compilers' version text, the flags and the C library: changing any of
them rebuilds, changing none does not. torch is not part of the key, because the libraries have a plain C interface. Of
several processes that need the same build, one compiles and the others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import WorkbenchError, errors_as, is_number
from workbench.files import cache_folder

CPU_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-pthread",
)
X86_SETS = {
    "avx512": (
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ),
    "avx2": ("-mavx2", "-mfma"),
    "generic": (),
}


@dataclass(frozen=True)
class Recipe:
    """How to build one library. In a command, {source} is the folder of the sources, {out} that of the build."""

    name: str
    source: Path
    suffixes: tuple[str, ...]  # of the files in the sources' folder that the build may read
    compiler: tuple[str, ...]  # the compiler's path and whatever identifies its version
    compile: tuple[tuple[str, ...], ...]
    link: tuple[str, ...]
    why: str = ""  # why this compiler


@dataclass(frozen=True)
class Build:
    """A library in the cache. ``seconds``: how long compiling took; ``cached``: whether it had been compiled before."""

    name: str
    library: Path
    compiler: str
    why: str
    seconds: float
    cached: bool


def source_directory() -> Path:
    """Return the folder of the C++ and CUDA sources: beside the package in a checkout, inside it when installed."""
    for folder in (Path(__file__).with_name("source"), Path(__file__).parents[2] / "ops"):
        if (folder / "deform_attn.h").is_file():
            return folder
    raise WorkbenchError("The C++ sources of the operators are missing: reinstall the package.")


def cache_directory() -> Path:
    """Return $WORKBENCH_CACHE/ops, else a folder in the user's cache; it is made with mode 700.

    Raises:
        WorkbenchError: the folder cannot be written, or other users can write it and so plant code in it.
    """
    folder = cache_folder() / "ops"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorkbenchError(
            f"The cache folder {folder} cannot be written ({error.strerror}): set WORKBENCH_CACHE to one that can."
        ) from None
    open_to_all = next((str(above) for above in folder.parents if _replaceable(above)), "")
    if open_to_all or not _private(folder):
        raise WorkbenchError(
            f"The cache folder {open_to_all or folder} can be written by others, so nothing is loaded from it: "
            "take their permission away (chmod 700), or set WORKBENCH_CACHE to a folder of your own."
        )
    return folder


def _private(path: Path) -> bool:
    """Return whether a file or folder belongs to this user, and neither its group nor others can write it."""
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _replaceable(folder: Path) -> bool:
    """Return whether every user can rename what lies in ``folder``, as in /tmp without its sticky bit."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def version_text(compiler: str) -> str:
    """Return what ``compiler --version`` prints; a WorkbenchError where it does not run."""
    with errors_as(f"The compiler {compiler} does not run", OSError, subprocess.TimeoutExpired):
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[:200]
        raise WorkbenchError(f"The compiler {compiler} does not run: {output}")
    return done.stdout.strip()


def cxx_compiler() -> str:
    """Return the C++ compiler: $CXX, else c++, g++ or clang++ on the PATH; a WorkbenchError where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    paths = [path for path in map(shutil.which, names) if path]
    if not paths:
        raise WorkbenchError(f"No C++ compiler was found (looked for {', '.join(names)}).")
    return paths[0]


def cpu_recipe() -> Recipe:
    """Return how to build the CPU library here; a WorkbenchError where there is no compiler."""
    if sys.platform not in ("linux", "darwin"):
        raise WorkbenchError(f"The cpu back end is built on Linux and macOS, not on {sys.platform}.")
    compiler = cxx_compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = X86_SETS if x86 else {"generic": ()}
    start = (compiler, *CPU_FLAGS)
    kernel = "{source}/cpu/kernel.cpp"
    kernels = tuple(
        (*start, *flags, f"-DWB_KERNEL=kernel_{name}", "-c", kernel, "-o", f"{{out}}/{name}.o")
        for name, flags in sets.items()
    )
    threads = (*start, "-c", "{source}/cpu/deform_attn.cpp", "-o", "{out}/deform_attn.o")
    objects = [f"{{out}}/{name}.o" for name in (*sets, "deform_attn")]
    return Recipe(
        name="cpu",
        source=source_directory(),
        suffixes=(".h", ".cpp"),
        compiler=(compiler, version_text(compiler)),
        compile=(*kernels, threads),
        link=(compiler, "-shared", "-pthread", *objects, "-o", "{out}/library.so"),
        why="$CXX" if os.environ.get("CXX") else "first of c++, g++, clang++ on the PATH",
    )


def build_key(recipe: Recipe) -> str:
    """Return the cache key: a hash of the sources, the compiler's version, the commands and the C library."""
    state = hashlib.sha256()
    for path in sorted(recipe.source.rglob("*")):
        if path.suffix in recipe.suffixes:
            state.update(path.relative_to(recipe.source).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    commands = [recipe.compiler, recipe.compile, recipe.link]
    state.update(json.dumps([*commands, platform.machine(), platform.libc_ver()]).encode())
    return state.hexdigest()[:24]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also when the process dies
        yield


def run(commands: Sequence[tuple[str, ...]], names: dict[str, str]) -> None:
    """Run commands in parallel; a WorkbenchError with the output of the first that fails."""
    processes = []
    for command in commands:
        filled = [part.format(**names) for part in command]
        process = subprocess.Popen(filled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append((filled, process))
    failures = []
    for filled, process in processes:
        output, _ = process.communicate()
        if process.returncode:
            failures.append(f"`{' '.join(filled)}` failed: {output.strip()[-2000:]}")
    if failures:
        raise WorkbenchError(failures[0])


def _version_line(text: str) -> str:
    lines = text.splitlines()
    return next((line for line in lines if "release" in line), lines[0])


def _cached_note(target: Path) -> dict[str, object] | None:
    """Return what build.json says of a build in the cache; None where the build is cut short, or is not this user's
    alone, so that it is neither loaded nor believed."""
    library, file = target / "library.so", target / "build.json"
    try:
        if not all(map(_private, (target, library, file))):
            return None
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) and is_number(note.get("seconds")) else None


def build(recipe: Recipe, force: bool = False) -> Build:
    """Return the recipe's library, compiled unless the cache has it.

    Raises:
        WorkbenchError: it does not compile, or the cache holds one of another user that cannot be replaced.
    """
    key = build_key(recipe)
    cache = cache_directory()
    target = cache / f"{recipe.name}-{key}"
    compiler = f"{recipe.compiler[0]} ({_version_line(recipe.compiler[1])})"
    with _lock(cache / f"{recipe.name}-{key}.lock"):
        note = None if force else _cached_note(target)
        cached = note is not None
        if note is None:
            started = time.perf_counter()
            work = Path(tempfile.mkdtemp(prefix=f".{recipe.name}-", dir=cache))
            try:
                names = {"source": str(recipe.source), "out": str(work)}
                run(recipe.compile, names)
                run([recipe.link], names)
                for made in work.glob("*.o"):
                    made.unlink()
                note = {"compiler": compiler, "seconds": round(time.perf_counter() - started, 2)}
                (work / "build.json").write_text(json.dumps(note))
                for made in work.iterdir():
                    made.chmod(0o700)  # the umask may let the group write
                with errors_as(f"The build {target} cannot be replaced, remove it", OSError):
                    if target.exists():
                        shutil.rmtree(target)
                    os.replace(work, target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return Build(recipe.name, target / "library.so", compiler, recipe.why, note["seconds"], cached)
