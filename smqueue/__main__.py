"""``python -m smqueue`` is the command ``smqueue``."""

from smqueue.cli import main

if __name__ == "__main__":
    main()
