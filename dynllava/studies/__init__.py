"""Studies on the embedded model that need trainings of their own."""
