"""`itg_scripted`: a benchmark without a download, and two host models to run it with.

benchmark.py   videos, questions and the task's definition, written into a folder
task/          the definition, as lmms-eval reads it
reader.py      a network that learns in seconds to read scripted frames
qwen.py        a tiny Qwen3-VL with random weights: the real architecture, seeing nothing
"""
