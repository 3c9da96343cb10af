"""Ready-made selections of measurements, one command each."""
