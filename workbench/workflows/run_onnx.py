"""Run an exported model: python run_onnx.py model.onnx image.jpg (needs onnxruntime, numpy and pillow)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model, image):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    notes = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    picture = Image.open(image).convert("RGB")
    width, height = picture.size
    limits = [notes["longest"] / max(picture.size)] * (notes["longest"] > 0)
    scale = min([notes["shortest"] / min(picture.size) if notes["shortest"] else 1.0, *limits])
    batch, _, *fixed = session.get_inputs()[0].shape  # names where sizes are dynamic
    if all(isinstance(side, int) for side in fixed):
        scale = min(fixed[0] / height, fixed[1] / width)
    size = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    padded = (
        fixed if isinstance(fixed[0], int) else [-(-side // notes["multiple"]) * notes["multiple"] for side in size]
    )
    images = np.empty((batch if isinstance(batch, int) else 1, 3, *padded), np.float32)
    images[:] = np.reshape(notes["mean"], (3, 1, 1))  # padding of the mean colour is what the model was trained with
    resized = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    images[:, :, : size[0], : size[1]] = np.asarray(resized, np.float32).transpose(2, 0, 1)
    outputs = {o.name: v[0] for o, v in zip(session.get_outputs(), session.run(None, {"images": images}), strict=True)}
    for row in np.flatnonzero(outputs["scores"] >= 0.5):
        mask = Image.fromarray(outputs["masks"][row, : size[0], : size[1]] * 255).resize((width, height))
        attributes = {n: c[outputs[f"subcategory_{n}"][row, :-1].argmax()] for n, c in notes["subcategories"].items()}
        name = notes["categories"][outputs["labels"][row]]
        print(f"{name} {outputs['scores'][row]:.3f} {attributes} box {mask.getbbox()} in {width}x{height}")


if __name__ == "__main__":
    main(*sys.argv[1:])
