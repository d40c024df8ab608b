"""`python -m understudy` is the `understudy` command."""

import sys

from .frontends import main

sys.exit(main())
