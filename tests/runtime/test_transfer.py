"""File transfers: whole, verified, resumed after `kill -9` of either end, refused in words."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farflung.runtime.giver import Giver
from farflung.runtime.shaped_link import shaped_link
from farflung.runtime.taker import take
from farflung.wire.message import Message
from farflung.wire.transfer import CHUNK_BYTES, TransferAsk, TransferChunk, TransferChunkAsk, TransferManifest
from farflung.world.address import Address, PeerId
from farflung.world.errors import PeerMisbehaved, Refused, Unreachable
from tests.runtime.conftest import Swarm

pytestmark = pytest.mark.loopback


def made_file(path: Path, num_bytes: int) -> Path:
    path.write_bytes(random.Random(num_bytes).randbytes(num_bytes))
    return path


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
async def test_a_file_arrives_as_it_is(swarm: Swarm, tmp_path: Path, num_bytes: int) -> None:
    a, _ = await swarm.add()
    b, _ = await swarm.add()
    path = made_file(tmp_path / "given", num_bytes)
    giver, told = Giver(a.world, "files", {"f": path}), list[tuple[int, int]]()
    target = tmp_path / "folder" / "taken"
    await take(b.world, Address(a.identity.peer, "files"), "f", target, progress=lambda *x: told.append(x))
    assert target.read_bytes() == path.read_bytes()
    assert [child.name for child in target.parent.iterdir()] == ["taken"]
    assert told[0] == (0, num_bytes)
    assert told[-1] == (num_bytes, num_bytes)
    giver.close()


async def test_only_what_is_missing_or_damaged_is_sent_again(swarm: Swarm, tmp_path: Path) -> None:
    a, _ = await swarm.add()
    b, _ = await swarm.add()
    path = made_file(tmp_path / "given", 4 * CHUNK_BYTES + 5)
    giver = Giver(a.world, "files", {"f": path})
    partial = bytearray(path.read_bytes())
    partial[2 * CHUNK_BYTES + 100] ^= 1
    (tmp_path / ".taken.partial").write_bytes(partial[: 3 * CHUNK_BYTES + 7])
    await take(b.world, Address(a.identity.peer, "files"), "f", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == path.read_bytes()
    sent = a.world.traffic.num_messages
    assert sent[b.identity.peer, "TransferChunk", True] == 3
    giver.close()


async def test_what_the_giver_does_not_give_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    a, _ = await swarm.add()
    b, _ = await swarm.add()
    secret = made_file(tmp_path / "secret", 10)
    giver = Giver(a.world, "files", {"gone": tmp_path / "gone"})
    for name in ("secret", str(secret), "../secret", "", "gone"):
        with pytest.raises(Refused, match=r"no file called|cannot be read: No such file"):
            await take(b.world, Address(a.identity.peer, "files"), name, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    giver.close()


async def test_a_giver_that_is_not_there_is_unreachable_after_the_patience(swarm: Swarm, tmp_path: Path) -> None:
    a, _ = await swarm.add()
    b, _ = await swarm.add()
    for peer in (a.identity.peer, PeerId("x" * 52)):
        with pytest.raises(Unreachable, match=r"no part of f came for 0\.6 seconds"):
            await take(b.world, Address(peer, "files"), "f", tmp_path / "taken", patience_seconds=0.6)


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (TransferManifest(name="f", num_bytes=10, hashes=()), "no manifest"),
        (TransferManifest(name="f", num_bytes=-1, hashes=()), "no manifest"),
        (TransferManifest(name="f", num_bytes=1 << 60, hashes=()), "no manifest"),
        (TransferManifest(name="f", num_bytes=10, hashes=(b"short",)), "no manifest"),
        (TransferAsk(name="f"), "no manifest"),
        (TransferManifest(name="f", num_bytes=3, hashes=(bytes(32),)), "not what its manifest says"),
    ],
)
async def test_a_giver_that_lies_is_named(swarm: Swarm, tmp_path: Path, lie: Message, sentence: str) -> None:
    a, _ = await swarm.add()
    b, _ = await swarm.add()

    class Liar:
        def deliver(self, source: Address, message: object) -> None:
            chunk = TransferChunk(name="f", index=0, data=memoryview(b"abc"))
            answer = chunk if isinstance(message, TransferChunkAsk) else lie
            a.network.send("files", source, answer)

        def lost(self, peer: PeerId, reason: str) -> None:
            pass

    a.network.listen("files", Liar())
    with pytest.raises(PeerMisbehaved, match=sentence):
        await take(b.world, Address(a.identity.peer, "files"), "f", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


class End:
    """A giver or taker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode().strip()

    async def until_done(self, num_bytes: int) -> int:
        """Bytes that were there at first, once `num_bytes` are."""
        first = done = int((await self.line()).split()[0])
        while done < num_bytes:
            done = int((await self.line()).split()[0])
        return first

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def end(*arguments: object) -> AsyncIterator[End]:
    program = [sys.executable, "-m", "tests.runtime.transferring", *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[2])
    try:
        yield End(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_transfer_goes_on_after_either_end_was_killed(tmp_path: Path) -> None:
    path = made_file(tmp_path / "given", 6 * CHUNK_BYTES + 17)
    ticket, home_a, home_b, target = (tmp_path / name for name in ("ticket", "a", "b", "taken"))
    async with end("give", home_a, ticket, 0, path) as giver:
        port = int(await giver.line())
        async with shaped_link(port, bytes_per_second=16e6) as link:
            async with end("take", home_b, ticket, link.port, target) as taker:
                assert await taker.until_done(2 * CHUNK_BYTES) == 0
                await taker.kill()
            assert not target.exists()
            async with end("take", home_b, ticket, link.port, target) as taker:
                first = await taker.until_done(4 * CHUNK_BYTES)
                assert first >= 2 * CHUNK_BYTES, "what had come was lost"
                await giver.kill()
                async with end("give", home_a, ticket, port, path) as giver_again:
                    assert int(await giver_again.line()) == port
                    while (line := await taker.line()) != "whole":
                        assert int(line.split()[0]) > 4 * CHUNK_BYTES
    assert target.read_bytes() == path.read_bytes()
