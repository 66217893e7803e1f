"""detectron2's Visualizer with subcategories in its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer


class SubcategoryVisualizer(Visualizer):
    """detectron2's Visualizer, whose labels end in the names of the known subcategory classes.

    The names are those of ``subcategory_classes`` in the metadata that it is given. An unlabelled or no-object class
    adds nothing.
    """

    _captions: Sequence[str] = ()

    def draw_instance_predictions(self, predictions: Instances, *args: Any, **options: Any) -> VisImage:
        """Draw predictions with ``pred_<subcategory>``; the arguments are those of the base class."""
        names = [name for name in self._classes() if predictions.has(f"pred_{name}")]
        rows = zip(*(predictions.get(f"pred_{name}").tolist() for name in names), strict=True)
        self._captions = [self._caption(dict(zip(names, row, strict=True))) for row in rows]
        try:
            return super().draw_instance_predictions(predictions, *args, **options)
        finally:
            self._captions = ()

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw a dataset dict, whose annotations hold ``subcategories`` {name: class number}."""
        self._captions = [self._caption(annotation.get("subcategories", {})) for annotation in dic["annotations"]]
        try:
            return super().draw_dataset_dict(dic)
        finally:
            self._captions = ()

    def overlay_instances(self, *, labels: Sequence[str] | None = None, **options: Any) -> VisImage:
        """Draw instances as the base class does, their labels followed by the captions."""
        if labels is not None and self._captions:
            labels = [" ".join(filter(None, pair)) for pair in zip(labels, self._captions, strict=True)]
        return super().overlay_instances(labels=labels, **options)

    def _classes(self) -> dict[str, Sequence[str]]:
        return self.metadata.get("subcategory_classes") or {}

    def _caption(self, numbers: dict[str, int]) -> str:
        classes = self._classes()
        return " ".join(classes[name][k] for name, k in numbers.items() if k >= 0)
