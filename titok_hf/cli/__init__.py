"""The `titok` command: it parses, calls one public function, and shows the result."""

from .main import app, main

__all__ = ["app", "main"]
