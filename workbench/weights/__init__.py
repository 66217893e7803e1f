"""Weights of other programs: fetched, read without running their code, and renamed."""
