"""Masks and their COCO encodings: polygons, compressed and uncompressed run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import contourpy
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from workbench.data.images import whole_frame
from workbench.data.reading import is_integer
from workbench.errors import WorkbenchError, is_number, kind_of

_LONGEST_RUN = 6  # characters: 30 bits; from the seventh on pycocotools shifts beyond its 32 and reads something else
_CHUNK = 1 << 18  # characters judged at once; about a hundred bytes of memory each
MOST_PIXELS = 2**29  # of an image; a longer run does not fit ``_LONGEST_RUN`` characters


def encode_masks(masks: np.ndarray) -> list[dict]:
    """(N, H, W) bool or 0/1 array -> N compressed RLEs ``{"size": [H, W], "counts": str}``, ready for JSON.

    pycocotools' functions read these as they are: they take the counts as text or bytes.
    """
    # pycocotools' own encoder needs each mask column by column; that copy takes ten times as long as finding the runs.
    height, width = masks.shape[1:]
    runs = [{"size": [height, width], "counts": _runs(np.asarray(mask, dtype=bool))} for mask in masks]
    rles = coco_mask.frPyObjects(runs, height, width) if runs else []
    return [{"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in rles]


def encode_mask(mask: np.ndarray) -> dict:
    """(H, W) bool or 0/1 array -> compressed RLE, see :func:`encode_masks`."""
    return encode_masks(np.asarray(mask)[None])[0]


def mask_areas(rles: Sequence[dict]) -> np.ndarray:
    """(N,) int64: set pixels of each of N compressed RLEs."""
    # pycocotools.mask.area overflows above 255 masks.
    parts = [coco_mask.area(rles[start : start + 255]) for start in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.int64)


def encode_uncompressed(mask: np.ndarray) -> dict:
    """(H, W) bool array -> uncompressed RLE ``{"size": [H, W], "counts": [int, ...]}``: column by column, the
    first count is of zeros (it is 0 when the first pixel is set)."""
    return {"size": [int(n) for n in mask.shape], "counts": _runs(np.asarray(mask, dtype=bool)).tolist()}


def encode_labels(labels: np.ndarray) -> dict[int, dict]:
    """Return the compressed RLE of each value in an (H, W) array of whole numbers, by value, all in one pass."""
    height, width = labels.shape
    columns = labels.T.ravel()
    begins = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    ends = np.append(begins[1:], columns.size)
    order = np.argsort(columns[begins], kind="stable")
    values, first = np.unique(columns[begins[order]], return_index=True)
    runs = []
    for rows in np.split(order, first[1:]):
        bounds = np.stack([begins[rows], ends[rows]], axis=1).ravel()
        lengths = np.diff(bounds, prepend=0, append=columns.size)
        lengths = lengths[: len(lengths) - int(lengths[-1] == 0)]
        runs.append({"size": [height, width], "counts": lengths.tolist()})
    rles = coco_mask.frPyObjects(runs, height, width)
    return {
        int(value): {"size": [height, width], "counts": rle["counts"].decode("ascii")}
        for value, rle in zip(values, rles, strict=True)
    }


def paint_labels(rles: Sequence[dict], values: Sequence[int], empty: np.ndarray) -> np.ndarray:
    """Set ``values`` in ``empty``, an (H, W) array, where the masks of N compressed RLEs are, later over earlier."""
    for rle, value in zip(rles, values, strict=True):
        empty[coco_mask.decode(rle).view(bool)] = value
    return empty


def _runs(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool array -> (R,) int64: lengths of its runs column by column, zeros first."""
    height, width = mask.shape
    row, column = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)  # NumPy has a fast path for one dimension
    begins = np.flatnonzero(mask[0, 1:] != mask[-1, :-1]) + 1  # columns whose first pixel is not as the last before it
    changes = np.sort(np.concatenate([column * height + row + 1, begins * height]))
    bounds = np.concatenate([[0], [0] * int(mask[0, 0]), changes, [mask.size]])
    return np.diff(bounds).astype(np.int64)


def encode_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """(H, W) bool array -> COCO polygons that decode to exactly this mask, one for each 4-connected part.

    A polygon joins the middles of the pixel sides that bound its part, in COCO's coordinates (pixel (0, 0) covers
    0..1). None where polygons cannot say it: the mask is empty or has a hole.
    """
    height, width = mask.shape
    padded = np.pad(np.asarray(mask, dtype=np.float32), 1)
    tracer = contourpy.contour_generator(np.arange(width + 2) - 0.5, np.arange(height + 2) - 0.5, padded)
    polygons = []
    for line in tracer.lines(0.51):  # a little above one half, so that pixels that touch at a corner stay apart
        points = np.round(2 * line[:-1]) / 2
        steps = np.diff(points, axis=0, append=points[:1])
        polygons.append(points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)].ravel().tolist())
    return polygons if polygons and np.array_equal(decode_mask(polygons, height, width), mask) else None


def covered_pixels(counts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Read compressed RLEs as pycocotools' decoder does.

    In COCO's encoding a run is a group of characters from 48 on, each with 5 bits, least first; bit 5 says that more
    follow, bit 4 of the last is the sign. From the fourth run on, what is written is the difference to the run two
    before. A run that is longer than it needs to be (its sign extended) is read as it says.

    Returns:
        (N,) int64: how many pixels each RLE covers, -1 for one that a decoder would misread; and (N,) bool: whether a
        run other than the first is empty, as the decoder allows and pycocotools' IoU does not, which stops there.
    """
    # Text that is not ASCII gets bytes above 127, which are no part of a run.
    texts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in counts]
    chunk = np.cumsum([len(text) for text in texts]) // _CHUNK
    cuts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(texts)]
    parts = [_covered(texts[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    covered, empty = (np.concatenate(column) for column in zip(*parts, strict=True))
    return covered, empty


def _covered(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`covered_pixels` of a chunk."""
    runs, owner, damaged = _read_counts(texts)
    passed = np.concatenate([[0], np.cumsum(runs)])[np.searchsorted(owner, np.arange(len(texts) + 1))]
    empty = np.zeros(len(texts), dtype=bool)
    empty[owner[1:][(runs[1:] == 0) & (owner[1:] == owner[:-1])]] = True
    return np.where(damaged, -1, np.diff(passed)), empty


def _read_counts(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the runs of compressed RLEs.

    Returns:
        ``runs`` (R,) int64, those of all texts in turn, ``owner`` (R,) int64, the number of the text that each belongs
        to, and ``damaged`` (N,) bool: texts that a decoder would misread.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # below 48 wraps to above 63
    damaged = lengths == 0
    if not len(codes):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, damaged
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    damaged[np.searchsorted(bounds, np.flatnonzero(codes > 63), side="right") - 1] = True
    closes = (codes & 32) == 0
    last = bounds[1:][lengths > 0] - 1
    damaged[np.flatnonzero(lengths)[~closes[last]]] = True
    closes[last] = True

    ends = np.flatnonzero(closes)
    starts = np.concatenate([[0], ends[:-1] + 1])
    size = ends - starts + 1
    runs_of = np.diff(np.searchsorted(ends, bounds))
    owner = np.repeat(np.arange(len(texts)), runs_of)
    damaged[owner[size > _LONGEST_RUN]] = True
    written = (codes[starts] & 31).astype(np.int64)
    for digit in range(1, min(int(size.max()), _LONGEST_RUN)):
        longer = np.flatnonzero(size > digit)
        written[longer] |= (codes[starts[longer] + digit] & 31).astype(np.int64) << 5 * digit
    written -= np.where(codes[ends] & 16, 1 << 5 * np.minimum(size, _LONGEST_RUN), 0)

    # Undo the differences: in a text, runs 1, 3, 5... and 2, 4, 6... are running sums; run 0 is alone.
    first = np.repeat(np.cumsum(runs_of) - runs_of, runs_of)
    place = np.arange(len(owner)) - first
    sums = written.copy()
    sums[::2], sums[1::2] = np.cumsum(written[::2]), np.cumsum(written[1::2])
    begin = np.where(place == 0, first, first + 2 - place % 2)
    runs = sums - sums[begin] + written[begin]
    damaged[owner[runs < 0]] = True
    return runs, owner, damaged


def segmentation_problem(
    segmentation: object, height: int, width: int, covered: int | None = None
) -> tuple[str, str] | None:
    """Why ``segmentation`` cannot be decoded on a (height, width) image, as (kind, what is wrong); None when it can.

    Everything is checked here before pycocotools' C code sees it: that code trusts its input. ``covered`` is what
    :func:`covered_pixels` says of a compressed RLE, where many are judged at once.
    """
    if isinstance(segmentation, list):
        return _polygon_problem(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, height, width, covered)
    return (
        "segmentation",
        f"its segmentation is {kind_of(segmentation)}, not a list of polygons or an RLE",
    )


def _polygon_problem(polygons: list, height: int, width: int) -> tuple[str, str] | None:
    if not polygons:
        return "empty mask", "its segmentation is an empty list"
    for number, polygon in enumerate(polygons):
        kinds = set(map(type, polygon)) if isinstance(polygon, list) else {bool}
        if bool in kinds or not all(issubclass(kind, (int, float)) for kind in kinds):
            return "segmentation", f"polygon {number} is not a flat list of numbers"
        if not all(map(is_number, polygon)):
            return "not a number", f"polygon {number} has a coordinate that is NaN or infinite"
        if len(polygon) < 6 or len(polygon) % 2:
            return "degenerate polygon", (
                f"polygon {number} has {len(polygon)} coordinates; it takes an even number, 6 or more"
            )
        if len(set(zip(polygon[::2], polygon[1::2], strict=True))) < 3:
            return "degenerate polygon", f"polygon {number} has fewer than 3 different points"
        if max(map(abs, polygon)) > 10 * (height + width):  # drawing it would take time and memory without end
            return "mask outside image", f"polygon {number} has a coordinate far outside the image"
    return None


def _rle_problem(rle: dict, height: int, width: int, covered: int | None) -> tuple[str, str] | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(is_integer(n) and n > 0 for n in size)):
        return "segmentation", "its RLE has no size [height, width] of whole numbers above 0"
    if [size[0], size[1]] != [height, width]:
        return "mask size", f"its RLE is {size[0]}x{size[1]} but the image is {height}x{width} (height x width)"
    if height * width > MOST_PIXELS:
        return "mask size", f"its RLE of {height}x{width} (height x width) is beyond what an image can have"
    if isinstance(counts, list):
        if counts and not (set(map(type, counts)) == {int} and min(counts) >= 0 and is_integer(max(counts))):
            return "segmentation", "its RLE counts are not all whole numbers of 0 or more"
        covered = sum(counts)
    elif not isinstance(counts, (str, bytes)):
        return "segmentation", "its RLE has no counts"
    elif covered is None:
        covered = int(covered_pixels([counts])[0][0])
    if covered < 0:
        return "segmentation", "its compressed RLE is damaged"
    if covered != height * width:
        return "mask size", f"its RLE covers {covered} pixels but the image has {height * width}"
    return None


def to_rles(
    segmentations: Sequence[object], sizes: Sequence[tuple[int, int]]
) -> tuple[list, dict[int, tuple[str, str]]]:
    """Return COCO segmentations as compressed RLEs, none with an empty run but the first, their counts text or bytes.

    ``sizes`` are (height, width) of each one's image. Those that cannot be decoded stay as they are and are in the
    second value, {number: :func:`segmentation_problem`}.
    """
    rles = list(segmentations)
    plain = [i for i, rle in enumerate(rles) if _is_compressed(rle, sizes[i])]
    sound = np.zeros(len(rles), dtype=bool)
    if plain:
        covered, empty = covered_pixels([rles[i]["counts"] for i in plain])
        sound[plain] = (covered == np.array([sizes[i][0] * sizes[i][1] for i in plain])) & ~empty
    problems = {}
    for i in np.flatnonzero(~sound).tolist():
        if problem := segmentation_problem(rles[i], *sizes[i]):
            problems[i] = problem
        else:
            rles[i] = encode_segmentation(rles[i], *sizes[i])
    return rles, problems


def _is_compressed(segmentation: object, size: tuple[int, int]) -> bool:
    return (
        isinstance(segmentation, dict)
        and isinstance(segmentation.get("counts"), (str, bytes))
        and isinstance(segmentation.get("size"), (list, tuple))
        and tuple(segmentation["size"]) == size
        and set(map(type, segmentation["size"])) == {int}
        and min(size) > 0
        and size[0] * size[1] <= MOST_PIXELS
    )


def to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Any COCO segmentation -> compressed RLE, as :func:`to_rles`; WorkbenchError where it cannot be decoded."""
    rles, problems = to_rles([segmentation], [(height, width)])
    if problems:
        raise WorkbenchError(f"A mask cannot be decoded: {problems[0][1]}.")
    return rles[0]


def encode_segmentation(segmentation: list | dict, height: int, width: int) -> dict:
    """A COCO segmentation in which :func:`segmentation_problem` finds nothing -> compressed RLE, as :func:`to_rles`."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        runs = _read_counts([counts.encode("ascii") if isinstance(counts, str) else counts])[0]
    else:
        runs = np.array(counts, dtype=np.int64)
    if not runs[1:].all():
        filled = np.flatnonzero(runs)  # at least one, as an image has pixels
        begins = np.flatnonzero(np.diff(filled & 1, prepend=-1))  # neighbours of an empty run are of one value
        runs = np.concatenate([[0] * int(filled[0] & 1), np.add.reduceat(runs[filled], begins)])
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.astype(np.int64).tolist()}, height, width)


def decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Any COCO segmentation -> (height, width) bool array, pixel for pixel what pycocotools gives."""
    return coco_mask.decode(to_rle(segmentation, height, width)).astype(bool)


def mask_cover(segmentation: list | dict, height: int, width: int, reduction: int) -> np.ndarray:
    """Return (H // reduction, W // reduction) uint8: how much of each cell a COCO segmentation covers, 255 all of it.

    The mask is drawn at full size and then averaged as :func:`~workbench.data.images.read_reduced` averages an image.
    """
    rle = to_rle(segmentation, height, width)
    cells = Image.new("L", (-(-width // reduction), -(-height // reduction)))
    x, y, across, down = (int(side) for side in coco_mask.toBbox(rle))
    if across and down:
        left, top = x // reduction, y // reduction
        right, bottom = -(-(x + across) // reduction), -(-(y + down) // reduction)
        columns = _decode_columns(rle, left * reduction, min(right * reduction, width))
        part = columns[:, top * reduction : bottom * reduction] * np.uint8(255)
        cells.paste(Image.fromarray(part).reduce(reduction).transpose(Image.Transpose.TRANSPOSE), (left, top))
    return np.asarray(whole_frame(cells, (height, width), reduction))


def _decode_columns(rle: dict, start: int, stop: int) -> np.ndarray:
    """Return columns ``start`` to ``stop`` of a compressed RLE, (stop - start, H) uint8; the others are not drawn."""
    height = rle["size"][0]
    counts = rle["counts"]
    runs, _, _ = _read_counts([counts.encode("ascii") if isinstance(counts, str) else counts])
    ends = np.concatenate([[0], np.cumsum(runs)]).clip(start * height, stop * height)
    return np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, np.diff(ends)).reshape(-1, height)
