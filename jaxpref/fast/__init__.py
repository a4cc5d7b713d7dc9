"""The same values as the plain functions, computed faster."""
