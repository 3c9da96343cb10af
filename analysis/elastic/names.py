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
FULL_ELASTIC = "elastic weights, nothing dropped"
FULL_DENSE = "dense weights, nothing dropped"
"""Roles: what a scored setting stands for."""
