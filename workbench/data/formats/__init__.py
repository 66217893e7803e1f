"""Readers of other tools' annotation files: one module a format."""
