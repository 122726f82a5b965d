"""The JSON file of a plan, versioned and checked on load.

{"format": "penstock.plan", "version": 1, "plan": {"data": 8, "tensor": 1, "pipeline": 4, …}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from penstock.errors import NotationError, UserError, check_type
from penstock.notation.files import check_heading, load, remedy
from penstock.planner.plan import Plan

FORMAT = "penstock.plan"
VERSION = 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["penstock.plan"]
    version: int
    plan: Plan


_FILES = msgspec.json.Decoder(_File)  # made once, for threads: see notation/files.py


def plan_to_json(plan: Plan) -> str:
    """Returns `plan` as JSON text."""
    check_type("plan", plan, Plan, example="e.g. penstock.plan_training(…).plans[0]")
    return msgspec.json.encode(_File(format="penstock.plan", version=VERSION, plan=plan)).decode()


def plan_from_json(text: str | bytes) -> Plan:
    """Returns the plan written in `text`; the inverse of `plan_to_json`.

    Raises:
        NotationError: not JSON, another format, another version, or a field that does not fit, and where.
    """
    check_type("text", text, str, bytes, example="what penstock.plan_to_json returns")
    try:
        check_heading(text, FORMAT, VERSION, what="plan")
        return _FILES.decode(text).plan
    except NotationError:
        raise
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NotationError(f"not a plan file: {error}{remedy(error)}") from None
    except UserError as error:
        raise NotationError(f"not a plan file: {error}") from None


def load_plan(path: str | Path) -> Plan:
    """Returns the plan in the file at `path`.

    Raises:
        NotationError: the file cannot be read or does not hold a plan; the message names the file.
    """
    return load(path, lambda data, _: plan_from_json(data))
