"""`python -m itg_eval`, for torchrun."""

import sys

from itg_eval.cli import main

sys.exit(main())
