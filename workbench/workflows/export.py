"""A checkpoint as one file that runs without the workbench: ONNX, or a program of torch.export."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from workbench.data.masks import MOST_PIXELS
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError, counted, errors_as, shown
from workbench.files import replacing
from workbench.models.exportable import ExportableMask2Former
from workbench.models.mask2former import Mask2Former
from workbench.ops.deform_attn import plain_operators
from workbench.runs.checkpoint import checkpoint_config, load_model, resolve_checkpoint

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2"}
TOLERANCE = 1e-3
SCRIPT = "run_onnx.py"
_LARGEST = 2**31 - 2**20  # bytes of one ONNX file
# Runs in a process of its own, so that its peak memory is that of the runtime and the model alone.
_MEASURE = """
import json, statistics, sys, time
import psutil
import numpy as np
path, kind, shape = sys.argv[1], sys.argv[2], tuple(map(int, sys.argv[3].split(",")))
images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"images": images})
else:
    import torch
    if kind == "torch-export":
        program = torch.export.load(path).module()
    else:
        from workbench.workflows.export import exportable
        program = exportable(path)[0]
    images = torch.from_numpy(images)
    def run():
        with torch.no_grad():
            program(images)
seconds = []
for _ in range(4):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
except OSError:  # not Linux: what is held at the end
    peak = psutil.Process().memory_info().rss
print(json.dumps([statistics.median(seconds[1:]), peak]))
"""


def export(
    ckpt: str | Path,
    output: str | Path,
    *,
    kind: str = "onnx",
    size: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> Path:
    """Write a checkpoint's model as one file, once it agrees with the model, and for ONNX a script that runs it.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        output: a folder, made where it is missing; files of an earlier export are replaced.
        kind: one of ``FORMATS``.
        size: height and width of the images, by default a square of INPUT.MIN_SIZE_TEST; multiples of
            MODEL.MASK_FORMER.SIZE_DIVISIBILITY.
        batch: images at once.
        dynamic: take images of any such size, and any number of them; the above is then an example.
        overrides: config keys and values in turn, over the checkpoint's config.
        tell: prints a line.

    Returns:
        the file.

    Raises:
        WorkbenchError: the model is no Mask2Former, the size does not fit, a package is missing, the model cannot be
            exported, or the file disagrees with the model.
    """
    _require(kind)
    module, cfg, vocabulary = exportable(ckpt, overrides)
    multiple = module.model.size_divisibility
    height, width = size or [_up(cfg.INPUT.MIN_SIZE_TEST or cfg.INPUT.IMAGE_SIZE, multiple)] * 2
    if height % multiple or width % multiple:
        raise WorkbenchError(
            f"the size {height}x{width} cannot be exported: height and width must be multiples of {multiple} "
            f"(MODEL.MASK_FORMER.SIZE_DIVISIBILITY), for example {_up(height, multiple)}x{_up(width, multiple)}"
        )
    if batch * height * width > MOST_PIXELS:
        raise WorkbenchError(
            f"a batch of {shown(batch)} images of {shown(height)}x{shown(width)} has more than the {MOST_PIXELS:,} "
            "pixels that can be exported at once (--batch, --size)"
        )
    images = example_images(batch, height, width)
    program = _trace(module, images, dynamic)
    path = Path(output) / FORMATS[kind]
    with replacing(path) as draft:
        draft = draft.with_name(f"{draft.name}{path.suffix}")  # torch.export.save insists on the suffix
        try:
            if kind == "onnx":
                shape = None if dynamic else (batch, height, width)
                _write_onnx(program, module, draft, _notes(cfg, vocabulary, multiple, shape))
            else:
                torch.export.save(program, draft)
            checks = [images] if not dynamic else [images, example_images(1, height + multiple, width, seed=1)]
            for example in checks:
                _check(module, draft, kind, example, tell)
            draft.rename(draft.with_suffix(""))
        finally:
            draft.unlink(missing_ok=True)
    if kind == "onnx":
        with replacing(path.with_name(SCRIPT)) as draft:
            shutil.copyfile(Path(__file__).with_name(SCRIPT), draft)
    shape = f"{batch},3,{height},{width}"
    for name, which, file in (("this model", "eager", resolve_checkpoint(ckpt)), (path.name, kind, path)):
        seconds, peak = _measure(file, which, shape)
        images = f"{counted(batch, 'image')} of {height}x{width}"
        tell(f"{name}: {seconds:.3f} s for {images}, peak memory {peak / 1e6:.0f} MB")
    return path


def exportable(ckpt: str | Path, overrides: Sequence[str] = ()) -> tuple[ExportableMask2Former, CfgNode, Vocabulary]:
    """Return a checkpoint's model on the CPU as a function of tensors, its config and its vocabulary."""
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    model, checkpoint = load_model(path, "cpu", config=cfg)
    if not isinstance(model, Mask2Former):
        raise WorkbenchError(
            f"checkpoint {path} holds a {type(model).__name__} (MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE}), whose number of objects depends on the image; only a Mask2Former can be "
            "exported"
        )
    return ExportableMask2Former(model.to(memory_format=torch.contiguous_format)).eval(), cfg, checkpoint.vocabulary


def example_images(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Return smooth random images (batch, 3, height, width) float32 in 0-255."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)


def disagreement(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """Return the largest difference between two outputs of an exported model, whatever the order of equal rows.

    Rows are paired by label and score. Of a pair it counts the difference of scores and of subcategories'
    probabilities, and the share of pixels in which the masks differ; boxes where the masks are equal. A label without
    a partner counts 1.
    """
    worst = 0.0
    for want, have in zip(zip(*expected, strict=True), zip(*actual, strict=True), strict=True):
        free = list(range(len(have[0])))
        for row in range(len(want[0])):
            same = [other for other in free if have[1][other] == want[1][row]]
            if not same:
                return 1.0
            costs = [_row_difference(want, row, have, other) for other in same]
            best = int(np.argmin(costs))
            worst = max(worst, costs[best])
            free.remove(same[best])
    return float(worst)


def _row_difference(want: Sequence[np.ndarray], row: int, have: Sequence[np.ndarray], other: int) -> float:
    pair = [[field[index] for field in side[:4]] for side, index in ((want, row), (have, other))]
    scores, _, masks, boxes = zip(*pair, strict=True)
    pixels = float((masks[0] != masks[1]).mean())
    parts = [abs(float(scores[0]) - float(scores[1])), pixels]
    parts += [float(np.abs(a[row] - b[other]).max()) for a, b in zip(want[4:], have[4:], strict=True)]
    return max(*parts, 0.0 if pixels else float(np.abs(boxes[0] - boxes[1]).max()))


def _require(kind: str) -> None:
    if kind not in FORMATS:
        raise WorkbenchError(f"--format {kind!r} is not known; it is one of {', '.join(FORMATS)}")
    if kind == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise WorkbenchError(
                f"the package {error.name} is missing, which ONNX needs: pip install 'workbench[export]'"
            ) from None


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _notes(cfg: CfgNode, vocabulary: Vocabulary, multiple: int, shape: Sequence[int] | None) -> dict[str, Any]:
    """Return what a program needs to know beside the network, as the file's metadata holds it.

    Args:
        shape: number, height and width of the images, where these are fixed.
    """
    batch, *size = shape or [1]
    edges = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST or 10**9] if cfg.INPUT.MIN_SIZE_TEST else []
    return {
        "categories": list(vocabulary.categories),
        "subcategories": {name: list(classes) for name, classes in vocabulary.subcategories.items()},
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "multiple": multiple,
        "batch": batch,
        "size": size[::-1],  # width and height, as Pillow has them; none: any
        "edges": edges,  # the shortest edge and at most the longest; none: those of the image
    }


def _trace(module: ExportableMask2Former, images: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    multiple = module.model.size_divisibility
    shapes, example = None, images
    if dynamic:
        dims = {name: torch.export.Dim(name, min=1, max=4096) for name in ("batch", "rows", "columns")}
        shapes = {"images": {0: dims["batch"], 2: multiple * dims["rows"], 3: multiple * dims["columns"]}}
        # A size of one would be taken for a constant, and so would equal sizes.
        height, width = (max(side, least * multiple) for side, least in zip(images.shape[2:], (2, 3), strict=True))
        example = example_images(max(2, len(images)), height, width + multiple * (height == width))
    with torch.no_grad(), plain_operators(), warnings.catch_warnings(), errors_as(_cannot(dynamic), Exception):
        warnings.simplefilter("ignore")
        return torch.export.export(module, (example,), dynamic_shapes=shapes)


def _cannot(dynamic: bool) -> str:
    hint = "; without --dynamic it may" if dynamic else ""
    return f"the model cannot be traced by torch.export{hint}"


def _write_onnx(
    program: torch.export.ExportedProgram, module: ExportableMask2Former, path: Path, notes: dict[str, Any]
) -> None:
    import onnx

    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    if weights > _LARGEST:
        raise WorkbenchError(f"the weights take {weights / 2**30:.1f} GiB, and an ONNX file holds less than 2")
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "onnx_ir", "torch.onnx")}
    for name in levels:  # each operator that is not folded would be a line
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), errors_as("the model cannot be written as ONNX", Exception):
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=module.fields, verbose=False
            )
            written.save(path, external_data=False)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in notes.items()})
    onnx.save(model, path)


def _check(module: ExportableMask2Former, path: Path, kind: str, images: Tensor, tell: Callable[[str], None]) -> None:
    """Raise WorkbenchError unless a file gives what the model gives, to within ``TOLERANCE``."""
    with torch.no_grad():
        expected = [field.numpy() for field in module(images)]
        if kind == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            actual = session.run(None, {"images": images.numpy()})
        else:
            actual = [field.numpy() for field in torch.export.load(path).module()(images)]
    difference = disagreement(expected, actual)
    shape = "x".join(map(str, images.shape))
    if not difference <= TOLERANCE:
        raise WorkbenchError(
            f"the exported model differs from the model by {difference:.3g} on images {shape}, more than {TOLERANCE}; "
            "the file was not kept"
        )
    tell(f"images {shape}: largest difference from the model {difference:.2g}")


def _measure(path: Path, kind: str, shape: str) -> tuple[float, int]:
    command = [sys.executable, "-c", _MEASURE, str(path), kind, shape]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise WorkbenchError(f"{path} cannot be measured: {reason}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak
