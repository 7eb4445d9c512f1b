"""Metrics of generated images: their mathematics, on features in NumPy."""
