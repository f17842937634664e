"""What programs share: flags, configs, presets, errors, Markdown tables."""
