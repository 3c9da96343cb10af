"""Measured times and memory: protocol, commands, targets, the device campaign."""
