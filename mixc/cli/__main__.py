from mixc.cli import app

app()
