"""Published weights, in and out, and initial weights of a run."""
