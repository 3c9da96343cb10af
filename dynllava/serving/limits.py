"""What one request may hold."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes
    ----------
    images : int
        Pictures of one request.
    image_bytes : int
        Of one encoded picture.
    pixels : int
        Of one picture.
    requests : int
        At a time, waiting ones included; more are turned away (429).
    seconds : float
        Until the engine's last word to one request.
    """

    images: int = 4
    image_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    requests: int = 256
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("images", "image_bytes", "pixels", "requests", "seconds"):
            if not getattr(self, name) > 0:
                option = name.replace("_bytes", "-mb").replace("_", "-")
                raise UserError(
                    f"--max-{option} {getattr(self, name)}: accepted is a number above 0"
                )

    @property
    def body(self) -> int:
        """Most bytes of a request's body: all pictures in base64, and a mebibyte of text."""
        return self.images * (self.image_bytes * 4 // 3 + 4) + 2**20
