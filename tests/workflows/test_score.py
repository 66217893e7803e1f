"""Scoring a results file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.evaluation.scenes import VOCABULARY, random_case


def test_scoring_a_file_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    """Each takes longer to import than tens of thousands of masks to score."""
    truth, results = random_case(4)
    truth["subcategories"] = [{"name": name, "classes": list(c)} for name, c in VOCABULARY.subcategories.items()]
    files = [tmp_path / "annotations.json", tmp_path / "predictions.json"]
    for file, content in zip(files, (truth, results), strict=True):
        file.write_text(json.dumps(content))
    command = ["eval", "--annotations", str(files[0]), "--predictions", str(files[1])]
    code = (
        f"import sys; from workbench import cli; cli.main({command}); print(*{{'torch', 'pandas'}} & {{*sys.modules}})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "joint" in printed
    assert printed.splitlines()[-1] == ""
