"""Backbones, pixel decoder, transformer decoder and the models made of them."""

from workbench.models.build import build_model

__all__ = ["build_model"]
