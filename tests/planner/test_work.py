"""What layers take follows the formulas: FLOPs at the stated rate, bytes, collectives; or the profile."""

from dataclasses import replace

import numpy as np
import pytest
from tests.planner.test_description import GPT3_175B, LLAMA_405B

from penstock.cluster import Link
from penstock.errors import UserError
from penstock.partition import LayerCosts
from penstock.planner import DeviceKind, MeasuredLayers, StateBytes, describe
from penstock.planner.measured import profiled_work
from penstock.planner.work import described_work

IDEAL = DeviceKind("ideal", 80e9, 1e15, efficiency=1.0)
FREE = Link()


@pytest.mark.parametrize("config", [LLAMA_405B, GPT3_175B])
def test_on_an_ideal_device_a_step_takes_its_flops(config: dict[str, object]) -> None:
    model = describe(config)
    table = described_work(model, 2048, StateBytes()).table(1, 1, IDEAL, FREE)
    assert table.seconds.sum() == pytest.approx(model.step_flops(1, 2048) / 1e15)
    assert table.parameter.sum() == pytest.approx(
        2 * model.parameters + 2 * model.vocabulary * model.hidden * model.tied
    )


def test_state_is_18_bytes_a_parameter() -> None:
    model = describe(LLAMA_405B)
    table = described_work(model, 2048, StateBytes()).table(1, 1, IDEAL, FREE)
    assert (table.parameter + table.gradient + table.optimizer).sum() == 18 * model.parameters


def test_a_tensor_degree_divides_work_and_activations() -> None:
    work = described_work(describe(LLAMA_405B), 2048, StateBytes())
    whole, part = (work.table(1, degree, IDEAL, FREE) for degree in (1, 8))
    assert part.seconds.sum() == pytest.approx(whole.seconds.sum() / 8)
    assert part.activation[1:-1] == pytest.approx(whole.activation[1:-1] / 8)
    assert part.deferred[1:-1] == pytest.approx(whole.deferred[1:-1] / 8)
    assert part.parameter.sum() == pytest.approx(whole.parameter.sum() / 8, rel=1e-4), "norms are on every device"


def test_scores_that_are_written_out_pass_through_memory_and_once_more_in_the_backward() -> None:
    fused = describe(GPT3_175B)
    slow = DeviceKind("slow", 80e9, 1e15, efficiency=1.0, memory_bytes_per_second=1e12)
    written, kept = (
        described_work(replace(fused, fused_attention=how), 2048, StateBytes()).table(1, 8, slow, FREE)
        for how in (False, True)
    )
    scores = 96 / 8 * 2048**2 / 1e12
    longer = written.seconds[:, 1] - kept.seconds[:, 1]
    assert longer == pytest.approx([13 * scores, 34 * scores, 0])
    assert written.activation.tolist() == kept.activation.tolist()


def test_collectives_gather_and_scatter_the_layer_twice_each_way() -> None:
    # Korthikanti et al. 2022, section 4.2.2: two gathers and two scatters of s·b·h values in a layer's forward.
    model = describe(GPT3_175B)
    table = described_work(model, 2048, StateBytes()).table(4, 8, IDEAL, Link(0.0, 1e11))
    each = 7 / 8 * 2 * 4 * 2048 * model.hidden / 1e11
    assert table.collective[:, 1] == pytest.approx([4 * each, 4 * each])


def test_few_tokens_and_thin_slices_are_less_efficient() -> None:
    real = DeviceKind("real", 80e9, 1e15, 0.8, memory_bytes_per_second=3e12)
    work = described_work(describe(LLAMA_405B), 512, StateBytes())

    def rate(size: int, tensor: int) -> float:
        return describe(LLAMA_405B).step_flops(size, 512) / tensor / work.table(size, tensor, real, FREE).seconds.sum()

    rates = [rate(8, 1), rate(1, 1), rate(1, 8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0.8e15


def test_a_profile_scales_with_sequences_and_speed() -> None:
    costs = LayerCosts(
        (1.0, 2.0), (1.0, 2.0), (1.0, 2.0), parameter_bytes=(10, 20), activation_bytes=(5, 5), boundary_bytes=(3, 3)
    )
    work = profiled_work(MeasuredLayers(costs, sequences=2), StateBytes())
    table = work.table(4, 1, DeviceKind("twice", 1e9, 1e12, speed=2.0), FREE)
    assert table.seconds.tolist() == [[1, 2]] * 3
    assert table.activation.tolist() == [10, 10]
    assert table.again.tolist() == [0, 6]
    assert (table.gradient / table.parameter).tolist() == [2, 2], "fp32 gradients of bf16 weights"
    assert work.sequence_flops == 0
    with pytest.raises(UserError, match="a profile measures whole layers, use tensor degree 1"):
        work.table(4, 2, IDEAL, FREE)


def test_own_bytes_of_a_profile_are_kept() -> None:
    costs = LayerCosts((1.0,), parameter_bytes=(10,), gradient_bytes=(11,), optimizer_bytes=(12,))
    table = profiled_work(MeasuredLayers(costs), StateBytes()).table(1, 1, IDEAL, FREE)
    assert np.concatenate([table.parameter, table.gradient, table.optimizer]).tolist() == [10, 11, 12]
