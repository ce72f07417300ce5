"""``python -m fxgrow_cli`` (and ``torchrun -m fxgrow_cli``) is the ``fxgrow`` command."""

from .main import main

if __name__ == "__main__":
    main()
