"""`python -m itg_train`, which is also what `torchrun -m itg_train` starts."""

import sys

from itg_train.cli import main

sys.exit(main())
