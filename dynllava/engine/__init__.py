"""The layer loop, its tokens and its cache: what runs a method's plan, and knows none by name."""
