"""The ground of every mode: devices, the experiment, a run's folder, files, figures, errors."""
