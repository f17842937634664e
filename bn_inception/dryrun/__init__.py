"""A pod or a cluster that is not here: what a run would need of it."""
