"""The way to a swarm, step by step: a ticket that is valid, a place that answers, and TLS with the right node there."""

import ipaddress
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from farflung.apps.doctor.finding import Finding, State, fine, note, wrong
from farflung.wire.certificate import CLOCK_SKEW_SECONDS, host_name, to_pem
from farflung.wire.identity import Identity
from farflung.wire.ticket import Meeting, Ticket

TLS = "tls"
SOON_SECONDS = 86400.0
CONNECT_SECONDS = 5.0
NEW_TICKET = "farflung invite --role {role} --expires 7d, where an admin's ticket of the swarm is; then --join that one"


def check_ticket(text: str, now: float) -> tuple[Finding, Ticket | None]:
    """Whether a ticket is valid at wall-clock second `now`; the ticket, if it is."""
    try:
        ticket = Ticket.parse(text, now)
    except ValueError as error:
        return wrong("ticket", str(error), NEW_TICKET.format(role="ROLE")), None
    hours = (ticket.expires_at - now) / 3600
    says = f"of swarm {ticket.swarm!r}, for the role {ticket.role}, valid for {hours:,.1f} h more"
    if ticket.expires_at - now < SOON_SECONDS:
        return note("ticket", says, NEW_TICKET.format(role=ticket.role)), ticket
    return fine("ticket", says), ticket


def check_clock_alone(ticket: Ticket, now: float) -> Finding | None:
    """Whether this machine's clock can be right, as the dates of the ticket tell; None: nothing speaks against it."""
    begins = max(certificate.not_valid_before_utc.timestamp() for certificate in ticket.chain())
    behind = begins + CLOCK_SKEW_SECONDS - now
    if behind <= 0:
        return None
    says = f"the ticket was made {behind:.0f} s after what this machine's clock says: it is behind"
    return wrong("clock", says, "sudo timedatectl set-ntp true")


def check_way(ticket: Ticket, now: float) -> Iterator[Finding]:
    """For each place where the swarm meets: whether anybody listens, and whether that is the node that is meant.

    Any one place is enough: where one is as it should be, others that are not are only noted.
    """
    found = [
        finding
        for meeting in ticket.meetings
        for endpoint in meeting.endpoints
        for finding in _check_endpoint(ticket, meeting, endpoint, now)
    ]
    for finding in found:
        is_harmless = finding.state is State.WRONG and can_be_joined(found)
        yield note(finding.subject, f"{finding.says}; another place of the swarm is well") if is_harmless else finding


def can_be_joined(found: Sequence[Finding]) -> bool:
    """Whether one place of the swarm is as it should be."""
    return any(finding.subject == TLS and finding.state is State.FINE for finding in found)


def _check_endpoint(ticket: Ticket, meeting: Meeting, endpoint: str, now: float) -> Iterator[Finding]:
    host, _, port = endpoint.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        yield wrong("reach", f"{endpoint} does not answer: {error}", _mend_of(host))
        return
    with connection:
        yield fine("reach", f"{endpoint} answers")
        yield _check_address(connection)
        yield _check_tls(ticket, meeting, endpoint, connection, now)


def _mend_of(host: str) -> str:
    if _is_loopback(host.strip("[]")):
        return (
            "this address is that of the machine itself: serve there with --host 0.0.0.0 --advertise ADDRESS:PORT, "
            "and invite again"
        )
    return "see that farflung serve runs there and that a firewall lets its port through: nc -vz HOST PORT"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(connection: socket.socket) -> Finding:
    own, other = (
        ipaddress.ip_address(end[0].partition("%")[0]) for end in (connection.getsockname(), connection.getpeername())
    )
    if other.is_loopback:
        return note("nat", "the swarm meets on this machine, so that nothing can be told of other ways to it")
    if own.is_global or not other.is_global:
        return fine("nat", f"this machine goes by {own} there, and can be called if its firewall lets calls in")
    says = f"this machine goes by {own}, which the internet cannot call: it is behind NAT"
    way = "farflung doctor --host 0.0.0.0 --port PORT --advertise ADDRESS:PORT"
    return note("nat", says, f"--dial-only; or forward a port, and try it: {way}")


def _check_tls(ticket: Ticket, meeting: Meeting, endpoint: str, connection: socket.socket, now: float) -> Finding:
    try:
        secured = _context(ticket, now).wrap_socket(connection, server_hostname=host_name(meeting.peer))
        with secured:
            version = secured.version()
    except ssl.SSLCertVerificationError as error:
        says = f"the node at {endpoint} is not the one that the ticket names: {error.verify_message}"
        return wrong(TLS, says, NEW_TICKET.format(role=ticket.role))
    except (ssl.SSLError, OSError) as error:
        says = f"{endpoint} does not speak TLS as farflung does: {error}"
        return wrong(TLS, says, "see what listens there: ss -ltnp; a proxy must pass TCP through as it is")
    return fine(TLS, f"{version} with {meeting.peer[:8]} at {endpoint}")


def _context(ticket: Ticket, now: float) -> ssl.SSLContext:
    """As a node of the swarm dials."""
    credentials = ticket.issue(Identity.generate(), now)
    context = ssl.create_default_context(cadata=to_pem([credentials.authority]).decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory(prefix="farflung-doctor-") as folder:
        own = Path(folder) / "own.pem"
        own.write_bytes(credentials.private_key_pem + to_pem(credentials.chain))
        context.load_cert_chain(own)
    return context
