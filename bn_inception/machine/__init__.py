"""The machine a program meets: paths, streams, signals, devices, other processes."""
