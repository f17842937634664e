"""Experiments as data: paper.py has the tables, compose.py combines them."""
