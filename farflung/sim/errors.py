"""What stops a simulation: each error says who was waiting for what."""


class SimulationError(Exception):
    """Base of the errors of the simulator itself."""


class NothingCanHappen(SimulationError):
    """Nobody has anything left to do, and no message or timer is under way: the program hangs."""


class DeadlinePassed(SimulationError):
    """The virtual deadline of a run came before its coroutine ended."""


class TimeStandsStill(SimulationError):
    """Callbacks follow callbacks without a moment of virtual time passing between them."""


class ProcessDied(SimulationError):
    """The node on which a coroutine ran crashed, and the coroutine with it."""


class NotSimulated(SimulationError):
    """Simulated code reached for a real thread, socket, process or signal."""
