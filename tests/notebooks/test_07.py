"""07_inside: one step of each model, opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.notebook.steps import overrides
from tests.notebooks.running import pictures, run, run_here, text
from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.files import write_text


def _config(base: Path, model: str, folder: Path) -> Path:
    """Write the config of a baseline on the data of ``base``."""
    path = folder / f"{model}.yaml"
    write_text(path, load_config(base, overrides(model)).dump())
    return path


def test_07_opens_a_run_and_two_baselines(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    compare = [_config(tiny_config, model, tmp_path) for model in ("GeneralizedRCNN", "SOLOv2")]
    executed = run(
        "07_inside", tmp_path / "07.ipynb", ckpt=tiny_run, compare=compare, output=tmp_path / "out", images=2
    )
    assert pictures(executed) == 18
    written = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"trace_stages.csv", "inside_queries.png", "inside_anchors.png", "inside_cells.png"} <= written
    shown = text(executed)
    assert "was opened" not in shown and "transformer_decoder" in shown


def test_07_opens_one_model_alone(tiny_config: Path, tmp_path: Path) -> None:
    config = _config(tiny_config, "SOLOv2", tmp_path)
    shown = run_here("07_inside", ckpt=config, compare=[], output=tmp_path / "out", images=2)
    assert "No Mask2Former was opened" in shown and "No Mask R-CNN was opened" in shown
    assert "No SOLOv2 was opened" not in shown


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [({"image": 2}, "image 2 is not in the batch"), ({"image": "x"}, "image"), ({"ckpt": "gone"}, "gone")],
)
def test_07_says_what_is_wrong(parameters: dict, sentence: str, tiny_config: Path, tmp_path: Path) -> None:
    given = {
        "ckpt": _config(tiny_config, "MaskFormer", tmp_path),
        "compare": [],
        "output": tmp_path / "out",
        "images": 2,
    }
    with pytest.raises(WorkbenchError, match=sentence):
        run_here("07_inside", **given | parameters)


def test_the_notebook_holds_two_sentences_for_each_picture() -> None:
    """Each is shown after a text that says what a broken one looks like."""
    notebook = json.loads((Path(__file__).parents[2] / "notebooks" / "07_inside.ipynb").read_text())
    cells = notebook["cells"]
    for before, cell in zip(cells, cells[1:], strict=False):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("page.show"):
            assert "roken" in "".join(before["source"]), source
