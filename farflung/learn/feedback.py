"""Error feedback: what a lossy codec drops of one message is added to the next, so that nothing is lost for good.

With input x_t, residual e_t and codec C (Seide et al. 2014; Karimireddy et al. 2019, algorithm 2):

    sent_t = C(x_t + decay * e_t)        e_(t+1) = x_t + decay * e_t - sent_t

With decay 1 the sum of all that was sent differs from the sum of all inputs by the last residual alone, which stays
bounded because every codec's error is less than its input (`wire.levels`). Residuals are float32 on the CPU,
one set for each stream of messages, and belong in the checkpoint.
"""

import math
from collections.abc import Mapping

import torch

from farflung.learn.codecs import CODECS
from farflung.learn.parameters import Tensors
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor, num_encoded_bytes


class ErrorFeedback:
    """The residuals of one stream of messages.

    Each call consumes its input: a message that has to be sent again is sent from the same encoded bytes, and one that
    will never be applied is undone by `load` of the `state` from before.
    """

    def __init__(self, decay: float = 1.0) -> None:
        """`decay` below 1 forgets old errors, for streams whose receivers come and go.

        Raises:
            ValueError: `decay` is not in [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of error feedback is between 0 and 1, not {decay}")
        self.decay = decay
        self._residuals: Tensors = {}

    def compress(self, tensors: Mapping[str, torch.Tensor], codec: str) -> dict[str, WireTensor]:
        """`tensors` (floating point) with their residuals, encoded; they decode to the same shapes and dtypes.

        Raises:
            ValueError: values that the codec cannot hold, or residuals of other shapes; no residual has changed.
        """
        encoded = {name: self._encode(name, tensor, codec) for name, tensor in tensors.items()}
        for name, (_, error) in encoded.items():
            # A stream that is exact so far takes no memory.
            if name in self._residuals or error.any():
                self._residuals[name] = error
        return {name: wire for name, (wire, _) in encoded.items()}

    def state(self) -> Tensors:
        """The residuals by name: copies, for a checkpoint."""
        return {name: residual.clone() for name, residual in self._residuals.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` gave."""
        self._residuals = {name: residual.to("cpu", torch.float32, copy=True) for name, residual in state.items()}

    def _encode(self, name: str, tensor: torch.Tensor, codec: str) -> tuple[WireTensor, torch.Tensor]:
        """The encoded tensor, and its error: float32."""
        values = tensor.detach().to("cpu", torch.float32, copy=True)
        residual = self._residuals.get(name)
        if residual is not None:
            _check_shape(name, residual, tensor)
            values.add_(residual, alpha=self.decay)
        encoded = encode_tensor(values.to(tensor.dtype), codec)
        # Not in place: raw bytes are a view of the values.
        error = values - decode_tensor(encoded, num_bytes_max=tensor.numel() * tensor.element_size())
        if not error.isfinite().all():
            raise ValueError(f"{name} holds values that {codec} cannot; an infinite error cannot be made good")
        return encoded, error


def _check_shape(name: str, residual: torch.Tensor, tensor: torch.Tensor) -> None:
    if residual.shape != tensor.shape:
        raise ValueError(
            f"the residual of {name} has shape {tuple(residual.shape)} and the tensor {tuple(tensor.shape)}; "
            "load the state of a run with the same model"
        )


def choose_codec(bytes_per_second: float, num_bytes: int, seconds_available: float) -> tuple[str, str]:
    """(codec, why): the most exact one in which a message of `num_bytes` of float32 passes the link in time.

    `seconds_available` is what may be spent on the wire, for example until the next message. If nothing is fast
    enough: the smallest. Anything coarser than raw is meant for use with `ErrorFeedback`.

    Raises:
        ValueError: a negative or undefined number.
    """
    given = {"bytes per second": bytes_per_second, "bytes": num_bytes, "seconds": seconds_available}
    for what, number in given.items():
        if math.isnan(number) or number < 0:
            raise ValueError(f"the number of {what} is {number}; a codec is chosen for one of at least 0")
    num_bytes_fitting = bytes_per_second * seconds_available
    for codec in CODECS:
        size = num_encoded_bytes(codec, num_bytes // 4)
        if size <= num_bytes_fitting:
            return codec, f"{codec} is {_size(size)}, and {_size(num_bytes_fitting)} pass in {seconds_available:.3g} s"
    size = num_encoded_bytes(CODECS[-1], num_bytes // 4)
    return CODECS[-1], f"even {_size(size)} are more than the {_size(num_bytes_fitting)} that pass in time"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.3g} MB"
