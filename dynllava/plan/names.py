"""The two methods that other rooms must be able to tell from the rest."""

FULL = "full"
"""Nothing leaves: what other methods are compared with, and what dense models are recorded as."""

LEARNED = "dynamic_llava"
"""The trained predictors of a checkpoint decide."""
