"""Predicts what a run needs on a pod or cluster that is not here."""
