"""What this machine can run: facts, problems and their remedies, device choice, small experiments."""
