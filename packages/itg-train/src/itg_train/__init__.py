"""itg-train: trains the frame grounder with DeepSpeed."""

import os

# OpenMP reads this when torch loads it. By default its threads spin while they wait: as soon as
# another process wants a core too, a training step on the CPU takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
