"""Exported models: they agree with the model, in any size where that is asked for, and run without the workbench."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from workbench.cli import main
from workbench.config import config_to_dict, load_config
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.models import build_model, exportable
from workbench.runs.checkpoint import save_checkpoint
from workbench.workflows import export as workflow

pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs" / "shapes"


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A file that takes images of any size, and what was printed."""
    lines: list[str] = []
    path = workflow.export(tiny_run, tmp_path_factory.mktemp("onnx"), size=(64, 96), dynamic=True, tell=lines.append)
    return path, lines


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timing, which takes longer than the rest of a small model; ``exported`` has it."""
    monkeypatch.setattr(workflow, "_measure", lambda *_: (0.0, 0))


def _rows(predictions: list[dict], names: list[str]) -> list[np.ndarray]:
    fields = ["scores", "labels", "masks", "boxes"]
    stacked = [np.stack([np.asarray(p[name]) for p in predictions]) for name in fields]
    return stacked + [np.stack([np.asarray(p["subcategories"][name]) for p in predictions]) for name in names]


def test_it_gives_what_the_model_gives_at_sizes_it_was_not_traced_with(exported: tuple, tiny_run: Path) -> None:
    """Against the model's own inference, not only against what was traced."""
    module, _, vocabulary = workflow.exportable(tiny_run)
    session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == module.fields
    for shape in ((1, 96, 64), (3, 32, 128)):
        images = workflow.example_images(*shape, seed=2)
        with torch.no_grad():
            expected = _rows(module.model([{"image": image} for image in images]), list(vocabulary.subcategories))
        actual = session.run(None, {"images": images.numpy()})
        assert workflow.disagreement(expected, actual) < 1e-3
    with pytest.raises(Exception, match="cannot be reshaped"):  # no multiple of 32
        session.run(None, {"images": workflow.example_images(1, 50, 70).numpy()})
    assert any(line.startswith("images 1x3x96x96: largest difference") for line in exported[1])
    assert sum("peak memory" in line for line in exported[1]) == 2


def test_the_script_beside_it_needs_neither_workbench_nor_torch(
    exported: tuple, tiny_run: Path, tmp_path: Path
) -> None:
    text = exported[0].with_name("run_onnx.py").read_text()
    assert "workbench" not in text and "torch" not in text
    picture = _photo(tmp_path)
    lines = _run(tmp_path, exported[0])
    module, cfg, vocabulary = workflow.exportable(tiny_run)
    texture = vocabulary.subcategories["texture"]
    assert all(line.split()[0] in vocabulary.categories and line.split()[2] in texture for line in lines)
    assert _scores(lines) == pytest.approx(_expected_scores(module, cfg, picture, (64, 96)), abs=6e-4)
    boxes = [line.partition("box ")[2] for line in lines]
    assert {box for box in boxes if box != "None"} and all(_within(box, 70, 50) for box in boxes)


def test_the_script_resizes_as_the_models_config_has_it(exported: tuple, tiny_run: Path, tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    notes = {each.key: each.value for each in model.metadata_props} | {"edges": "[32, 40]"}
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, tmp_path / "model.onnx")
    resized = _photo(tmp_path).resize((40, 29), Image.Resampling.BILINEAR)
    module, cfg, _ = workflow.exportable(tiny_run)
    expected = _expected_scores(module, cfg, resized, (32, 64))
    assert _scores(_run(tmp_path, tmp_path / "model.onnx")) == pytest.approx(expected, abs=6e-4)


def test_the_script_fits_images_to_a_fixed_size_and_number(tiny_run: Path, tmp_path: Path, unmeasured: None) -> None:
    path = workflow.export(tiny_run, tmp_path, size=(64, 96), batch=2, tell=lambda line: None)
    Image.new("RGB", (50, 200), (200, 30, 30)).save(tmp_path / "a.png")
    boxes = [line.partition("box ")[2] for line in _run(tmp_path, path)]
    assert len(boxes) == 10 and all(_within(box, 50, 200) for box in boxes)


def _photo(folder: Path) -> Image.Image:
    """Write ``a.png``, stored on its side with the orientation in its EXIF data, and return it upright, 70x50."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8) // (1, 2, 4)
    picture = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "a.png", exif=exif)
    return picture


def _expected_scores(
    module: torch.nn.Module, cfg: CfgNode, picture: Image.Image, padded: tuple[int, int]
) -> list[float]:
    """Return the scores of a picture that is padded with the mean colour at the right and bottom."""
    images = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(1, 3, 1, 1).repeat(1, 1, *padded)
    images[:, :, : picture.height, : picture.width] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    with torch.no_grad():
        return module(images)[0][0].tolist()


def _run(folder: Path, model: Path) -> list[str]:
    """Run the script on ``a.png``, where neither torch nor workbench can be imported; return what it printed.

    All rows are printed: four steps of training find nothing surely.
    """
    text = Path(workflow.__file__).with_name("run_onnx.py").read_text()
    (folder / "run.py").write_text(text.replace(">= 0.5", ">= 0.0"))
    blocked = "import sys; sys.modules.update(torch=None, workbench=None); del sys.argv[0]; "
    command = [
        sys.executable,
        "-c",
        f"{blocked}import runpy; runpy.run_path(sys.argv[0], run_name='__main__')",
        "run.py",
        str(model),
        "a.png",
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout.splitlines()


def _scores(lines: list[str]) -> list[float]:
    return [float(line.partition(" box ")[0].split()[-1]) for line in lines]


def _within(box: str, width: int, height: int) -> bool:
    left, top, right, bottom = map(int, re.findall(r"\d+", box)) if box != "None" else (0, 0, 1, 1)
    return 0 <= left < right <= width and 0 <= top < bottom <= height


def test_a_swin_is_exported_for_any_size(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its windows are padded, shifted and masked by the size of the image."""
    sizes = "MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,2,1,1] MODEL.SWIN.NUM_HEADS [1,2,2,4]"
    cfg = load_config(tiny_config, ["MODEL.BACKBONE.NAME", "D2SwinTransformer", *sizes.split()])
    words = Vocabulary((1, 2), ("disc", "box"))
    own = save_checkpoint(
        tmp_path / "own", build_model(cfg, words), config=config_to_dict(cfg), vocabulary=words, step=0
    )
    path = workflow.export(own, tmp_path / "out", size=(96, 160), dynamic=True, tell=lambda line: None)
    module = workflow.exportable(own)[0]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 96, 160), (3, 224, 64)):
        images = workflow.example_images(*shape, seed=3)
        with torch.no_grad():
            expected = [field.numpy() for field in module(images)]
        assert workflow.disagreement(expected, session.run(None, {"images": images.numpy()})) < 1e-3


def test_a_program_of_torch_export_is_checked_too(tiny_run: Path, tmp_path: Path, unmeasured: None) -> None:
    lines: list[str] = []
    path = workflow.export(tiny_run, tmp_path, kind="torch-export", size=(64, 64), tell=lines.append)
    assert path.name == "model.pt2" and [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert lines[0].startswith("images 1x3x64x64: largest difference")


def test_a_file_that_disagrees_is_not_kept(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = workflow._trace

    def wrong(module: exportable.ExportableMask2Former, *args: object) -> object:
        program = traced(module, *args)
        name = "model.transformer_decoder.class_embed.bias"
        bias = program.state_dict[name].detach()
        program.state_dict[name] = torch.nn.Parameter(bias + torch.arange(len(bias)))
        return program

    monkeypatch.setattr(workflow, "_trace", wrong)
    with pytest.raises(WorkbenchError, match="differs from the model by .* not kept"):
        workflow.export(tiny_run, tmp_path, kind="torch-export", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_does_not_fit_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="50x64 cannot be exported: .* multiples of 32 .* 64x64"):
        workflow.export(tiny_run, tmp_path, size=(50, 64))


@pytest.mark.parametrize(("name", "kind"), [("solov2", "SOLOv2"), ("mask_rcnn", "MaskRCNN")])
def test_a_baseline_is_refused_in_one_sentence(name: str, kind: str, tmp_path: Path, capsys) -> None:  # noqa: ANN001
    cfg = load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])
    words = Vocabulary((1, 2), ("disc", "box"))
    save_checkpoint(tmp_path / "own", build_model(cfg, words), config=config_to_dict(cfg), vocabulary=words, step=0)
    assert main(["export", "--ckpt", str(tmp_path / "own"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"holds a {kind} (MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE})" in error
    assert "only a Mask2Former can be exported" in error
    assert not (tmp_path / "out").exists()


def test_rows_are_compared_whatever_the_order_of_equal_ones() -> None:
    masks = np.zeros((1, 2, 4, 4), dtype=np.uint8)
    masks[0, 0, :2] = 1
    want = [np.array([[0.5, 0.5]]), np.array([[1, 1]]), masks, np.zeros((1, 2, 4))]
    swapped = [field[:, ::-1] for field in want]
    assert workflow.disagreement(want, swapped) == 0
    other = [want[0], np.array([[1, 2]]), *want[2:]]
    assert workflow.disagreement(want, other) == 1
    pixel = [want[0], want[1], masks.copy(), want[3]]
    pixel[2][0, 0, 3, 3] = 1
    assert workflow.disagreement(want, pixel) == pytest.approx(1 / 16)
