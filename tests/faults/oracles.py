"""What tells a wrong result that came without a word: other programs, and the result of the undamaged input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.faults.workplace import RESULTS, VAL

NUMBERS = re.compile(r"(?<![\w.])-?\d+\.?\d*(?![\w.])")
PICTURES = [
    "PNG",
    "JPEG",
    "TIFF",
    "TIFF lzw",
    "WEBP",
    "BMP",
    "GIF",
    "PNG I;16",
    "PNG P",
    "PNG LA",
    "PNG 1",
    "JPEG CMYK",
    "JPEG turned",
    "TIFF F",
    "PPM",
    "ICO",
    "JPEG2000",
]
SEEN_DIFFERENCE = 2  # grey levels that two decoders may differ by


def nothing(printed: str) -> str:
    """Accept every result."""
    return ""


def trained(run: str) -> Callable[[str], str]:
    """Return a check that a training left numbers, all finite."""

    def check(printed: str) -> str:
        table = Path(run) / "metrics.csv"
        if not table.exists():  # OUTPUT_DIR was the key
            return ""
        with table.open() as file:
            for row in csv.DictReader(file):
                wrong = [
                    name for name in ("total_loss", "grad_norm", "lr") if not math.isfinite(float(row[name] or "nan"))
                ]
                if wrong:
                    return f"{wrong[0]} is {row[wrong[0]]}"
        return ""

    return check


def validated(path: str, check_images: bool = True) -> Callable[[str], str]:
    """Return a check that what validation passes, evaluation's reading and pycocotools' decoding take too."""

    def check(printed: str) -> str:
        from pycocotools import mask as coco_mask

        from workbench.data.coco import load_dataset
        from workbench.errors import WorkbenchError
        from workbench.evaluation.ground_truth import ground_truth

        try:
            truth = ground_truth(load_dataset([path], check_images=check_images))
        except WorkbenchError as error:
            return f"validate passes what evaluation refuses: {error}"
        except Exception as error:
            return f"validate passes what breaks evaluation: {type(error).__name__}: {error}"
        for row in truth["annotations"]:
            rle = row["segmentation"]
            compressed = isinstance(rle, dict) and isinstance(rle["counts"], str)
            if compressed and list(coco_mask.decode(rle).shape) != rle["size"]:
                return "pycocotools decodes a mask of another size"
        return ""

    return check


def scored(printed: str) -> str:
    """Compare the AP of masks that was printed as JSON with pycocotools', where it takes the files."""
    expected = _pycocotools()
    if expected is None:
        return ""
    segm = json.loads(printed)["segm"]
    got = segm and segm["AP"]
    if got is None:
        return "" if expected == -100 else f"no AP, and {expected:.2f} of pycocotools"
    return "" if abs(got - expected) < 1e-6 else f"AP {got}, and {expected:.6f} of pycocotools"


def _pycocotools() -> float | None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        truth = COCO(VAL)
        rows = json.loads(Path(RESULTS).read_text())
        evaluation = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return 100 * float(evaluation.stats[0])
    return None


def random_counts(seed: int) -> Any:
    """Return counts of an RLE of 32x32 pixels: text at random, a sound one damaged, or runs that are almost right."""
    from pycocotools import mask as coco_mask

    chosen = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        return "".join(chr(chosen.randrange(48, 112)) for _ in range(chosen.randrange(1, 12)))
    mask = np.asfortranarray(np.random.default_rng(seed).random((32, 32)) > 0.8, dtype=np.uint8)
    text = coco_mask.encode(mask)["counts"].decode()
    if kind == 1:
        place = chosen.randrange(len(text))
        return text[:place] + chr(chosen.randrange(33, 127)) + text[place + 1 :]
    if kind == 2:
        return text[: chosen.randrange(len(text))]
    runs = [chosen.choice((0, 1, -1, 2**31, 2**32, 2**33 - 5, 1000)) for _ in range(chosen.randrange(1, 6))]
    return [*runs, 1024 - sum(runs)]


def write_picture(path: str, picture: str, damage: Callable[[bytes], bytes]) -> None:
    """Write one of ``PICTURES``, damaged."""
    kind, _, option = picture.partition(" ")
    values = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3) % 251
    image, options = Image.fromarray(values.astype(np.uint8)), {}
    if option == "I;16":
        image = Image.fromarray((values[..., 0] * 257).astype(np.uint16))
    elif option == "F":
        image = Image.fromarray((values[..., 0] / 255).astype(np.float32))
    elif option == "lzw":
        options["compression"] = "tiff_lzw"
    elif option == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif option:
        image = image.convert(option)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    Path(path).write_bytes(damage(buffer.getvalue()))


def same_picture(path: str, command: str = "predict") -> Callable[[str], str]:
    """Return a check that Pillow, strictly, reads the same pixels as the workbench."""

    def check(printed: str) -> str:
        from PIL import ImageOps

        from workbench.data.images import read_image

        try:
            with Image.open(path) as image:
                deep = image.mode.startswith(("I", "F"))
                expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        except Exception as error:
            return f"{command} takes what Pillow refuses: {error}"
        got = read_image(path).astype(int)
        if got.shape != expected.shape:
            return f"{got.shape} and not {expected.shape} pixels"
        if not deep and np.abs(got - expected).max() > SEEN_DIFFERENCE:
            return f"pixels differ by {np.abs(got - expected).max()}"
        return ""

    return check


def _cast(state: dict) -> dict:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _first(state: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dim())
    return {**state, name: change(state[name]).contiguous()}


WEIGHT_CHANGES: dict[str, Callable[[dict], dict]] = {
    "float16": _cast,
    "nan": lambda state: _first(state, lambda tensor: tensor * float("nan")),
    "infinite": lambda state: _first(state, lambda tensor: tensor + float("inf")),
    "one missing": lambda state: dict(list(state.items())[1:]),
    "one more": lambda state: {**state, "extra": torch.zeros(3)},
    "another shape": lambda state: _first(state, lambda tensor: tensor[:1]),
    "none": lambda state: {"x": torch.zeros(1)},
    "other values": lambda state: _first(state, lambda tensor: tensor + 1),
}
STATE_CHANGES: dict[str, Callable[[dict], Any]] = {
    "no step": lambda state: {k: v for k, v in state.items() if k != "step"},
    "step is text": lambda state: {**state, "step": "x"},
    "negative step": lambda state: {**state, "step": -5},
    "no optimizer": lambda state: {**state, "optimizer": {}},
    "a list": lambda state: [1],
    "best is a list": lambda state: {**state, "best": [1]},
    "pending is text": lambda state: {**state, "pending": "x"},
    "no state of a parameter": lambda state: {**state, "optimizer": {**state["optimizer"], "state": {}}},
    "nan in the optimizer": lambda state: {**state, "optimizer": _with_nan(state["optimizer"])},
}


def _with_nan(optimizer: dict) -> dict:
    states = {
        key: {name: v * float("nan") if torch.is_tensor(v) and v.dim() else v for name, v in item.items()}
        for key, item in optimizer["state"].items()
    }
    return {**optimizer, "state": states}


def rewrite_weights(path: str, change: str) -> None:
    """Change the tensors of a checkpoint and record the new checksum, as another program would."""
    save_file(WEIGHT_CHANGES[change](load_file(path)), path)
    _record(Path(path))


def rewrite_state(path: str, change: str) -> None:
    """Change the training state of a checkpoint and record the new checksum."""
    torch.save(STATE_CHANGES[change](torch.load(path, weights_only=True)), path)
    _record(Path(path))


def _record(path: Path) -> None:
    from workbench.runs.checkpoint import _measure

    description = json.loads((path.parent / "model.json").read_text())
    description["files"][path.name] = asdict(_measure(path))
    (path.parent / "model.json").write_text(json.dumps(description))


def put_number(path: str, index: int, text: str) -> None:
    """Replace the ``index``-th number of a text file."""
    content = Path(path).read_text()
    match = list(NUMBERS.finditer(content))[index]
    Path(path).write_text(content[: match.start()] + text + content[match.end() :])


def imported(printed: str) -> str:
    """Return what is wrong with an imported dataset."""
    annotations = Path("imported/annotations.json")
    if not annotations.exists():
        return "exit 0 and no annotations.json"
    return validated(str(annotations), check_images=False)(printed)
