"""`python -m llmasos` is the `llmasos` command."""

import sys

from llmasos.userland.cli import main

sys.exit(main())
