"""Scripted videos with questions whose relevant frames are known: demos, tests, the default set."""

from itg_data.synthetic.dataset import load_or_write_dataset
from itg_data.synthetic.questions import ask_questions
from itg_data.synthetic.render import encode_mp4, render
from itg_data.synthetic.script import COMBINATIONS, SyntheticConfig, write_script

__all__ = [
    "COMBINATIONS",
    "SyntheticConfig",
    "ask_questions",
    "encode_mp4",
    "load_or_write_dataset",
    "render",
    "write_script",
]
