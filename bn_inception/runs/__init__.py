"""What a run keeps: its folder, checkpoints and records."""
