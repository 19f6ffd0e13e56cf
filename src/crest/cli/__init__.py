"""The command `crest`: one file a command."""

from crest.cli.main import main as main
