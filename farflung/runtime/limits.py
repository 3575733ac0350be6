"""Every number that bounds what the network of a node takes, waits for, or keeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLimits:
    """Limits of one node's network; the defaults suit links from a rack to the other side of the world."""

    ping_seconds: float = 2.0
    """How often one side of a link asks the other for a sign of life, in turn."""
    silence_seconds_max: float = 7.0
    """A link on which nothing came for so long is lost: the machine is frozen, or the way to it is gone."""
    dial_seconds_max: float = 5.0
    """For one attempt: TCP, TLS and the opening frames."""
    dial_stagger_seconds: float = 0.25
    """After so long without an answer the next endpoint of a peer is tried as well."""
    contact_seconds_max: float = 2.0
    """How long messages wait for a peer that nobody has introduced, or that only it can call."""
    backoff_seconds_min: float = 0.1
    """Pause after the first failed attempt; doubles with each."""
    backoff_seconds_max: float = 5.0
    """Longest pause between two attempts."""
    small_bytes_max: int = 1 << 20
    """Larger messages go over bulk lanes."""
    num_bulk_lanes: int = 4
    """Connections over which one link's large messages are spread: under loss each has its own congestion window."""
    urgent_queue_bytes_max: int = 64 << 20
    """Small messages that may wait for one peer; when more do, the link is lost."""
    bulk_queue_bytes_max: int = 2 << 30
    """The same for large ones."""
    incoming_bytes_max: int = 2 << 30
    """Large messages of one peer that may be incomplete here at one time, together."""
    refusal_seconds: float = 10.0
    """A peer that broke the protocol is not taken back sooner."""
    num_streams_per_peer_max: int = 16
    """Streams that one peer may hold open here, those included that have not said Hello yet."""
    relay_bytes_per_second_max: float = 50e6
    """What a relay forwards for one pair of peers, each direction."""
    relay_queue_bytes_max: int = 16 << 20
    """What may wait at a relay for one pair of peers, each direction; when more does, their link is lost."""

    def __post_init__(self) -> None:
        if self.silence_seconds_max <= 2 * self.ping_seconds:
            raise ValueError("silence_seconds_max must be above twice ping_seconds, since the two sides ping in turn")


OPENING_ONE_WAYS = 8
"""How often something crosses a link until it is open: a proxy, TLS and HTTP/2, and as often once more for patience."""


def limits_for(one_way_seconds: float) -> NetworkLimits:
    """Limits that let links of that delay be opened and held."""
    usual = NetworkLimits()
    return NetworkLimits(
        dial_seconds_max=usual.dial_seconds_max + OPENING_ONE_WAYS * one_way_seconds,
        silence_seconds_max=usual.silence_seconds_max + 2 * one_way_seconds,
        contact_seconds_max=usual.contact_seconds_max + OPENING_ONE_WAYS * one_way_seconds,
    )
