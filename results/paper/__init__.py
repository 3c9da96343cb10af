"""Numbers published in papers, as CSV (see README.md)."""
