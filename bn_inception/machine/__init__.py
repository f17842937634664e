"""What a program gets from its host: paths, streams, signals, devices, processes."""
