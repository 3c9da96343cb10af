"""``dynllava serve-check``: is what an engine serves what research code computes, and how fast."""
