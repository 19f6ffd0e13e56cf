"""`python -m crest` is the command `crest`."""

import sys

from crest.cli import main

sys.exit(main())
