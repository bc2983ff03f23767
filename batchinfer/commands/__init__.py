"""The commands of the command line, each a function that parses no more than typer does for it.

Nothing heavy is imported at their top: `--help` stays under 0.3 s.
"""
