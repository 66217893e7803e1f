"""What a prediction costs: matching queries to objects, and the losses of the matched pairs."""
