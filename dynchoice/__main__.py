"""``python -m dynchoice``."""

import sys

from dynchoice.run.cli import main

sys.exit(main())
