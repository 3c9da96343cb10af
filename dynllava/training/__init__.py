"""Training of predictors and language model."""
