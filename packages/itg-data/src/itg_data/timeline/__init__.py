"""Frames of a video over time as one page to look at: what every package's reports are made of.

It lives here, on the light floor, because three packages above and beside each other show the same
thing: `itg-select --report` a selection, `itg-eval` its results, `itg-data` a data set. All have
records and frames of this package in hand, and only here can all of them import it; it needs no
more than numpy and pillow, which the decoder's users have anyway.
"""

from itg_data.timeline.page import Passage, Timeline, Wording, render_page
from itg_data.timeline.thumbnails import Thumbnails

__all__ = ["Passage", "Thumbnails", "Timeline", "Wording", "render_page"]
