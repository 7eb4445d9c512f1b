"""Weights and networks of other projects, brought here and taken back."""
