"""A run's directory, its checkpoints, the table of runs, its HTML report."""
