"""`--mode=control`: samples under conditions."""
