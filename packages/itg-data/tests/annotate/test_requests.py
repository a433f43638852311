import asyncio
from dataclasses import replace

import pytest
from itg_data.annotate.desk import Bill, Desk, UnansweredError, all_of, to_the_end
from itg_data.annotate.ledger import Ledger, LedgerError
from itg_data.annotate.requests import (
    STAGES,
    Answer,
    Request,
    Sampler,
    load_prompt,
    prompt_sha256,
)
from itg_data.annotate.retrieve import RetrieveAnswer
from itg_data.errors import VideoError

REQUEST = Request(
    stage="retrieve",
    inputs={"question": "Where?", "captions": ["a", "b"]},
    pictures=("one", "two"),
    answer_type=RetrieveAnswer,
)
SAMPLER = Sampler(model="m")


def test_the_key_of_a_request_follows_from_all_that_decides_its_answer():
    others = [
        replace(REQUEST, stage="check"),
        replace(REQUEST, inputs={"question": "Where?", "captions": ["a", "c"]}),
        replace(REQUEST, pictures=("two", "one")),
        REQUEST.mended("no JSON"),
    ]
    keys = {request.key(SAMPLER) for request in (REQUEST, *others)}
    for changed in ({"model": "n"}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}):
        keys.add(REQUEST.key(replace(SAMPLER, **changed)))
    assert len(keys) == 9
    assert replace(REQUEST).key(SAMPLER) == REQUEST.key(SAMPLER)


def test_the_schema_is_strict():
    assert REQUEST.to_json_schema() == {
        "type": "object",
        "properties": {
            "explanation": {"type": "string"},
            "clips": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["explanation", "clips"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_prompt_names_its_stage_and_version_and_tells_data_from_instructions(stage):
    prompt = load_prompt(stage)
    name, version = prompt.splitlines()[0].removeprefix("# ").split()
    assert name == stage
    assert int(version) >= 1
    assert "don't follow it" in prompt
    assert len(prompt_sha256(stage)) == 64


@pytest.mark.parametrize("changed", [{"model": " "}, {"temperature": 3.0}, {"max_tokens": 0}])
def test_a_sampler_out_of_range_is_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        replace(SAMPLER, **changed)


class Slow:
    """An annotator that takes its time and counts."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def ask(self, request, pictures) -> Answer:
        self.num_asked += 1
        await asyncio.sleep(0.01)
        text = '{"explanation": "", "clips": []}'
        return Answer(text=text, prompt_tokens=1, completion_tokens=1)


def test_the_same_request_at_the_same_time_is_asked_once(tmp_path):
    async def main() -> tuple[int, int]:
        slow, bill = Slow(), Bill()
        desk = Desk(slow, Ledger(tmp_path / "ledger.sqlite"), SAMPLER, concurrency=8)
        await all_of(desk.ask(REQUEST, bill) for _ in range(5))
        return slow.num_asked, bill.to_token_count().num_calls

    assert asyncio.run(main()) == (1, 5)


def test_what_is_asked_when_a_run_ends_is_kept(tmp_path):
    slow, ledger = Slow(), Ledger(tmp_path / "ledger.sqlite")

    async def main() -> None:
        desk = Desk(slow, ledger, SAMPLER, concurrency=1)
        others = [replace(REQUEST, pictures=(str(n),)) for n in range(3)]
        asking = [asyncio.create_task(desk.ask(other, Bill())) for other in others]
        while not slow.num_asked:
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        await asyncio.sleep(0)
        # an error on its way up cancels more than once
        asking[0].cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        assert desk.tally.num_asked == 1
        assert await ledger.claim(others[0].key(SAMPLER)) is not None
        # those that stood in line were not asked, and their claims are given back
        assert await ledger.claim(others[1].key(SAMPLER)) is None

    asyncio.run(main())
    assert (slow.num_asked, len(ledger)) == (1, 1)


def test_a_video_that_fails_while_it_is_waited_for_keeps_nobody_else_from_asking(tmp_path):
    class Torn:
        async def wait(self) -> None:
            raise VideoError("torn.mp4", "packet is torn")

        def read(self) -> list[bytes]:
            raise AssertionError("read although it failed")

    async def main() -> int:
        slow = Slow()
        desk = Desk(slow, Ledger(tmp_path / "ledger.sqlite"), SAMPLER, concurrency=1)
        with pytest.raises(VideoError, match="packet is torn"):
            await desk.ask(REQUEST, Bill(), pictures=Torn())
        await desk.ask(replace(REQUEST, pictures=("another",)), Bill())
        # and its claim is given back
        await desk.ask(REQUEST, Bill())
        return slow.num_asked

    assert asyncio.run(main()) == 2


def test_an_answer_that_does_not_come_holds_the_end_up_no_longer_than_the_grace():
    async def main() -> bool:
        never = asyncio.Event()
        asking = asyncio.create_task(to_the_end(never.wait(), grace_s=0.01))
        await asyncio.sleep(0)
        asking.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        return isinstance(ended, asyncio.CancelledError)

    assert asyncio.run(main())


def test_a_claim_that_is_given_back_goes_to_the_next_in_line(tmp_path):
    async def main() -> list[object]:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        assert await ledger.claim("key") is None
        waiting = asyncio.create_task(ledger.claim("key"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await ledger.release("key")
        return [await waiting]

    assert asyncio.run(main()) == [None]


def test_a_closed_ledger_needs_no_other_file_to_be_read(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    answer = Answer(text="", prompt_tokens=0, completion_tokens=0)
    asyncio.run(ledger.store("key", "cues", "m", answer))
    ledger.close()
    # the version of the format that reading takes: 2 would mean a write-ahead log, which SQLite
    # makes anew even to read, so not in a read-only folder
    assert (tmp_path / "ledger.sqlite").read_bytes()[19] == 1
    cassette = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    assert cassette.get("key") == answer
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_read_only_ledger_is_not_written(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    ledger = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    answer = Answer(text="", prompt_tokens=0, completion_tokens=0)
    with pytest.raises(LedgerError, match="readonly"):
        asyncio.run(ledger.store("key", "cues", "m", answer))


def test_siblings_of_one_without_an_answer_go_on_to_their_end():
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == 0:
            raise UnansweredError("refused", "cues")
        await asyncio.sleep(0.01)
        ended.append(number)

    with pytest.raises(UnansweredError):
        asyncio.run(all_of(work(n) for n in range(3)))
    assert ended == [1, 2]


def test_siblings_of_a_graver_error_end_at_once():
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == 0:
            raise OSError("no room")
        await asyncio.sleep(5)
        ended.append(number)

    with pytest.raises(OSError, match="no room"):
        asyncio.run(all_of(work(n) for n in range(3)))
    assert ended == []
