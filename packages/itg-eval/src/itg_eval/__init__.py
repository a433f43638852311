"""itg-eval: measures what frame selection does to a Video LLM."""

import os

# OpenMP's threads otherwise spin while they wait, and processes beside one another starve. It must
# be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
