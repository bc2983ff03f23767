"""`python -m batchinfer`."""

from batchinfer.cli import command

if __name__ == "__main__":
    command()
