"""The claims of the paper's Sections 1 to 3 as small experiments."""
