"""The report of an evaluation: every number once, for console, JSON and page."""
