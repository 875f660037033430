"""`python -m bblab`."""

import sys

from bblab.cli import main

sys.exit(main())
