"""python -m gpt2kit: the command line, also where the package is not on the PATH."""

from gpt2kit.cli import main

if __name__ == "__main__":
    main()
