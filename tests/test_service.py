"""One thread runs the passes: tasks get what belongs to them, whoever else asks, and nobody waits for ever."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_scheduler import World, alone
from understudy.errors import UsageError
from understudy.request import Request
from understudy.service import Call, Service, Unavailable


def served(world: World, **options: Any) -> Service:
    service = Service(SimpleNamespace(scheduler=world.scheduler, model=SimpleNamespace(lost=False)), **options)
    service.start()
    return service


@pytest.fixture
def world() -> World:
    return World(rows=2)


@pytest.fixture
def service(world: World) -> Iterator[Service]:
    service = served(world)
    yield service
    service.close()


async def tokens(service: Service, request: Request, limit: float = 0.0) -> list[int]:
    """All tokens of one request. Raises what ended it."""
    call = Call(service, [request], limit)
    service.submit([request])
    found: list[int] = []
    async for item in call.steps(silence=60):
        if item is not None:
            found += item[1].token_ids
    if call.error is not None:
        raise call.error
    return found


def test_many_tasks_get_what_they_get_alone(world: World, service: Service) -> None:
    async def ask() -> list[list[int]]:
        return await asyncio.gather(*(tokens(service, world.request([n % 7], 9, True)) for n in range(20)))

    assert asyncio.run(ask()) == [alone([n % 7], 9) for n in range(20)]
    assert world.passes < 20 * 9


def test_several_event_loops_share_one_service(world: World, service: Service) -> None:
    found: dict[int, list[int]] = {}

    def loop(n: int) -> None:
        found[n] = asyncio.run(tokens(service, world.request([n % 7], 9, True)))

    threads = [threading.Thread(target=loop, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: alone([n % 7], 9) for n in range(5)}


def test_without_a_limit_any_number_waits(world: World) -> None:
    few = served(world, max_queue=1)
    with pytest.raises(UsageError, match="asks for 4 texts, and 3 may"):
        few.submit([world.request([n], 2) for n in range(4)])
    few.submit([world.request([n], 2) for n in range(3)])
    with pytest.raises(Unavailable, match="1 may"):
        few.submit([world.request([n], 2) for n in range(3)])
    few.close()
    service = served(world)
    requests = [world.request([n], 2, True) for n in range(40)]
    service.submit(requests)

    async def wait() -> None:
        await asyncio.gather(*(asyncio.to_thread(request_ended, request) for request in requests))

    asyncio.run(wait())
    service.close()


def request_ended(request: Request) -> None:
    ended = threading.Event()
    request.heard = ended.set
    while not request.finished:
        ended.wait(0.05)


def test_closing_tells_those_that_wait() -> None:
    slow = World(rows=1, pause=0.01)
    service = served(slow)

    async def ask() -> None:
        waiting = [asyncio.create_task(tokens(service, slow.request([n], 10**6, True))) for n in range(3)]
        while slow.passes < 2:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(service.close)
        for task in waiting:
            with pytest.raises(Unavailable, match="was closed"):
                await task
        with pytest.raises(Unavailable, match="it was closed"):
            await tokens(service, slow.request([1], 1, True))

    asyncio.run(ask())
    assert slow.scheduler.idle
