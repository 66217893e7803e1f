"""Where detectron2 is absent, one sentence says how to get it, and nothing else of the workbench needs it."""

from __future__ import annotations

import subprocess
import sys


def test_the_import_says_how_to_get_detectron2() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import workbench.cli; import workbench.detectron2"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: workbench.detectron2 needs detectron2")
    assert "conda-forge detectron2" in last and "docs/detectron2.md" in last
