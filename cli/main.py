"""The commands: thin, every heavy import inside."""


def main() -> None:
    """Run the command line."""
    raise SystemExit(2)
