"""The official parameter names follow from the order in which our networks call their layers."""
