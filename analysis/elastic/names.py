"""What the records of ``dynllava study elastic`` call things."""

VISION_RATES = (0.1, 0.2, 0.35, 0.5, 0.8)
OUTPUT_RATES = (0.3, 0.5, 0.7)

SUITE = "elastic study"
SHORT, CAPTIONS = "embedded_short_answers", "embedded_captions"

OWN = "trained for the rate"
ELASTIC = "elastic"
OFF_RATE = "trained for 0.2"
PER_IMAGE = "elastic, per image"
OFFICIAL = "trained for the rate, logit rule"
SAME_MEAN = "elastic, the mean of per image"
FROZEN = "elastic, predictors only"
LONGER = "trained for the rate, twice the steps"
FULL_ELASTIC = "elastic weights, nothing dropped"
FULL_TUNED = "weights trained for 0.2, nothing dropped"
FULL_DENSE = "dense weights, nothing dropped"
"""Roles: what a scored setting stands for."""

VARIANT = "elastic-mixed"
"""The elastic training that the tables are about; other ones have a table each."""
OF_A_VARIANT = (ELASTIC, PER_IMAGE, SAME_MEAN, FULL_ELASTIC)
"""Roles that each elastic training has its own records of."""
