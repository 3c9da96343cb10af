"""lmms-eval plugin of dynllava."""
