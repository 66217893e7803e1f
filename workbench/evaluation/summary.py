"""The scores of one evaluation in words."""

from __future__ import annotations

from collections.abc import Mapping


def summarise(metrics: Mapping) -> str:
    """A few sentences on what metrics.json says: the overall score, its extremes and its likeliest cause."""
    if not metrics["images"]:
        return "There is no image to evaluate on."
    scores = metrics.get("segm") or metrics["bbox"]
    if not metrics["instances"] or scores["AP"] is None:
        return f"The {metrics['images']} images hold no object, so there is nothing to measure."
    parts = [
        f"On {metrics['images']} images with {metrics['instances']} objects the mask AP is {scores['AP']:.1f} "
        f"and AP50 {scores['AP50']:.1f}"
        + (f"; joint with all subcategories it is {joint:.1f}." if (joint := _joint(metrics)) is not None else ".")
    ]
    if scores["AP"] == 0:
        parts.append("Nothing was found at all: the training was too short, or the data does not look as in training.")
        return " ".join(parts)
    known = {name: ap for name, ap in metrics["per_category"].items() if ap is not None}
    if len(known) > 1:
        best, worst = max(known, key=known.get), min(known, key=known.get)
        parts.append(f"Best is {best} ({known[best]:.1f}), worst {worst} ({known[worst]:.1f}).")
    if scores["AP50"] > 2 * scores["AP"]:
        parts.append("AP50 is more than twice the AP: objects are found, their outlines are coarse.")
    for name, values in (metrics.get("subcategories") or {}).items():
        if values["accuracy"] is not None:
            parts.append(
                f"Of the objects found, {values['accuracy']:.0f} % have the right {name}"
                + (f" ({values['unmatched']} were not found)." if values["unmatched"] else ".")
            )
    return " ".join(parts)


def _joint(metrics: Mapping) -> float | None:
    return (metrics.get("joint") or {}).get("AP")
