"""A row of a published table: the commands that repeat it, and what their result says about it."""
