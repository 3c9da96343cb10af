"""Points of accuracy and cost, from run records and from published tables."""
