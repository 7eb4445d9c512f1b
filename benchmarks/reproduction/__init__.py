"""The small reproduction: what is measured, what was published, and what became of it."""
