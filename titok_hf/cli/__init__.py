"""The `titok` command. Each subcommand calls one public function and prints the result."""

from .main import app, main

__all__ = ["app", "main"]
