"""Experiments as data: see paper.py for the tables, compose.py for the rule."""
