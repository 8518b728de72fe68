"""`python -m hcnn` is the command `hcnn`."""

from .cli import main

if __name__ == "__main__":
    main()
