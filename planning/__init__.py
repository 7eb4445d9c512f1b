"""Plans for hardware that is not here: what fits, and what bounds it; `--mode=plan`."""
