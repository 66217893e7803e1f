"""Operators with back ends of their own: multi-scale deformable attention."""

from workbench.ops.deform_attn import deform_attn
from workbench.ops.reference import deform_attn_reference

__all__ = ["deform_attn", "deform_attn_reference"]
