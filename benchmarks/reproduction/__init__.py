"""The small reproduction: cells, published claims, their study, and its tables."""
