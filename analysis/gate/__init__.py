"""The regression gate: accuracy and times of a candidate against a stored base, and histories."""
