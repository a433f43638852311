"""A selection as a page to look at; the page itself is `itg_data.timeline`'s.

What is said of a selection is decided here, how frames over time are shown is decided there.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from itg_data.files import write_atomic
from itg_data.records import FrameSelection, TimeSpan, to_json
from itg_data.timeline import Thumbnails, Timeline, render_page


def write_report(
    path: str | Path,
    selection: FrameSelection,
    thumbnails: Thumbnails,
    spans: Sequence[TimeSpan] = (),
) -> None:
    """Writes one HTML file that holds all it shows and opens anywhere, without a network.

    Args:
        path: Where to.
        selection: What to show; the page carries it whole, for `itg_data.timeline.page.record_in`.
        thumbnails: Pictures of all frames that were scored, gathered by `encode(on_frames=...)`.
        spans: Stretches known to hold the answer, shaded.

    Raises:
        ValueError: `thumbnails` are not those of the selection's frames.
        OSError: The file cannot be written.
    """
    write_atomic(Path(path), render_report(selection, thumbnails, spans))


def render_report(
    selection: FrameSelection, thumbnails: Thumbnails, spans: Sequence[TimeSpan] = ()
) -> str:
    """Returns the page that `write_report` writes."""
    num_missing = len(selection.missing_source_idx)
    looked_at = f"{selection.num_sampled}, sampled by {selection.sampling}"
    facts = {
        "Video": selection.video,
        "Model": selection.model,
        "Policy": f"{selection.policy}, {len(selection.selected)} frames",
        "Frames looked at": looked_at,
        "Missing from the file": f"{num_missing} frames" if num_missing else "",
    }
    return render_page(
        Timeline(
            heading=selection.question,
            facts=[(name, value) for name, value in facts.items() if value],
            times_s=selection.times_s,
            scores=selection.scores,
            selected=selection.selected,
            thumbnails=thumbnails,
            spans=spans,
            record=to_json(selection),
            made_by=f"itg-model {version('itg-model')}",
        )
    )
