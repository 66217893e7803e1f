"""Copies are found by content, near duplicates by their difference hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.data.duplicates import difference_hashes, identical_files, near_pairs
from workbench.errors import WorkbenchError


def _photo(seed: int) -> Image.Image:
    """A smooth random picture of 64x96 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


def test_identical_files(tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"three")):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("a", "b", "none", "c", "d")]
    assert identical_files(paths) == [[0, 3]]


def test_near_duplicates(tmp_path: Path) -> None:
    """A smaller, brighter, compressed copy is near; other pictures are not, and flat ones never."""
    _photo(0).save(tmp_path / "0.png")
    _photo(0).resize((48, 32)).point(lambda v: min(255, v + 12)).save(tmp_path / "1.jpg", quality=60)
    _photo(1).save(tmp_path / "2.png")
    for name in ("3.png", "4.png"):
        Image.new("RGB", (40, 40), "white").save(tmp_path / name)
    hashes = difference_hashes([str(path) for path in sorted(tmp_path.iterdir())])
    assert hashes.shape == (5, 256)
    pairs = {tuple(sorted(pair)) for pair in near_pairs(hashes, hashes) if pair[0] != pair[1]}
    assert pairs == {(0, 1)}


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(WorkbenchError, match="a.jpg cannot be read"):
        difference_hashes([str(tmp_path / "a.jpg")])
