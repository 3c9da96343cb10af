"""Numbers that papers printed, typed and with their units."""
