"""Counted costs: FLOPs, KV memory and what a device would need for them, without weights."""
