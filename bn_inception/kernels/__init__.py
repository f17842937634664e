"""What is computed otherwise than the paper writes it, for speed and nothing else."""
