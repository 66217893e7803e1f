"""Which image files are opened, how large, and how values of more than eight bits become eight."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from workbench.data.image_files import ImageRules, describe_depth
from workbench.data.images import file_problem, read_image
from workbench.errors import WorkbenchError


def _saved(path: Path, values: np.ndarray, **options: object) -> str:
    Image.fromarray(values).save(path, **options)
    return str(path)


def _ramp(dtype: type, low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 256).astype(dtype).reshape(16, 16)


def test_postscript_under_another_name_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(WorkbenchError, match=r"a\.png cannot be read: it is damaged, or of another format than BMP"):
        read_image(str(path))
    assert file_problem(str(path), (8, 8), decode=True)[0] == "unreadable image"
    assert not started


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "ICO", "JPEG2000", "PPM", "TGA"])
def test_other_formats_are_one_sentence_whatever_their_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16)).save(path, kind)
    with pytest.raises(WorkbenchError, match=r"a\.jpg.*another format than"):
        read_image(str(path))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "MPO"])
def test_the_formats_are_told_by_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.dat"
    Image.new("RGB", (16, 12), (200, 30, 30)).save(path, kind, **({"quality": 95} if kind != "TIFF" else {}))
    assert read_image(str(path)).shape == (12, 16, 3)


def test_the_size_is_judged_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # raised below, for the whole process

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "huge.png"  # 400 megapixels, of which not one is there
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(WorkbenchError, match=r"huge\.png.*more pixels than INPUT\.MAX_PIXELS 134,217,728\."):
        read_image(str(path))
    kind, _, detail = file_problem(str(path), (20_000, 20_000), decode=False, rules=ImageRules(399_999_999))
    assert kind == "unreadable image" and "INPUT.MAX_PIXELS 399,999,999" in detail
    assert "truncated" in file_problem(str(path), (20_000, 20_000), decode=False, rules=ImageRules(400_000_000))[2]


def test_deep_images_are_scaled_from_the_depth_that_the_file_declares(tmp_path: Path) -> None:
    png = read_image(_saved(tmp_path / "a.png", _ramp(np.uint16, 0, 65535)))
    assert png[..., 0].ravel().tolist() == list(range(256))
    dark = read_image(_saved(tmp_path / "dark.png", _ramp(np.uint16, 0, 255)))
    assert dark.max() == 1  # and not as bright as an image of eight bits
    decimal = read_image(_saved(tmp_path / "a.tiff", _ramp(np.float32, 0, 1)))
    assert decimal[..., 1].ravel().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (12, np.arange(0, 4096, 16) + 15, list(range(256))),  # as a camera counts: 4095 is white
        (12, np.arange(0, 1024, 4) + 3, [i // 4 for i in range(256)]),  # a dark image is no brighter for being dark
        (12, np.arange(0, 65536, 256), list(range(256))),  # scaled up by a shift, as the PNG specification asks
        (12, np.array([(v << 4) | (v >> 8) for v in range(0, 4096, 16)]), list(range(256))),  # and by replication
        (12, np.arange(256) * 257, list(range(256))),  # more than 12 bits: the declaration is wrong
        (200, np.arange(256) * 257, list(range(256))),
    ],
)
def test_a_png_declares_its_significant_bits(tmp_path: Path, bits: int, values: np.ndarray, expected: list) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(values.astype(np.uint16).reshape(16, 16)).save(path)
    content = path.read_bytes()
    chunk = b"sBIT" + bytes([bits])
    path.write_bytes(content[:33] + b"\0\0\0\1" + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:])
    got = read_image(str(path))[..., 0].ravel().astype(int)
    assert np.abs(got - expected).max() <= 1
    assert describe_depth([str(path)], ImageRules())[0].startswith("1 deep image is scaled from 0..")


def test_a_range_is_the_same_for_every_deep_image(tmp_path: Path) -> None:
    rules = ImageRules(depth_range=(-1000, 3095))
    for name, dtype in (("a.tiff", np.int32), ("b.tiff", np.float32)):
        values = read_image(_saved(tmp_path / name, _ramp(dtype, -1000, 3095)), rules)
        assert values[..., 2].ravel().tolist() == list(range(256))
    cut = read_image(_saved(tmp_path / "c.png", np.array([[0, 3095, 65535]], np.uint16)), rules)
    assert cut[..., 0].tolist() == [[62, 255, 255]]
    eight = read_image(_saved(tmp_path / "d.png", np.full((2, 2), 77, np.uint8)), rules)
    assert (eight == 77).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (_ramp(np.float32, -3, 300), "its values are -3 to 300, not 0 to 1: set INPUT.DEPTH_RANGE"),
        (_ramp(np.int32, -1000, 3000), "name those that are black and white with INPUT.DEPTH_RANGE"),
    ],
)
def test_values_without_a_declared_range_are_refused_by_all(tmp_path: Path, values: np.ndarray, said: str) -> None:
    path = _saved(tmp_path / "a.tiff", values)
    with pytest.raises(WorkbenchError) as caught:
        read_image(path)
    assert said in str(caught.value)
    assert said in file_problem(path, (16, 16), decode=True)[2]


def test_what_was_used_and_found_is_said(tmp_path: Path) -> None:
    paths = [
        _saved(tmp_path / "a.png", _ramp(np.uint16, 3, 4095)),
        _saved(tmp_path / "b.png", _ramp(np.uint16, 7, 900)),
        _saved(tmp_path / "c.tiff", _ramp(np.float32, 0, 1)),
        _saved(tmp_path / "d.png", np.zeros((4, 4, 3), np.uint8)),
        str(tmp_path / "missing.png"),
    ]
    whole, decimal, several = describe_depth(paths, ImageRules())
    assert whole.startswith("2 deep images are scaled from 0..65535 (as the files declare), with values of 3..4095")
    assert "set INPUT.DEPTH_RANGE [3, 4095]" in whole
    assert decimal == "1 deep image is scaled from 0..1 (as the files declare), with values of 0..1"
    assert "different bit depths" in several
    (chosen,) = describe_depth(paths[:2], ImageRules(depth_range=(0, 1000)))
    assert chosen.endswith("(INPUT.DEPTH_RANGE), with values of 3..4095, and what lies outside is cut off")
