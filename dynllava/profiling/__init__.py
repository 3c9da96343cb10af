"""FLOPs, KV memory, latency, devices: the cost ledger."""
