"""What the CPUs' governors were before runs changed them, kept until they are put back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from bitnet_tuning.machine.clock import is_governor, is_policy
from bitnet_tuning.machine.root import Root, read_boot_id
from bitnet_tuning.store.state import State, digest

Governors = dict[str, str]
"""By the folders of their policies."""

KIND = "governor"


class Ledger:
    """What is kept between the runs on one machine, which is a root folder."""

    def __init__(self, root: str, folder: str) -> None:
        self.root = Root(os.path.realpath(root))
        self.state = State(folder)
        mark = digest(self.root.path)
        self.lock = os.path.join(folder, f"{KIND}-{mark}.lock")
        self.users = os.path.join(folder, f"{KIND}-{mark}.users")
        self.record = self.state.path(KIND, mark)

    def load(self) -> Governors | None:
        """What the policies had before any run changed them; None where there is no record
        of this start of the kernel."""
        record = self.state.load(KIND, self.root.path, {"boot": str, "governors": dict})
        if record is None or record["boot"] != read_boot_id(self.root):
            return None
        # It names files that are written to: only such as could have been recorded.
        pairs: dict[object, object] = record["governors"]
        return {
            folder: name
            for folder, name in pairs.items()
            if isinstance(folder, str) and isinstance(name, str)
            if is_policy(folder) and is_governor(name)
        }

    def store(self, governors: Mapping[str, str]) -> bool:
        record = {"boot": read_boot_id(self.root), "governors": dict(governors)}
        return self.state.store(KIND, self.root.path, record)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.record)
