"""Measurements: ``make bench``. How to read them is in README.md beside this file."""
