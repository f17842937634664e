"""Import and export of weights, and starting a run from those of another."""
