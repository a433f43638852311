"""After training: quality on the held-out split, and one selection to look at."""

import logging
from collections.abc import Sequence
from typing import cast

from itg_data.errors import VideoError
from itg_data.metrics import num_selected
from itg_data.records import FrameSelection, GroundingRecord, to_json
from itg_data.timeline import Thumbnails
from itg_model.grounder import FrameGrounder
from itg_model.plot import draw_selection
from itg_model.report import write_report

from itg_train.card import CARD, write_card
from itg_train.config import TrainConfig
from itg_train.engine import Processes
from itg_train.evaluate import QuestionResult, format_table, summarize
from itg_train.prepare import Prepared
from itg_train.rundir import RunDir, write_json

logger = logging.getLogger(__name__)


def show_results(
    recipe: str,
    config: TrainConfig,
    processes: Processes,
    prepared: Prepared,
    run_dir: RunDir,
    results: Sequence[QuestionResult],
) -> str:
    """Writes the measurements and the card, selects, and says in words what there is now.

    The video shown is the first of the held-out split that can be read, and the question its first:
    whatever the grounder makes of it, not the best of many.
    """
    report = summarize(results)
    write_json(run_dir.heldout, report)
    if config.task == "chat":
        loss = next(iter(report["all"].values()))["loss"] if report else float("nan")
        return (
            f"The Video LLM: {run_dir.checkpoint}, held-out loss {loss:.4f}\n"
            f"Next: itg-train RECIPE --start.checkpoint {run_dir.checkpoint}"
        )
    if not prepared.heldout.groups:
        return f"The trained grounder: {run_dir.checkpoint} (no video was held out to measure it)"
    write_card(run_dir.checkpoint, recipe, config, prepared, run_dir, results)
    shown = _select_from_first(config, processes, prepared, run_dir)
    table = format_table(report)
    if shown is None:
        return f"Held-out videos:\n\n{table}\n\nThe trained grounder: {run_dir.checkpoint}"
    return _describe(run_dir, table, shown)


def _select_from_first(
    config: TrainConfig, processes: Processes, prepared: Prepared, run_dir: RunDir
) -> FrameSelection | None:
    """Selects from the first held-out video that can still be read, and draws it."""
    grounder = FrameGrounder.from_pretrained(run_dir.checkpoint, device=str(processes.device))
    for group in prepared.heldout.groups:
        record = cast(GroundingRecord, group.records[0])
        thumbnails = Thumbnails()
        try:
            selection = grounder.select(
                prepared.heldout.root / record.video,
                record.question,
                top_k=num_selected(group.num_frames, 0.1),
                sampling=config.data.sampling,
                on_frames=thumbnails.add,
            )
        except VideoError as error:
            # gone since it was looked at: no reason to end a run whose training is done
            logger.warning("not shown: %s", error)
            continue
        chosen = thumbnails.pick([frame.source_idx for frame in selection.selected])
        draw_selection(run_dir.picture, selection, chosen, record.spans)
        write_report(run_dir.report, selection, thumbnails, record.spans)
        write_json(run_dir.selection, to_json(selection))
        return selection
    return None


def _describe(run_dir: RunDir, table: str, selection: FrameSelection) -> str:
    chosen = "\n".join(
        f"  {frame.time_s:7.2f} s   score {frame.score:.3f}   rank {frame.rank}"
        for frame in selection.selected
    )
    return f"""\
Held-out videos:

{table}

Frames chosen from {selection.video}
for "{selection.question}":

{chosen}

What lies where:
  {run_dir.checkpoint}  the trained grounder, with its card in {CARD}
  {run_dir.heldout}  the table above
  {run_dir.report}  the selection to look at, in a browser
  {run_dir.picture}  the same as a picture
  {run_dir.metrics}  loss and speed of every step

Next, a video of yours:
  uv run itg-select VIDEO "QUESTION" --model {run_dir.checkpoint} --top-k 8"""
