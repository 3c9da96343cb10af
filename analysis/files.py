"""Writing output files whole or not at all."""

from dynllava.files import write_bytes, write_text

__all__ = ["write_bytes", "write_text"]
