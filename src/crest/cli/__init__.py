"""The command `crest`: one file a command, and what several of them share.

`dispatch` holds `main`, so that the function and its module have names of their own.
"""

from crest.cli.dispatch import main as main
