"""Run an exported model: python run_onnx.py model.onnx image.jpg (needs onnxruntime, numpy and pillow)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model, image):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    notes = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    picture = Image.open(image).convert("RGB")
    batch, _, rows, columns = session.get_inputs()[0].shape  # names where sizes are dynamic
    if isinstance(rows, int):
        resized = ImageOps.contain(picture, (columns, rows), Image.Resampling.BILINEAR)
    else:
        scale = notes["shortest"] and min(notes["shortest"] / min(picture.size), notes["longest"] / max(picture.size))
        resized = ImageOps.scale(picture, scale or 1, Image.Resampling.BILINEAR)
        batch, columns, rows = 1, *(side + -side % notes["multiple"] for side in resized.size)
    width, height = resized.size
    images = np.tile(np.float32(notes["mean"]).reshape(3, 1, 1), (batch, 1, rows, columns))  # pads with the mean
    images[..., :height, :width] = np.asarray(resized).transpose(2, 0, 1)
    outputs = {o.name: v[0] for o, v in zip(session.get_outputs(), session.run(None, {"images": images}), strict=True)}
    for row in np.flatnonzero(outputs["scores"] >= 0.5):
        mask = Image.fromarray(outputs["masks"][row, :height, :width] * 255).resize(picture.size)
        words = [c[outputs[f"subcategory_{name}"][row, :-1].argmax()] for name, c in notes["subcategories"].items()]
        print(notes["categories"][outputs["labels"][row]], *words, f"{outputs['scores'][row]:.3f} box", mask.getbbox())


if __name__ == "__main__":
    main(*sys.argv[1:])
