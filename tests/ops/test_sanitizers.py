"""The CPU kernel under the address and undefined-behaviour sanitizers, and its threads under the thread sanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.ops import build

DRIVER = Path(__file__).with_name("sanitize.cpp")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_cpu_kernel_is_clean(tmp_path: Path, sanitizers: str) -> None:
    try:
        recipe = build.cpu_recipe()
    except WorkbenchError as error:
        pytest.skip(str(error))
    source = build.source_directory()
    names = {"source": str(source), "out": str(tmp_path)}
    extra = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g")
    probe = (recipe.compiler[0], *extra, "-x", "c++", "-", "-o", str(tmp_path / "probe"))
    if subprocess.run(probe, input=b"int main() {}", capture_output=True).returncode:
        pytest.skip(f"{recipe.compiler[0]} has no sanitizers here")
    build.run([(*command, *extra) for command in recipe.compile], names)
    objects = [str(path) for path in tmp_path.glob("*.o")]
    program = str(tmp_path / "sanitize")
    command = (recipe.compiler[0], "-std=c++17", *extra, f"-I{source}", str(DRIVER), *objects, "-pthread")
    build.run([(*command, "-o", program)], {})
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "calls" in done.stdout
