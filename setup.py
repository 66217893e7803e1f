"""Everything is in pyproject.toml but this: an installed package carries the C++ and CUDA sources that it compiles."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSources(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there the checkout's own are used
            target = Path(self.build_lib, "workbench", "ops", "source")
            shutil.copytree("ops", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSources})
