"""Faster versions of plain functions, with the same values."""
