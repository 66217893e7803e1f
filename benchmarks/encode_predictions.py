"""From raw outputs to COCO results of one photo: masks enlarged in strips where they are positive, or all at once.

    python benchmarks/encode_predictions.py                  2048x1536 pixels, 60 queries, 100 rows
    python benchmarks/encode_predictions.py --size 4000 3000

Both run in processes of their own, in turn. "All at once" enlarges every mask as a whole before it encodes the first
one, as Mask2Former's published inference does, and lets pycocotools encode a column-wise copy. The masks must be equal
and the scores within 1e-6; exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.predict import _encode, to_coco_results
from workbench.models import postprocess

CATEGORIES = 3
SETTINGS = {"padded_size": (800, 1088), "image_size": (800, 1067), "top_k": 100}


def raw_outputs(queries: int) -> tuple[Tensor, Tensor]:
    """Return logits (Q, K+1) and mask logits (Q, h, w): a smooth blob for each query."""
    draw = torch.Generator().manual_seed(0)
    height, width = (side // 4 for side in SETTINGS["padded_size"])
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    centre, radius = (
        torch.rand(2, queries, 1, 1, generator=draw),
        0.02 + 0.2 * torch.rand(queries, 1, 1, generator=draw),
    )
    masks = 40 * (radius - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt())
    return torch.randn(queries, CATEGORIES + 1, generator=draw), masks


def all_at_once(logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> dict:
    """Return predictions whose masks are encoded together, after all of them were enlarged."""
    query, labels, rank, main = postprocess.select_rows(logits, {}, top_k=SETTINGS["top_k"])
    distinct, row = query.unique(return_inverse=True)
    enlarged = F.interpolate(mask_logits[distinct][None], SETTINGS["padded_size"], mode="bilinear")
    height, width = SETTINGS["image_size"]
    enlarged = F.interpolate(enlarged[..., :height, :width], size, mode="bilinear")[0]
    masks = enlarged > 0
    inside = masks.flatten(1).sum(1)
    quality = (enlarged.sigmoid().flatten(1) * masks.flatten(1)).sum(1) / (inside + 1e-6)
    masks = masks[row]
    first = np.unique(query.numpy(), return_index=True)[1]
    columns = np.asfortranarray(masks[torch.from_numpy(first)].numpy().transpose(1, 2, 0), dtype=np.uint8)
    rles = [{"size": list(size), "counts": rle["counts"].decode("ascii")} for rle in coco_mask.encode(columns)]
    fields = {"scores": rank * quality[row], "main_scores": main, "mask_scores": quality[row], "labels": labels}
    return {**fields, "query": query, "masks": [rles[i] for i in row.tolist()], "subcategories": {}}


def measure(way: str, size: tuple[int, int], queries: int) -> dict:
    """Return seconds, MB, the scores and a digest of the other results of one way, in this process."""
    logits, masks = raw_outputs(queries)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with torch.inference_mode():
        if way == "strips":
            sizes = {**SETTINGS, "output_size": size}
            predictions = postprocess.instance_inference(logits, masks, {}, **sizes, encode_masks=_encode)
        else:
            predictions = all_at_once(logits, masks, size)
        rows = to_coco_results(predictions, 1, Vocabulary(tuple(range(CATEGORIES)), ("a", "b", "c")))
    seconds = time.process_time() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    scores = [[row.pop(key) for key in ("score", "mask_score")] for row in rows]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"seconds": seconds, "megabytes": megabytes, "digest": digest, "scores": scores}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(2048, 1536), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("strips", "all at once"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, (args.size[1], args.size[0]), args.queries)))
        return 0
    measured: dict[str, list[dict]] = {"all at once": [], "strips": []}
    for _ in range(args.repeats):
        for way, runs in measured.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    every = [run for runs in measured.values() for run in runs]
    scores = np.array([run["scores"] for run in every])
    equal = len({run["digest"] for run in every}) == 1 and np.ptp(scores, axis=0).max() < 1e-6
    rows, threads = scores.shape[1], torch.get_num_threads()
    print(f"{args.size[0]}x{args.size[1]}, {args.queries} queries, {rows} rows, {threads} threads")
    medians = {
        way: [statistics.median(run[key] for run in runs) for key in ("seconds", "megabytes")]
        for way, runs in measured.items()
    }
    for way, (seconds, megabytes) in medians.items():
        print(f"{way:12} {seconds:6.2f} s of CPU {megabytes:7.0f} MB")
    ratios = [whole / strips for whole, strips in zip(*medians.values(), strict=True)]
    print(f"ratio        {ratios[0]:6.1f}x {ratios[1]:15.1f}x; results {'equal' if equal else 'DIFFER'}")
    return int(not equal)


if __name__ == "__main__":
    raise SystemExit(main())
