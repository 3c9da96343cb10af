"""Compression methods: one file each, and the registry."""
