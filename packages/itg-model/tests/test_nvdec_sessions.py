import sys
import threading
from types import SimpleNamespace

import pytest
from itg_model import nvdec_sessions
from itg_model.nvdec_sessions import Session, SessionKind, SessionPool


class Decoder:
    """As PyNvVideoCodec's: gives a frame three packets late, and all that is left when flushed."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.breaks = False

    def Decode(self, data):
        if self.breaks:
            raise RuntimeError("no frames today")
        if data.bsl:
            self.held.append(data.pts)
            return [self.held.pop(0)] if len(self.held) > 3 else []
        left, self.held = self.held, []
        return left


@pytest.fixture(autouse=True)
def _fake_library(monkeypatch):
    def make_data():
        return SimpleNamespace(bsl=0, bsl_data=0, pts=0)

    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", SimpleNamespace(PacketData=make_data))
    # in the test's thread, so that it sees what was ended
    monkeypatch.setattr(nvdec_sessions, "_ending", SimpleNamespace(submit=lambda end: end()))


def make_packet(pts):
    return SimpleNamespace(size=1, buffer_ptr=1, pts=pts)


def make_session():
    return Session(Decoder(), "a stream")


def make_kind(**other):
    usual = {"device": 0, "codec": "h264", "height": 48, "width": 64, "parameter_sets": b"sps"}
    return SessionKind(**{**usual, **other})


def has_ended(session):
    return session._decoder is None


KIND = make_kind()
OTHERS = [
    make_kind(device=1),
    make_kind(codec="hevc"),
    make_kind(height=96),
    make_kind(width=128),
    make_kind(parameter_sets=b"pps"),
]


def test_a_session_given_back_is_taken_again_with_its_stream():
    pool, session = SessionPool(2), make_session()
    assert pool.take(KIND) is None
    pool.give_back(KIND, session)
    assert pool.take(make_kind()) is session
    assert session.cuda_stream == "a stream"
    assert pool.take(KIND) is None


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_session_is_for_videos_of_its_kind_alone_and_makes_room_for_others(other):
    pool, session = SessionPool(2), make_session()
    pool.give_back(KIND, session)
    assert pool.take(other) is None
    assert has_ended(session)


def test_the_longest_idle_makes_room_first():
    pool, sessions = SessionPool(3), [make_session() for _ in range(4)]
    for kind, session in zip((KIND, OTHERS[0], KIND, OTHERS[1]), sessions, strict=True):
        pool.give_back(kind, session)
    assert [has_ended(session) for session in sessions] == [True, False, False, False]
    assert pool.take(OTHERS[2]) is None
    assert [has_ended(session) for session in sessions] == [True, True, False, False]
    assert pool.take(KIND) is sessions[2]


def test_a_session_stopped_halfway_is_emptied_before_the_next_video():
    pool, session = SessionPool(2), make_session()
    for pts in range(5):
        session.decode(make_packet(pts))
    pool.give_back(KIND, session)
    assert pool.take(KIND) is session
    came = [frame for pts in range(100, 105) for frame in session.decode(make_packet(pts))]
    assert came + session.flush() == list(range(100, 105))


def test_a_session_that_is_empty_is_not_flushed_again():
    session = make_session()
    session.decode(make_packet(1))
    assert session.flush() == [1]
    session._decoder.breaks = True
    assert session.settle()


@pytest.mark.parametrize("fails_in", ["decode", "flush", "settle"])
def test_a_session_that_failed_is_ended_and_never_taken_again(fails_in):
    pool, session = SessionPool(2), make_session()
    session.decode(make_packet(0))
    session._decoder.breaks = True
    if fails_in == "decode":
        with pytest.raises(RuntimeError, match="no frames today"):
            session.decode(make_packet(1))
    elif fails_in == "flush":
        with pytest.raises(RuntimeError, match="no frames today"):
            session.flush()
    if fails_in != "settle":
        session._decoder.breaks = False
    pool.give_back(KIND, session)
    assert has_ended(session)
    assert pool.take(KIND) is None


def test_a_session_that_is_distrusted_is_ended_and_never_taken_again():
    pool, session = SessionPool(2), make_session()
    session.decode(make_packet(0))
    session.distrust()
    pool.give_back(KIND, session)
    assert has_ended(session)
    assert pool.take(KIND) is None


def test_without_parameter_sets_nothing_tells_what_may_follow():
    pool, session = SessionPool(2), make_session()
    pool.give_back(make_kind(parameter_sets=b""), session)
    assert has_ended(session)
    assert pool.take(make_kind(parameter_sets=b"")) is None


def test_clearing_ends_what_waits_and_keeps_what_comes():
    pool, before, after = SessionPool(2), make_session(), make_session()
    pool.give_back(KIND, before)
    pool.clear()
    assert has_ended(before)
    pool.give_back(KIND, after)
    assert pool.take(KIND) is after


def test_after_the_end_sessions_are_ended_and_none_is_kept(monkeypatch):
    def refuse(_):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    pool, waiting, late = SessionPool(2), make_session(), make_session()
    pool.give_back(KIND, waiting)
    monkeypatch.setattr(nvdec_sessions, "_ending", SimpleNamespace(submit=refuse))
    pool.close()
    assert has_ended(waiting)
    pool.give_back(KIND, late)
    assert has_ended(late)
    assert pool.take(KIND) is None


def test_threads_never_share_a_session():
    pool, in_use, clashes = SessionPool(4), set(), []

    def work():
        for _ in range(200):
            session = pool.take(KIND) or make_session()
            if session in in_use:
                clashes.append(session)
            in_use.add(session)
            session.decode(make_packet(0))
            in_use.discard(session)
            pool.give_back(KIND, session)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert len(pool._idle) <= 4
