"""The table in three forms: Markdown to paste, JSON to compute with, one page to look at.

The page brings its own style, shares its colours with all pages of itg, has no script and asks no
network for anything. Names of hosts, tasks and files are others' text and enter escaped.
"""

import json
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from string import Template

from itg_data.timeline.page import content_policy, show_controls
from itg_data.timeline.page import to_html as escape

from itg_eval.benchmark.stats import FEW_GROUPS
from itg_eval.benchmark.table import HostTable, Row, Table


def to_json(table: Table) -> str:
    """Everything, with `schema_version` first."""
    return json.dumps({"schema_version": 1, **asdict(table)}, indent=2) + "\n"


def to_markdown(table: Table) -> str:
    """A heading and a table for each host."""
    lines = [f"# {_escape_markdown(_title(table))}", "", _escape_markdown(_say_how(table)), ""]
    for host in table.hosts:
        lines += [f"## {_escape_markdown(host.host)}", "", *_markdown_rows(host), ""]
        lines += [_say_cost(host, table), ""]
    lines += [_explain(table), "", f"{table.made_by}."]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """One page, self-contained."""
    style = files("itg_data.timeline").joinpath("timeline.css").read_text("utf-8") + _asset(
        "report.css"
    )
    return Template(_asset("report.html")).substitute(
        policy=content_policy(style),
        title=escape(_title(table)),
        question=_QUESTION,
        tasks=escape(", ".join(table.plan.tasks)),
        how=escape(_say_how(table)),
        hosts="\n".join(_html_host(host, table) for host in table.hosts),
        explanation=escape(_explain(table)),
        made_by=escape(table.made_by),
        style=style,
    )


_QUESTION = "Does frame selection help?"


def _title(table: Table) -> str:
    return f"{_QUESTION} {', '.join(table.plan.tasks)}"


def _say_how(table: Table) -> str:
    plan = table.plan
    params = f" ({', '.join(plan.params)})" if plan.params else ""
    left_out = (
        f" {table.num_left_out} more questions are left out of both: their videos cannot be read."
        if table.num_left_out
        else ""
    )
    return (
        f"{table.num_questions} questions about {table.num_videos} videos, each asked twice: with "
        f"{plan.top_k} evenly spaced frames, and with {plan.top_k} frames chosen by {plan.policy}"
        f"{params} from the scores of {plan.model or plan.scores}.{left_out}"
    )


def _say_cost(host: HostTable, table: Table) -> str:
    said = [
        f"{name} {_seconds(value)}"
        for name, value in {
            "scoring the frames": table.scoring_seconds_per_question,
            "answering with uniform frames": host.seconds_per_question["uniform"],
            "answering with grounded frames": host.seconds_per_question["grounded"],
        }.items()
    ]
    text = f"Seconds per question: {', '.join(said)}."
    for arm, count in host.num_without_selection.items():
        if count:
            text += f" {count} questions had no {arm} selection and were shown uniform frames."
    for arm, count in host.num_empty_answers.items():
        if count:
            text += f" To {count} questions with {arm} frames the host said nothing."
    return text


def _explain(table: Table) -> str:
    text = (
        "Difference: grounded minus uniform, in points, with the 95 % interval of a bootstrap that "
        "draws whole videos. Gained and lost: questions that only grounded, and only uniform "
        "frames answer. p: McNemar's exact test, two-sided."
    )
    fewest = min(row.difference.num_groups for host in table.hosts for row in host.rows)
    if fewest < FEW_GROUPS:
        text += (
            f" Beware: some rows rest on fewer than {FEW_GROUPS} videos (the least on {fewest}); "
            "intervals of so few are too narrow."
        )
    num_repeated = max(host.num_repeated for host in table.hosts)
    if num_repeated:
        text += (
            f" {num_repeated} questions are in several tasks; the row of all tasks counts them "
            "once, as the first task has them."
        )
    published = [row.published for host in table.hosts for row in host.rows if row.published]
    if published:
        text += f" Paper: {published[0].source}, with {published[0].num_frames} frames."
    return text


def _markdown_rows(host: HostTable) -> list[str]:
    names = [name for name, _ in _cells(host, host.rows[0])]
    align = ["---", "---", *["---:"] * (len(names) - 2)]
    rows = [[_escape_markdown(cell) for _, cell in _cells(host, row)] for row in host.rows]
    return [f"| {' | '.join(cells)} |" for cells in (names, align, *rows)]


def _cells(host: HostTable, row: Row) -> list[tuple[str, str]]:
    """Names of columns and what a row says in them."""
    change = row.difference
    interval = "[one video: no interval]"
    if change.low is not None and change.high is not None:
        interval = f"[{_points(change.low)}, {_points(change.high)}]"
    cells = {
        "task": row.task,
        "videos": row.group or "all",
        "n": str(row.num_questions),
        "uniform": _percent(row.uniform),
        "grounded": _percent(row.grounded),
        "difference": f"{_points(change.mean)} {interval}",
        "gained": str(change.num_gained),
        "lost": str(change.num_lost),
        "p": f"{change.p_value:.2g}",
    }
    if any(other.published for other in host.rows):
        paper = row.published
        cells["paper: uniform"] = _percent(paper.uniform) if paper else ""
        cells["paper: grounded"] = _percent(paper.grounded) if paper else ""
    return list(cells.items())


_DRAWN, _SPAN = "difference", ' colspan="2"'


def _html_host(host: HostTable, table: Table) -> str:
    names = [name for name, _ in _cells(host, host.rows[0])]
    # the drawing stands under the same heading as its numbers, which say the same
    heads = "".join(
        f'<th scope="col"{_SPAN if name == _DRAWN else ""}>{escape(name)}</th>' for name in names
    )
    reach = _reach(table)
    body = "\n".join(_html_row(host, row, reach) for row in host.rows)
    return (
        f"<section><h2><bdi>{escape(host.host)}</bdi></h2>\n"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
        f'<p class="cost">{escape(_say_cost(host, table))}</p></section>'
    )


def _html_row(host: HostTable, row: Row, reach: tuple[float, float]) -> str:
    (_, task), *rest = _cells(host, row)
    cells = "".join(
        (f"<td>{_interval_svg(row, reach)}</td>" if name == _DRAWN else "")
        + f"<td>{_with_minus(escape(cell)) if name == _DRAWN else escape(cell)}</td>"
        for name, cell in rest
    )
    kind = "" if row.group else ' class="whole"'
    return f'<tr{kind}><th scope="row">{escape(task)}</th>{cells}</tr>'


def _with_minus(numbers: str) -> str:
    """Sets a minus sign, as wide as the plus above and below it, for a hyphen."""
    return numbers.replace("-", "&minus;")


def _reach(table: Table) -> tuple[float, float]:
    """What all charts span: zero, five points at least, and the longest interval on either side."""
    changes = [row.difference for host in table.hosts for row in host.rows]
    ends = [end for c in changes for end in (c.low, c.mean, c.high) if end is not None]
    low, high = min(0, *ends), max(0, *ends)
    return low, max(high, low + 0.05)


def _interval_svg(row: Row, reach: tuple[float, float]) -> str:
    """The interval as a line, the difference as a dot, zero as an axis through all rows."""
    start, end = reach

    def x(points: float) -> str:
        return f"{6 + 148 * (points - start) / (end - start):.1f}"

    change = row.difference
    line = ""
    if change.low is not None and change.high is not None:
        line = f'<path class="range" d="M{x(change.low)} 0H{x(change.high)}"/>'
    return (
        f'<svg class="interval {change.verdict}" viewBox="0 -10 160 20" aria-hidden="true">'
        f'<path class="zero" d="M{x(0)}-18V18"/>{line}'
        f'<circle r="4.5" cx="{x(change.mean)}"/></svg>'
    )


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def _points(part: float) -> str:
    return f"{100 * part:+.1f}"


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def _escape_markdown(text: str) -> str:
    """Keeps others' text from being a column, a link or markup of its own."""
    text = show_controls(text)
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#" else char for char in text)


@cache
def _asset(name: str) -> str:
    return files("itg_eval.benchmark").joinpath(name).read_text(encoding="utf-8")
