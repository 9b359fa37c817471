"""Studies run: a grid of ordinary runs, resumed cell by cell, then a table and a figure."""
