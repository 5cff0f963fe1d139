"""``python -m gateway`` is ``baton``."""

from gateway.cli import main

if __name__ == "__main__":
    main()
