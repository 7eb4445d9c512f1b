"""`--mode=eval` and `--mode=stats`."""
