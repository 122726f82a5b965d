"""Writes the tables of docs/models.md: which Hugging Face classes can be cut, by trying each. Some minutes.

python docs/models_table.py              all classes
python docs/models_table.py t5 bart      these rows, which are printed; the page stays as it is
"""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
warnings.simplefilter("ignore")

import transformers  # noqa: E402
from tests.models.test_encoder_decoders import compare  # noqa: E402
from tests.models.test_hugging_face import check, ids  # noqa: E402
from tests.models.tiny import PAIRS, WITHOUT_PLAN, model_types, tiny  # noqa: E402

from penstock.errors import PenstockError  # noqa: E402

PAGE = Path(__file__).parent / "models.md"
LIMIT_SECONDS = 180

TABLE = "## Hugging Face classes"

KINDS = {
    "declared": sorted(model_types(planned=True)),
    "found": sorted(WITHOUT_PLAN),
    "encoder-decoder": sorted(PAIRS),
}
"""How the parts of a class are known -> model types."""


def outcome(model_type: str) -> str:
    """Returns what trying a class came to."""
    try:
        model = tiny(model_type)
    except Exception as error:
        return f"not tried: no tiny model of it ({type(error).__name__})"
    try:
        if model_type in PAIRS:
            compare(model_type)
            return "yes"
        for p in (2, 4):
            check(model, {"input_ids": ids()}, ids(), p=p)
    except PenstockError as error:
        return f"refused: {str(error).split(': ', 1)[-1]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | TimeoutError):
            raise
        return f"fails: {type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"
    return "yes"


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT_SECONDS} seconds")


def tried(model_type: str) -> str:
    """Returns what trying a class came to, within a limit."""
    signal.alarm(LIMIT_SECONDS)
    try:
        return outcome(model_type)
    except TimeoutError as error:
        return f"not tried: {error}"
    finally:
        signal.alarm(0)


def main() -> None:
    """Tries the classes that are asked for; writes the page if that is all of them."""
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _too_slow)
    asked = sys.argv[1:]
    rows = []
    for kind, names in KINDS.items():
        for name in [name for name in names if not asked or name in asked]:
            rows.append((name, kind, tried(name)))
            print(*rows[-1], sep="\t", flush=True)
    if not asked:
        write(rows)


def write(rows: list[tuple[str, str, str]]) -> None:
    """Puts the outcomes of one run of all classes into the page."""
    page = PAGE.read_text()
    holds = {kind: sum(found == "yes" for _, each, found in rows if each == kind) for kind in KINDS}
    lines = [
        TABLE,
        "",
        f"The language models of transformers {transformers.__version__}, each built tiny from its configuration, "
        "cut in two and in four, and compared with",
        "the unsplit model: logits, loss and every gradient to 1e-12 in fp64 (FSMT with its mask filled in fp64, "
        "where its own code overflows).",
        f"{sum(holds.values())} hold: {holds['declared']} of the {len(KINDS['declared'])} that declare a plan, "
        f"{holds['found']} of {len(KINDS['found'])} decoders without one, {holds['encoder-decoder']} of "
        f"{len(KINDS['encoder-decoder'])} encoder-decoders.",
        "`python docs/models_table.py` makes this table.",
        "",
        "| model type | plan | cut in 2 and 4 |",
        "|---|---|---|",
        *(f"| {name} | {kind} | {found} |" for name, kind, found in rows),
    ]
    PAGE.write_text(page.split(TABLE)[0] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
