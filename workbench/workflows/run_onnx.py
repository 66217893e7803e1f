"""Run an exported model: python run_onnx.py model.onnx image.jpg (needs onnxruntime, numpy and pillow)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
notes = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
limits = notes["size"] or sorted(notes["edges"], reverse=picture.width > picture.height) or picture.size
resized = ImageOps.contain(picture, limits, Image.Resampling.BILINEAR)
columns, rows = notes["size"] or [side + -side % notes["multiple"] for side in resized.size]
images = np.tile(np.float32(notes["mean"]).reshape(3, 1, 1), (notes["batch"], 1, rows, columns))  # pads with the mean
images[..., : resized.height, : resized.width] = np.asarray(resized).transpose(2, 0, 1)
fields = zip(session.get_outputs(), session.run(None, {"images": images}), strict=True)
outputs = {field.name: values[0] for field, values in fields}
for row in np.flatnonzero(outputs["scores"] >= 0.5):
    mask = Image.fromarray(outputs["masks"][row, : resized.height, : resized.width])
    mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    classes = {name: outputs[f"subcategory_{name}"][row, :-1].argmax() for name in notes["subcategories"]}
    words = [notes["categories"][outputs["labels"][row]], *(notes["subcategories"][n][c] for n, c in classes.items())]
    print(*words, f"{outputs['scores'][row]:.3f} box", mask.getbbox())
