"""Formats are told apart by what a file holds."""

from __future__ import annotations

import pytest

from workbench.data.formats.detect import detect_format

REGIONS = {"filename": "a.jpg", "size": 3, "regions": [], "file_attributes": {}}
VOC = "<annotation><folder>x</folder><filename>a.jpg</filename><object><name>apple</name></object></annotation>"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"images": [], "annotations": [], "categories": []}, "COCO"),
        ([{"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [0, 0, 1, 1]}], "COCO results"),
        ({"version": "5.4", "flags": {}, "shapes": [], "imagePath": "a.jpg", "imageData": None}, "LabelMe"),
        ({"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}}, "VIA"),
        ({"a.jpg3": REGIONS, "b.jpg4": REGIONS}, "VIA"),
        ({"a.jpg3": {**REGIONS, "regions": {"0": {}}}}, "VIA"),
        ({"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}, "VIA"),
        ("#filename,file_size,region_count,region_shape_attributes,region_attributes\na.jpg,3,0,{},{}", "VIA"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "completions": []}], "Label Studio"),
        ([{"image": "a.jpg", "annotation_id": 4, "annotator": 1, "lead_time": 2.5, "label": []}], "Label Studio"),
        ({"description": "", "tags": [], "size": {"height": 4, "width": 5}, "objects": []}, "Supervisely"),
        ({"classes": [{"title": "apple", "shape": "polygon", "color": "#fff"}], "tags": []}, "Supervisely"),
        ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<image id="0"/>', "CVAT XML"),
        ("\ufeff<!-- a comment -->\n<annotations><track id='0'>", "CVAT XML"),
        (VOC, "Pascal VOC"),
        ('<?xml version="1.0"?>\n' + VOC, "Pascal VOC"),
        ("0 0.5 0.5 0.1 0.2\n1 0.1 0.1 0.2 0.2\n", "YOLO"),
        ("3 0.1 0.1 0.2 0.1 0.2 2e-1 0.1 0.2", "YOLO"),
        ("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['apple']\n", "YOLO"),
        ("path: data\nnames:\n  0: apple\n", "YOLO"),
        ({}, None),
        ([], None),
        ([1, 2], None),
        ({"images": {}}, None),
        ({"names": ["apple"], "version": 1}, None),
        ("", None),
        ("a note about apples", None),
        ("<html><body>annotations</body></html>", None),
        ("names: of people\n", None),
        ("12 apples and 3 pears", None),
        (None, None),
        (3.5, None),
    ],
)
def test_formats_by_content(content: object, name: str | None) -> None:
    assert detect_format(content) == name
