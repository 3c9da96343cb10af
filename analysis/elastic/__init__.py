"""One checkpoint for every keep rate against one trained for each: verdicts and tables."""
