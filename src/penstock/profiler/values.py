"""The values of a profile: frozen, comparable, and what its file holds field for field."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    """Seconds of something that was repeated.

    Attributes:
        seconds: the median.
        low: a quarter of the repetitions took less.
        high: a quarter took more.
        repeats: how many there were; 0 for a time that was computed.
    """

    seconds: float
    low: float
    high: float
    repeats: int = 0


NOTHING = Timing(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class OpTimings:
    """Seconds of each kind of op on one microbatch.

    Attributes:
        forward: F before a full backward.
        backward: B.
        split_forward: F before a backward that is split.
        input_grad: I.
        weight_grad: W.
        recompute_backward: B that runs the forward once more.
        recompute_input_grad: I that runs the forward once more.
    """

    forward: Timing = NOTHING
    backward: Timing = NOTHING
    split_forward: Timing = NOTHING
    input_grad: Timing = NOTHING
    weight_grad: Timing = NOTHING
    recompute_backward: Timing = NOTHING
    recompute_input_grad: Timing = NOTHING


@dataclass(frozen=True)
class Boundary:
    """What passes from a layer to the next, and back.

    Attributes:
        bytes: of all its tensors.
        tensors: how many they are; each is a message.
        grad_bytes: of those whose gradient comes back.
        grad_tensors: how many these are.
    """

    bytes: int = 0
    tensors: int = 0
    grad_bytes: int = 0
    grad_tensors: int = 0


@dataclass(frozen=True)
class LayerProfile:
    """What one layer costs on one microbatch.

    Attributes:
        name: in the model.
        kind: number of the kind of layer; layers of one kind were measured once.
        seconds: of its ops, as a stage of its own.
        saved: of that, what its ops take less behind the layer before in one stage: what an op costs however many
            layers it has, its stage's first layer has paid.
        accumulate_seconds: of `backward` and of `weight_grad`, what it takes to add to gradients that are there
            already: the first backward of a step takes less by that.
        parameter_bytes: of its parameters; tied ones on the first layer that has them.
        gradient_bytes: of the gradients of those that are trained.
        activation_bytes: what F keeps for the backward, its input and output apart.
        keeps_input: whether it keeps its input too.
        keeps_output: whether it keeps its output too.
        input_bytes: of its input, on the first layer those of the batch.
        deferred_bytes: what I keeps for W, the layer's input and its output's gradient apart.
        defers_input: whether it keeps its input too.
        defers_output_grad: whether it keeps its output's gradient too.
        output: what it passes on; of the last layer, what the model gives.
        forward_peak_bytes: the most that F holds beyond what was there before.
        backward_peak_bytes: likewise of B, what F has kept counted as there before.
        recompute_peak_bytes: likewise of a B that runs the forward once more.
    """

    name: str
    kind: int
    seconds: OpTimings
    accumulate_seconds: float = 0.0
    parameter_bytes: int = 0
    gradient_bytes: int = 0
    activation_bytes: int = 0
    keeps_input: bool = False
    keeps_output: bool = False
    input_bytes: int = 0
    deferred_bytes: int = 0
    defers_input: bool = False
    defers_output_grad: bool = False
    output: Boundary = Boundary()
    forward_peak_bytes: int = 0
    backward_peak_bytes: int = 0
    recompute_peak_bytes: int = 0
    saved: OpTimings = OpTimings()

    def behind(self, op: str) -> float:
        """Returns the seconds that the layer adds to an op of the stage that has the layer before it, too."""
        return max(0.0, float(getattr(self.seconds, op).seconds - getattr(self.saved, op).seconds))


@dataclass(frozen=True)
class HostCosts:
    """What the runtime's own work takes on a rank's host.

    Attributes:
        op_seconds: between the end of an op and the next, without messages.
        step_seconds: of a step beside its program: the ranks agree, and the loss goes to all of them.
        gather_seconds_per_byte: to lay gradients side by side for the other ranks that hold a stage.
        sum_seconds_per_byte: to add up two ranks' gradients and put the sum in their place.
        waking: (seconds that a rank stood still, seconds that its next op takes longer), by rising wait.
    """

    op_seconds: float = 0.0
    step_seconds: float = 0.0
    gather_seconds_per_byte: float = 0.0
    sum_seconds_per_byte: float = 0.0
    waking: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class MessageCosts:
    """What a message of n bytes between two ranks takes: lines fitted through several n.

    Attributes:
        send_seconds: that the sending rank stands still, for any n.
        send_seconds_per_byte: likewise, for each byte.
        receive_seconds: that the receiving rank stands still although the message is there.
        receive_seconds_per_byte: likewise, for each byte.
        latency_seconds: from the end of the send until a rank that waited for it goes on, its part in
            `receive_seconds` apart.
        seconds_per_byte: likewise, for each byte; 0 where all bytes have been counted at the two ends.
    """

    send_seconds: float = 0.0
    send_seconds_per_byte: float = 0.0
    receive_seconds: float = 0.0
    receive_seconds_per_byte: float = 0.0
    latency_seconds: float = 0.0
    seconds_per_byte: float = 0.0

    def sends(self, boundary: Boundary, *, back: bool) -> float:
        """Returns the seconds that sending `boundary`, or its gradient, keeps the rank."""
        num_bytes, tensors = _size(boundary, back)
        return tensors * self.send_seconds + num_bytes * self.send_seconds_per_byte

    def receives(self, boundary: Boundary, *, back: bool) -> float:
        """Returns the seconds that taking `boundary`, or its gradient, keeps the rank."""
        num_bytes, tensors = _size(boundary, back)
        return tensors * self.receive_seconds + num_bytes * self.receive_seconds_per_byte


def _size(boundary: Boundary, back: bool) -> tuple[int, int]:
    return (boundary.grad_bytes, boundary.grad_tensors) if back else (boundary.bytes, boundary.tensors)


@dataclass(frozen=True)
class LinkLevel:
    """Messages between ranks that share a group of so many, as a host, and no smaller one."""

    ranks_per_group: int
    messages: MessageCosts


@dataclass(frozen=True)
class Profile:
    """What a model costs on a kind of device.

    Attributes:
        device: what it was measured on, or computed for.
        measured: false where times come from formulas.
        microbatch_size: samples of the microbatch.
        layers: in model order.
        host: the runtime's own work.
        links: from the innermost out; empty where no messages were measured.
        memory_bytes: of the device; 0 where it is not known.
        speeds: of the ranks that measured, how many times faster than the profile each was; empty for one alone.
        sequence: tokens of each sample, where samples are rows of whole numbers; 0: they are not.
    """

    device: str
    measured: bool
    microbatch_size: int
    layers: tuple[LayerProfile, ...]
    host: HostCosts = HostCosts()
    links: tuple[LinkLevel, ...] = field(default=())
    memory_bytes: int = 0
    speeds: tuple[float, ...] = ()
    sequence: int = 0

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def messages(self, source: int, target: int) -> MessageCosts:
        """Returns what messages from rank `source` to rank `target` take; nothing where none were measured."""
        for level in self.links:
            if source // level.ranks_per_group == target // level.ranks_per_group:
                return level.messages
        return self.links[-1].messages if self.links else MessageCosts()
