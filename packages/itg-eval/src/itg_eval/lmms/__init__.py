"""The only door to lmms-eval: which documents a task has, and our frames before any host model.

Nothing outside this package imports `lmms_eval`, and nothing in it is imported before it is
needed: importing lmms-eval takes some 20 seconds.

    documents.py   the documents of any task, by the task's own definition
    tasks.py       what we know of single tasks: duration groups, right and wrong
    entry.py       what lmms-eval finds of us: the ids `itg`, `itg_reader`, and a shadowed one
    wrapper.py     the model that puts selected frames before another model
    forms.py       in which form a host model takes frames
    frames.py clip.py qwen.py    the frames, as pictures, as a lossless file, with true times
    journal.py     answers on disk as they come, so that a killed run goes on
    reader.py      a small host model that can see scripted videos
"""

import os

# read when lmms-eval is imported, which else tells its log of every file that it passes over
os.environ.setdefault("LOGURU_LEVEL", "WARNING")
