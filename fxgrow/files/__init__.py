"""Files: what is written, how it is read back, and what is refused (see docs/safety.md)."""
