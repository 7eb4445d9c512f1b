"""What every mode stands on."""
