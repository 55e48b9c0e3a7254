import threading
from collections.abc import Callable

import pytest

from flows.devices import DevicePool, visible_gpus


def never() -> bool:
    return False


def in_thread(pool: DevicePool, count: int | None, got: list[object], done: threading.Event) -> threading.Thread:
    def borrow() -> None:
        with pool.lend(count, never) as names:
            got.append(names)
            done.wait(timeout=30)

    thread = threading.Thread(target=borrow)
    thread.start()
    return thread


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never came")


def test_gpus_are_lent_once_and_named_to_the_child() -> None:
    pool = DevicePool(["0", "1", "5"], cores=8)
    with pool.lend(2, never) as first, pool.lend(1, never) as second:
        assert first == ["0", "1"]
        assert second == ["5"]
        assert pool.environment(first) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    with pool.lend(None, never) as names:
        assert names == ["0", "1", "5"]
    with pool.lend(0, never) as none:
        assert none == []
        assert pool.environment(none) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_machine_without_gpus_lends_its_cores() -> None:
    pool = DevicePool([], cores=2)
    with pool.lend(16, never) as names:
        assert names is not None
        assert len(names) == 2
        assert pool.environment(names) == {}


def test_what_holds_most_up_is_lent_to_first() -> None:
    pool = DevicePool([], cores=1)
    order: list[int] = []

    def borrow(urgency: int) -> None:
        with pool.lend(1, never, urgency):
            order.append(urgency)

    with pool.lend(1, never):
        threads = [threading.Thread(target=borrow, args=(urgency,)) for urgency in (1, 3, 2)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(pool._queue) == 3)
    for thread in threads:
        thread.join(timeout=30)
    assert order == [3, 2, 1]


def test_who_needs_all_is_not_overtaken() -> None:
    pool = DevicePool([], cores=2)
    first, everything, late = threading.Event(), threading.Event(), threading.Event()
    got: list[object] = []
    with pool.lend(1, never):
        alone = in_thread(pool, None, got, everything)
        eventually(lambda: len(pool._queue) == 1)
        after = in_thread(pool, 1, got, late)
        eventually(lambda: len(pool._queue) == 2)
        assert got == []  # a core is free, but it is promised
    eventually(lambda: len(got) == 1)
    assert len(got[0]) == 2  # type: ignore[arg-type]
    for event in (first, everything, late):
        event.set()
    for thread in (alone, after):
        thread.join(timeout=30)
    assert len(got) == 2


def test_waiting_ends_when_given_up_and_blocks_nobody() -> None:
    pool = DevicePool([], cores=1)
    with pool.lend(1, never), pool.lend(1, lambda: True) as names:
        assert names is None
    with pool.lend(1, never) as names:
        assert names == ["0"]


def test_the_users_choice_of_gpus_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1a2b")
    assert visible_gpus() == ["3", "GPU-1a2b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
