"""The command line as `python -m crest`, for where the script is not on the path."""

import sys

from crest.cli import main

sys.exit(main())
