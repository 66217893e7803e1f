"""Run an exported model: python run_onnx.py model.onnx image.jpg (needs onnxruntime, numpy and pillow)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    notes = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    limits = notes["size"] or sorted(notes["edges"], reverse=picture.width > picture.height) or picture.size
    resized = ImageOps.contain(picture, limits, Image.Resampling.BILINEAR)
    columns, rows = notes["size"] or [side + -side % notes["multiple"] for side in resized.size]
    mean = np.float32(notes["mean"])[:, None, None]  # which pads
    images = np.tile(mean, (notes["batch"], 1, rows, columns))
    images[..., : resized.height, : resized.width] = np.asarray(resized).transpose(2, 0, 1)
    fields = zip(session.get_outputs(), session.run(None, {"images": images}), strict=True)
    outputs = {field.name: values[0] for field, values in fields}
    for row in np.flatnonzero(outputs["scores"] >= 0.5):
        mask = Image.fromarray(outputs["masks"][row, : resized.height, : resized.width])
        mask = mask.resize(picture.size, Image.Resampling.NEAREST)
        values = {name: outputs[f"subcategory_{name}"][row, :-1].argmax() for name in notes["subcategories"]}
        words = [classes[values[name]] for name, classes in notes["subcategories"].items()]
        print(notes["categories"][outputs["labels"][row]], *words, f"{outputs['scores'][row]:.3f} box", mask.getbbox())
