"""`python -m epsc` is `epsc`."""

from epsc.cli import main

if __name__ == "__main__":
    main()
