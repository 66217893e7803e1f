"""The generated shapes dataset."""
