"""`python -m bblab.cli`."""

import sys

from bblab.cli import main

sys.exit(main())
