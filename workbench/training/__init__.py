"""The training loop and what it needs: optimiser, schedule, moving average, checkpoints, run directory."""
