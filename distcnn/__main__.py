"""Starts the command that `python -m distcnn NAME` names."""

from distcnn.cli.commands import main

if __name__ == "__main__":
    main("python -m distcnn")
