"""`python -m mixc`: the command line."""

from mixc.cli import app

app()
