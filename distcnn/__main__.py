"""Runs `python -m distcnn NAME`."""

from distcnn.cli.commands import main

if __name__ == "__main__":
    main("python -m distcnn")
