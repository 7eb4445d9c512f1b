"""`--mode=train`."""
