"""The embedded default model, its synthetic scenes and tasks."""
