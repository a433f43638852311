"""`itg-data annotate`: from raw videos and QA pairs to a training set."""

import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from itg_data.errors import InputError, ItgError, RecordError, to_one_line
from itg_data.progress import Advance, show_progress, tell_progress

if TYPE_CHECKING:
    from itg_data.annotate.config import AnnotatorConfig, RunConfig
    from itg_data.annotate.run import RunState, Watch

EXIT_OK, EXIT_STOPPED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotate:
    """Make a training set from raw videos and QA pairs with a vision-language model.

    One of --base-url, --local and --replay says who answers. Whatever ends a run, the same command
    goes on from there, and no answered request is asked again. A summary goes to stdout as one
    JSON object, progress and complaints to stderr. Exit codes: 0 done, 1 stopped on the way (start
    again to go on), 2 bad input, 130 interrupted.
    """

    videos: Path
    """Folder of the videos."""

    qa: Path
    """QA pairs as JSONL: schema_version (1), id, video (relative to the folder), question, answer,
    and where there are any, options and split."""

    out: Path
    """Folder for the set; it is made if it is not there."""

    model: str
    """Model to ask for at the server; with --local and --replay, its name in the records."""

    base_url: str | None = None
    """Address of a server that speaks the OpenAI protocol, such as http://localhost:8000/v1."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the server's key; it may be unset."""

    local: Path | None = None
    """Folder of an image-text-to-text checkpoint to run right here. Needs itg-data[local]."""

    replay: Path | None = None
    """The ledger.sqlite of an earlier run to answer from, without any model."""

    device: str = "auto"
    """Where --local runs: auto, cpu, cuda or cuda:N."""

    structured: Literal["auto", "json-schema", "none"] = "auto"
    """Whether the server is told the JSON schema of each answer; auto stops if it objects."""

    concurrency: int = 16
    """Requests under way at the same time."""

    max_retries: int = 8
    """Repeats of a request after 429, 5xx, a time-out or a dropped connection."""

    timeout_s: float = 300.0
    """How long one attempt at an answer may take, to its last byte."""

    temperature: float = 0.0
    """Of the answers."""

    seed: int = 0
    """Sent with every request; part of the records."""

    max_tokens: int = 1024
    """Upper bound on the length of an answer."""

    frames_per_clip: int = 8
    """Pictures that a clip of five seconds is described from."""

    image_size: int = 448
    """Longer side of the pictures in pixels."""

    features: str = "none"
    """What frames are compared by, to thin those that look alike: the folder of a CLIP or SigLIP
    checkpoint, as the method has it, which needs itg-data[local]; or thumbnails, which need no
    model and take layouts for meanings. none keeps every second that the check confirms."""

    num_decoders: int | None = None
    """Videos decoded at the same time; None for one per core."""

    usd_per_million_prompt_tokens: float = 0.0
    """For the cost shown and estimated."""

    usd_per_million_completion_tokens: float = 0.0
    """For the cost shown and estimated."""

    retry_rejected: bool = False
    """Ask again what the server rejected in an earlier run, say because its context was too short;
    what failed otherwise is asked again anyway."""

    engine: Literal["local", "ray"] = "local"
    """This machine, or a Ray cluster whose machines all see the videos. Needs itg-data[ray]."""

    ray_address: str | None = None
    """Cluster to join, auto for the one that is running here; None starts one."""

    dry_run: bool = False
    """Only say how many calls and tokens it would take, and at what cost."""

    def run(self) -> int:
        """Annotates, or estimates."""
        try:
            config = self.to_config()
        except ValueError as error:
            return _fail(str(error), EXIT_BAD_INPUT)
        try:
            with tell_progress():
                return self._estimate(config) if self.dry_run else self._annotate(config)
        except KeyboardInterrupt:
            return _fail("interrupted; start again to go on from here", EXIT_INTERRUPTED)
        except (RecordError, InputError) as error:
            return _fail(str(error), EXIT_BAD_INPUT)
        except ItgError as error:
            return _fail(str(error), EXIT_STOPPED)

    def _estimate(self, config: "RunConfig") -> int:
        from itg_data.annotate.estimate import estimate

        print(json.dumps(estimate(config).to_json()))
        return EXIT_OK

    def _annotate(self, config: "RunConfig") -> int:
        try:
            from itg_data.annotate.run import run
        except ModuleNotFoundError as error:
            install = "pip install 'itg-data[annotate]'"
            return _fail(f"{error.name} is missing: {install}", EXIT_BAD_INPUT)
        with _interruptible() as interrupted, _progress(config) as watch:
            state = run(config, watch, interrupted)
        print(json.dumps(_summarise(state, config)))
        return EXIT_OK

    def to_config(self) -> "RunConfig":
        """Gathers the options.

        Raises:
            ValueError: One is out of range, or it is not clear who answers.
        """
        from itg_data.annotate.config import Prices, RunConfig
        from itg_data.annotate.frames import PictureConfig
        from itg_data.annotate.requests import Sampler

        return RunConfig(
            videos=self.videos,
            qa=self.qa,
            out=self.out,
            annotator=self._to_annotator(),
            sampler=Sampler(
                model=self.model,
                temperature=self.temperature,
                seed=self.seed,
                max_tokens=self.max_tokens,
            ),
            pictures=PictureConfig(per_clip=self.frames_per_clip, image_size=self.image_size),
            features=self.features,
            concurrency=self.concurrency,
            prices=Prices(
                usd_per_million_prompt_tokens=self.usd_per_million_prompt_tokens,
                usd_per_million_completion_tokens=self.usd_per_million_completion_tokens,
            ),
            engine=self.engine,
            retry_rejected=self.retry_rejected,
            ray_address=self.ray_address,
            **({} if self.num_decoders is None else {"num_decoders": self.num_decoders}),
        )

    def _to_annotator(self) -> "AnnotatorConfig":
        from itg_data.annotate.config import LocalConfig, ReplayConfig
        from itg_data.annotate.openai_client import ServerConfig

        if sum(who is not None for who in (self.base_url, self.local, self.replay)) != 1:
            raise ValueError("say who answers: one of --base-url, --local and --replay")
        if self.local is not None:
            return LocalConfig(folder=self.local, device=self.device)
        if self.replay is not None:
            return ReplayConfig(cassette=self.replay)
        return ServerConfig(
            base_url=str(self.base_url),
            api_key=os.environ.get(self.api_key_env) or "none",
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
            structured=self.structured,
        )


def _summarise(state: "RunState", config: "RunConfig") -> dict[str, Any]:
    tally = state.tally
    num_dropped = sum(state.dropped.values())
    return {
        "pairs": state.num_pairs,
        "annotated": state.num_done - num_dropped,
        "dropped": dict(sorted(state.dropped.items())),
        "asked": tally.num_asked,
        "mended": tally.num_mended,
        "from_ledger": tally.num_known,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost_usd": config.prices.cost_usd(tally.prompt_tokens, tally.completion_tokens),
    }


@contextmanager
def _progress(config: "RunConfig") -> Generator["Watch"]:
    """Shows how far a run is: pairs, requests a second, cost, and time left."""
    with ExitStack() as stack:
        advance: Advance | None = None
        shown = -1

        def watch(state: "RunState") -> None:
            nonlocal advance, shown
            if advance is None:
                shows = show_progress("annotate", state.num_pairs, unit="pairs")
                advance = stack.enter_context(shows)
            if shown == state.num_pairs:
                return  # all is done and said
            shown, tally = state.num_done, state.tally
            cost_usd = config.prices.cost_usd(tally.prompt_tokens, tally.completion_tokens)
            rate_hz = tally.num_asked / max(state.elapsed_s, 1e-3)
            note = f"{sum(state.dropped.values())} dropped, {rate_hz:.1f} requests/s"
            advance(state.num_done, f"{note}, ${cost_usd:.2f}" if cost_usd else note)

        yield watch


@contextmanager
def _interruptible() -> Generator[Callable[[], None]]:
    """Yields what is to be called when a run begins to end because of Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)

    def stop_at_once(number: int, frame: object) -> None:
        # every answer is on disk, and whatever else is half done the next run begins anew
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")  # the bar has hidden the cursor
        os.write(2, b"itg-data annotate: stopped; start again to go on from here\n")
        os._exit(EXIT_INTERRUPTED)

    def wait() -> None:
        from itg_data.annotate.desk import GRACE_S

        signal.signal(signal.SIGINT, stop_at_once)
        waits = f"waiting up to {GRACE_S:.0f} s for answers under way; again to stop at once"
        print(f"itg-data annotate: {waits}", file=sys.stderr, flush=True)

    try:
        yield wait
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, exit_code: int) -> int:
    # servers and names of files may say anything, also to a terminal
    print(f"itg-data annotate: {to_one_line(' '.join(message.split()))}", file=sys.stderr)
    return exit_code
