"""``python -m fxgrow`` is the ``fxgrow`` command."""

from fxgrow_cli.main import main

if __name__ == "__main__":
    main()
