"""Writes the table of docs/models.md: which Hugging Face classes can be cut, by trying each. Some minutes.

python docs/models_table.py
"""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
warnings.simplefilter("ignore")

import transformers  # noqa: E402
from tests.models.test_hugging_face import check, ids  # noqa: E402
from tests.models.tiny import WITHOUT_PLAN, model_types, tiny  # noqa: E402

from penstock.errors import PenstockError  # noqa: E402

PAGE = Path(__file__).parent / "models.md"
LIMIT_SECONDS = 90

TABLE = "## Hugging Face classes"


def outcome(model_type: str) -> str:
    """Returns what trying a class came to."""
    try:
        model = tiny(model_type)
    except Exception as error:
        return f"not tried: no tiny model of it ({type(error).__name__})"
    try:
        for p in (2, 4):
            check(model, {"input_ids": ids()}, ids(), p=p)
    except PenstockError as error:
        return f"refused: {str(error).split(': ', 1)[-1]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return "yes"


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT_SECONDS} seconds")


def main() -> None:
    """Tries every class and writes the page."""
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _too_slow)
    rows = []
    for planned, names in ((True, model_types(planned=True)), (False, WITHOUT_PLAN)):
        for name in sorted(names):
            signal.alarm(LIMIT_SECONDS)
            try:
                found = outcome(name)
            except TimeoutError as error:
                found = f"not tried: {error}"
            signal.alarm(0)
            rows.append((name, "declared" if planned else "found", found))
            print(*rows[-1], sep="\t", flush=True)
    holds = sum(found == "yes" for _, _, found in rows)
    planned_holds = sum(found == "yes" for _, plan, found in rows if plan == "declared")
    lines = [
        TABLE,
        "",
        f"The causal language models of transformers {transformers.__version__}, each built tiny from its "
        "configuration, cut in two and in four, and compared with the unsplit model: logits, loss and every gradient "
        "to 1e-12 in fp64.",
        f"{holds} hold, {planned_holds} of them of the {len(model_types(planned=True))} that declare a plan. "
        "`python docs/models_table.py` makes this table.",
        "",
        "| model type | plan | cut in 2 and 4 |",
        "|---|---|---|",
        *(f"| {name} | {plan} | {found} |" for name, plan, found in rows),
    ]
    PAGE.write_text(PAGE.read_text().split(TABLE)[0] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
