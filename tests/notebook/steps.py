"""Configs of the three models on the tiny dataset."""

from __future__ import annotations

from tests.workflows.test_baselines import COMMON, MODELS


def overrides(model: str) -> list[str]:
    """Return the config keys, over those of ``tiny_config``, of MaskFormer, GeneralizedRCNN or SOLOv2."""
    if model == "MaskFormer":
        return []
    keys = {"MODEL.META_ARCHITECTURE": model, **COMMON, **MODELS[model]}
    return [part for pair in keys.items() for part in pair]
