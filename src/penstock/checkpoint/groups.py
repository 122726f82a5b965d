"""Settings of optimizers and their learning rate schedulers by parameter names: they fit any layout.

What a scheduler keeps for each parameter group is taken out of its state and put beside the group:

    scheduler.state_dict()   {"last_epoch": 7, "base_lrs": [0.1, 0.2], …}
    record.scheduler         {"last_epoch": 7, "base_lrs": {"$per_group": "base_lrs"}, …}
    group.scheduler          {"base_lrs": 0.1}   {"base_lrs": 0.2}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from penstock.checkpoint.manifest import GroupRecord, OptimizerRecord
from penstock.checkpoint.plain import decoded, encoded
from penstock.errors import CheckpointError, nearest

_HOW = frozenset({"params", "param_names", "capturable", "differentiable", "foreach", "fused"})
"""Which parameters a group has, and how it computes: matters of the process that runs, not of the one that saved."""

_PER_GROUP = frozenset(
    {"base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "_max_lrs"}
)
"""Keys under which torch's schedulers keep a list with an item for each parameter group."""

_HOLE = "$per_group"


class Managed(NamedTuple):
    """An optimizer, its scheduler (with `state_dict` and `load_state_dict`) or None, and its parameters' names."""

    optimizer: Optimizer
    scheduler: Any
    names: Mapping[Parameter, str]


class _Saved(NamedTuple):
    record: OptimizerRecord
    group: GroupRecord


def record_of(managed: Managed, *, owned: frozenset[str]) -> OptimizerRecord:
    """Returns what an optimizer and its scheduler have beside tensors.

    Args:
        managed: the optimizer.
        owned: names that this rank saves; other ranks save those of copies.

    Raises:
        CheckpointError: a setting or state is not plain.
    """
    groups = managed.optimizer.param_groups
    pulled: list[dict[str, Any]] = [{} for _ in groups]
    scheduler = None
    if managed.scheduler is not None:
        scheduler = _without_lists(managed.scheduler.state_dict(), "scheduler", pulled)
    records = [
        GroupRecord(
            tuple(name for each in group["params"] if (name := managed.names[each]) in owned), _settings(group), own
        )
        for group, own in zip(groups, pulled, strict=True)
    ]
    return OptimizerRecord(
        type(managed.optimizer).__name__, tuple(each for each in records if each.parameters), scheduler
    )


def check_groups(managed: Managed, records: Sequence[OptimizerRecord]) -> None:
    """Raises CheckpointError unless the records have settings for every group and the scheduler, and one each."""
    _matched(managed, records)


def restore_groups(managed: Managed, records: Sequence[OptimizerRecord]) -> None:
    """Gives every parameter group, and the scheduler, what was saved for its parameters.

    Raises:
        CheckpointError: as for `check_groups`; nothing has changed then.
    """
    matched = _matched(managed, records)
    for group, saved in zip(managed.optimizer.param_groups, matched, strict=True):
        for key, value in decoded(saved.group.settings).items() if saved else ():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)  # a captured graph reads this very tensor
            else:
                group[key] = value
    state = next((saved.record.scheduler for saved in matched if saved), None)
    if managed.scheduler is not None and state is not None:
        now: list[dict[str, Any]] = [{} for _ in matched]  # a group without parameters goes on with its own
        _without_lists(managed.scheduler.state_dict(), "scheduler", now)
        kept = [saved.group.scheduler if saved else own for saved, own in zip(matched, now, strict=True)]
        managed.scheduler.load_state_dict(_with_lists(state, kept))


def _matched(managed: Managed, records: Sequence[OptimizerRecord]) -> list[_Saved | None]:
    """Returns for every parameter group what was saved for it, None for a group without parameters."""
    homes = {name: _Saved(record, group) for record in records for group in record.groups for name in group.parameters}
    matched: list[_Saved | None] = []
    for group in managed.optimizer.param_groups:
        names = [managed.names[parameter] for parameter in group["params"]]
        missing = [name for name in names if name not in homes]
        if missing:
            raise CheckpointError(
                f'the checkpoint has no optimizer settings for "{missing[0]}".{nearest(missing[0], homes)} '
                "Give the parameters to the optimizer that were saved, or load without optimizer="
            )
        found = [homes[name] for name in names]
        for name, saved in zip(names, found, strict=True):
            _check_alike(managed, saved, found[0], names=(names[0], name))
        matched.append(found[0] if found else None)
    _check_scheduler(managed, [saved.record.scheduler for saved in matched if saved])
    return matched


def _check_alike(managed: Managed, saved: _Saved, first: _Saved, *, names: tuple[str, str]) -> None:
    kind = type(managed.optimizer).__name__
    if saved.record.kind != kind:
        raise CheckpointError(
            f'"{names[1]}" was saved with the optimizer {saved.record.kind} and this is {kind}; '
            f"resume with {saved.record.kind}, or load without optimizer="
        )
    if _told(saved, managed) != _told(first, managed):
        raise CheckpointError(
            f'"{names[0]}" and "{names[1]}" are in one parameter group and were saved with different settings; '
            "make the parameter groups that were saved"
        )


def _told(saved: _Saved, managed: Managed) -> tuple[Any, ...]:
    """Returns what the parameters of one group must have had alike."""
    if managed.scheduler is None:
        return (saved.group.settings,)
    return saved.group.settings, saved.group.scheduler, saved.record.scheduler


def _check_scheduler(managed: Managed, states: Sequence[Any]) -> None:
    if managed.scheduler is None or not states:
        return
    if states[0] is None:
        raise CheckpointError("the checkpoint has no scheduler state; load without scheduler=")
    if any(state != states[0] for state in states):
        raise CheckpointError(
            "the parameters of one optimizer were saved under schedulers in different states; load into a pipeline of "
            "the same stages, or without scheduler="
        )


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in group.items() if key not in _HOW}
    plain = {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for key, value in plain.items()
    }
    return {key: encoded(value, where=f'optimizer setting "{key}"') for key, value in plain.items()}


def _without_lists(state: Any, path: str, pulled: Sequence[dict[str, Any]]) -> Any:
    """Returns `state` as JSON values; lists with an item for each group go to `pulled`."""
    if isinstance(state, list):
        return [_without_lists(item, f"{path}/{at}", pulled) for at, item in enumerate(state)]
    if type(state) is not dict or not all(isinstance(key, str) for key in state):
        return encoded(state, where=path)
    plain: dict[str, Any] = {}
    for key, value in state.items():
        here = f"{path}/{key}"
        if key in _PER_GROUP and isinstance(value, list | tuple) and len(value) == len(pulled):
            plain[key] = {_HOLE: here}
            for own, item in zip(pulled, value, strict=True):
                own[here] = encoded(item, where=here)
        else:
            plain[key] = _without_lists(value, here, pulled)
    return plain


def _with_lists(state: Any, groups: Sequence[Mapping[str, Any]]) -> Any:
    """Returns the state that a scheduler of these groups loads."""
    if isinstance(state, list):
        return [_with_lists(item, groups) for item in state]
    if isinstance(state, dict):
        if state.keys() == {_HOLE}:
            return [decoded(group.get(state[_HOLE])) for group in groups]
        if not (len(state) == 1 and next(iter(state)).startswith("$")):
            return {key: _with_lists(value, groups) for key, value in state.items()}
    return decoded(state)
