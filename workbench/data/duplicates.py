"""Images that are in a dataset twice: the same file, or nearly the same picture."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from workbench.data.image_files import ERRORS, ImageRules, open_image
from workbench.errors import WorkbenchError

_SIDE = 16
_ROWS = 1024  # pictures compared at once with all others: 4 kB each for a million others


def identical_files(paths: Sequence[str]) -> list[list[int]]:
    """Return the groups of two or more paths whose files have the same content, as positions in ``paths``.

    Only files of the same size are read. A file that is not there is in no group.
    """
    sizes = defaultdict(list)
    for i, path in enumerate(paths):
        if os.path.isfile(path):
            sizes[os.path.getsize(path)].append(i)
    contents = defaultdict(list)
    for size, members in sizes.items():
        for i in members if len(members) > 1 else ():
            with open(paths[i], "rb") as file:
                contents[size, hashlib.sha256(file.read()).digest()].append(i)
    return [members for members in contents.values() if len(members) > 1]


def difference_hashes(paths: Sequence[str]) -> np.ndarray:
    """(N, 256) bool: for each image, where its 17x16 grey thumbnail grows lighter to the right (dHash, Krawetz 2013).

    Large JPEGs are decoded at reduced size. WorkbenchError for a file that cannot be read.
    """
    hashes = np.zeros((len(paths), _SIDE * _SIDE), dtype=bool)
    progress = tqdm(paths, desc="Looking for near duplicates", disable=None, leave=False)
    for row, path in zip(hashes, progress, strict=True):
        try:
            with open_image(path, ImageRules()) as image:
                image.draft("L", (8 * _SIDE, 8 * _SIDE))
                small = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
        except ERRORS as error:
            raise WorkbenchError(f"The image {path} cannot be read: {error}.") from None
        row[:] = (np.diff(small, axis=1) > 0).ravel()
    return hashes


def near_pairs(first: np.ndarray, second: np.ndarray, most_bits: int = 12) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of rows of (N, 256) and (M, 256) bool hashes that differ in at most ``most_bits``.

    Hashes with fewer than ``2 * most_bits`` bits set are of pictures without structure, and pair with nothing.
    """
    signs = np.where(second, 1.0, -1.0).astype(np.float32)
    plain = second.sum(axis=1) < 2 * most_bits
    pairs = []
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        apart = (rows.shape[1] - np.where(rows, 1.0, -1.0).astype(np.float32) @ signs.T) / 2
        apart[rows.sum(axis=1) < 2 * most_bits] = np.inf
        apart[:, plain] = np.inf
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(apart <= most_bits)]
    return pairs
