"""Ranks with another configuration or another text are named before any trains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.errors import HandshakeError
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.runtime.transport.protocol import gather_bytes
from penstock.train.agreement import check_alike
from penstock.train.config import Config, DataConfig, OptimizerConfig, RunConfig


class _Exchange:
    """As much of a Pipeline as the check needs."""

    def __init__(self, transport: LoopbackTransport) -> None:
        self._transport = transport

    def exchange(self, payload: bytes) -> list[bytes]:
        return gather_bytes(self._transport, payload)


def _messages(config: Config, digest: str = "d") -> list[str]:
    """What the check says on each of three ranks, of which the last has this configuration and text."""

    def rank(transport: LoopbackTransport) -> str:
        own, text = (config, digest) if transport.rank == 2 else (Config(), "d")
        try:
            check_alike(_Exchange(transport), own, data_digest=text)  # type: ignore[arg-type]
        except HandshakeError as error:
            return str(error)
        return ""

    return run_ranks(rank, 3)


@pytest.mark.parametrize(
    ("config", "digest", "words"),
    [
        (
            replace(Config(), optimizer=OptimizerConfig(learning_rate=0.5)),
            "d",
            "rank 2 has optimizer.learning_rate=0.5 and rank 0 has 0.002; ",
        ),
        (Config(), "e", "rank 2 has SHA-256 of the text=e and rank 0 has d; "),
    ],
)
def test_a_rank_that_differs_is_named_on_every_rank(config: Config, digest: str, words: str) -> None:
    message = words + "start all ranks with the same configuration and the same text"
    assert _messages(config, digest) == [message] * 3


def test_places_and_ports_are_each_host_s_own() -> None:
    own = replace(Config(), run=RunConfig(output="x", port=9), data=DataConfig(paths=("elsewhere.txt",)))
    assert _messages(own) == ["", "", ""]
