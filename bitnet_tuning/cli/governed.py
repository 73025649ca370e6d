"""--set-governor: the governor held for the length of a run, whatever runs."""

from __future__ import annotations

import os

from bitnet_tuning.console import say
from bitnet_tuning.governor import held
from bitnet_tuning.governor_record import Ledger
from bitnet_tuning.store.state import default_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bitnet_tuning.prepare import Prepared


def governed(prepared: Prepared, root: str, quiet: bool) -> AbstractContextManager[None]:
    """``quiet`` hides what is done, never what is refused."""
    cpus = prepared.plan.cpus or prepared.host.allowed
    ledger = Ledger(root, default_folder(os.environ))
    return held(ledger, prepared.host, cpus, _silent if quiet else say, warn=say)


def _silent(_text: str) -> None:
    pass
