"""Analysis of run records and published numbers."""
