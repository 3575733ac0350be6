"""What only the swarm itself can tell: whether it takes this node, whether clocks agree, and who runs which version."""

from collections.abc import Iterator, Mapping

from farflung.apps.announced import AnnouncedServers
from farflung.apps.doctor.finding import Finding, fine, note, wrong
from farflung.apps.joining import JoinFailed
from farflung.apps.wiring import Connection
from farflung.mesh.records import CLOCK_ERROR_SECONDS_MAX
from farflung.world.address import PeerId
from farflung.world.version import __version__

CLOCK_SECONDS_MAX = 5.0
"""Beyond this, times in logs of several machines mislead."""
SET_CLOCK = "sudo timedatectl set-ntp true"
SHORT_PEER = 8


def check_swarm(ticket: str) -> Iterator[Finding]:
    """Take part for a moment, and compare."""
    try:
        connection = Connection(ticket)
    except JoinFailed as error:
        mend = f"if it is about time: {SET_CLOCK}; else farflung status --join TICKET from where it works"
        yield wrong("join", str(error), mend)
        return
    with connection:

        async def look() -> tuple[dict[PeerId, float], dict[PeerId, str]]:
            node = connection.node
            servers = AnnouncedServers(node.member)()
            ahead = node.member.clocks_ahead_seconds()
            return ahead, {peer: info.version for peer, info in servers.items()}

        ahead, versions = connection.bridge.run(look())
        yield fine("join", f"the swarm takes this node; {len(ahead)} others are there")
    yield check_clocks(ahead)
    yield check_versions(versions)


def check_clocks(ahead_seconds: Mapping[PeerId, float]) -> Finding:
    """`ahead_seconds`: of other nodes' clocks, before this one's."""
    if not ahead_seconds:
        return note("clock", "nobody else is there to compare with")
    furthest = max(sorted(ahead_seconds), key=lambda peer: abs(ahead_seconds[peer]))
    seconds = ahead_seconds[furthest]
    side = "ahead of" if seconds > 0 else "behind"
    how = f"the clock of {furthest[:SHORT_PEER]} is {abs(seconds):.1f} s {side} this one"
    num_off = sum(abs(one) > CLOCK_SECONDS_MAX for one in ahead_seconds.values())
    if num_off == 0:
        return fine("clock", f"{how}, and no other is further off")
    where = "here" if num_off > len(ahead_seconds) / 2 else "there"
    limit = f"records are refused beyond {CLOCK_ERROR_SECONDS_MAX:.0f} s"
    return wrong("clock", f"{how}; {limit}", f"{where}: {SET_CLOCK}")


def check_versions(versions: Mapping[PeerId, str]) -> Finding:
    """`versions`: of the software that other nodes run."""
    others = {peer: version for peer, version in sorted(versions.items()) if version != __version__}
    if others:
        who = ", ".join(f"{peer[:SHORT_PEER]} runs {version}" for peer, version in others.items())
        newest = max([__version__, *others.values()], key=_number)
        says = f"this is farflung {__version__}, and {who}"
        return wrong("version", says, f"on those that are older: python -m pip install 'farflung=={newest}'")
    how_many = f"as {len(versions)} servers" if versions else "and no server tells its own"
    return fine("version", f"farflung {__version__}, {how_many}")


def _number(version: str) -> tuple[int, ...]:
    """For comparison; what is no number counts as nothing."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
