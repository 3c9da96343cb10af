"""Pareto fronts: which points are on one, with which probability, drawn and written."""
