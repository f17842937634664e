"""How programs run: their flags, configs and errors."""
