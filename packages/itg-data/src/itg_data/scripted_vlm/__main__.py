"""Lets `python -m itg_data.scripted_vlm` start the server."""

import sys

from itg_data.scripted_vlm.cli import main

sys.exit(main())
