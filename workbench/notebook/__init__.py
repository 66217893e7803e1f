"""Everything a notebook calls: ``from workbench import notebook``.

Names and modules are imported when they are first used, so that a notebook that needs no model starts quickly.
"""

from importlib import import_module
from typing import Any

_HOMES = {  # module of the package: the names of it that notebooks use
    "environment.device": "choose_device verify_device",
    "environment.experiments": "thread_trial visible_gpus",
    "environment.facts": "inspect_machine",
    "environment.problems": "format_report",
    "evaluation.analysis": "calibration_table category_table confusion_matrices per_image_scores "
    "suspected_label_errors tide_table",
    "evaluation.coco": "coco_curves",
    "evaluation.evaluate": "metrics_frames",
    "evaluation.filters": "FilterSettings",
    "evaluation.queries": "detection_limits objects_per_image right_and_wrong",
    "evaluation.summary": "summarise",
    "notebook.baselines": "baseline_runs baseline_summary error_table first_seeds model_differences model_table "
    "same_images seed_table",
    "notebook.browser": "PredictionBrowser",
    "notebook.display": "Page live_curves start",
    "notebook.evaluation": "compare_saturation open_evaluation open_evaluations query_comparison query_summary "
    "saturation_examples suggest training_beside_validation",
    "notebook.hosts": "train",
    "notebook.inside": "by_model open_steps step_page trace",
    "notebook.inside_matching": "open_matching",
    "notebook.gallery": "beside counts_table dropped_table open_gallery",
    "notebook.preview": "config_table contents data_cautions learning_rates mapped_samples training_config "
    "training_data",
    "notebook.timing": "surgery_time time_needed",
    "notebook.typed_parameters": "parameters",
    "ops.selftest": "build_ops",
    "runs.table": "describe_run",
    "training.schedule": "lr_arithmetic",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(import_module(f"workbench.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
