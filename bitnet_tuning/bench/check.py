"""Is what an engine writes with a setting right? A wrong setting is out, however fast."""

from __future__ import annotations

from bitnet_tuning import selftest
from bitnet_tuning.bench.failure import failure
from bitnet_tuning.bench.start import TRIES, Patience, Place, run_cli
from bitnet_tuning.bench.words import Words, difference
from bitnet_tuning.errors import TuningError, UnsupportedError
from bitnet_tuning.gguf import read_model
from bitnet_tuning.setting import Setting


class Checker:
    """Compares what a setting writes with what the demo model is known to write, and with
    what the default writes with the user's own model."""

    def __init__(self, place: Place, default: Setting, patience: Patience | None = None) -> None:
        self._place = place
        self._default = default
        self._words = Words(place, default, patience or Patience())
        self._demo: Place | None = None
        self._demo_note: str | None = None
        self._demo_tried = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Which of the two comparisons turned out not to be possible here, and why."""
        return tuple(note for note in (self._demo_note, self._words.note) if note)

    def problem(self, setting: Setting) -> str | None:
        """Why the output is wrong; None where nothing is known against it."""
        try:
            return self._against_demo(setting) or self._words.problem(setting)
        except UnsupportedError as error:
            return error.cause

    def _against_demo(self, setting: Setting) -> str | None:
        if not self._demo_tried:
            self._demo_tried = True
            self._demo = self._usable_demo()
        wrong = self._demo and _demo_problem(self._demo, setting)
        return f"the self-test fails: {wrong}" if wrong else None

    def _usable_demo(self) -> Place | None:
        """The demo model, where the default gets it right."""
        try:
            demo = self._place._replace(model=read_model(selftest.right_model(self._place.engine)))
            wrong = _demo_problem(demo, self._default)
        except TuningError as error:
            wrong = error.cause
        if wrong:
            self._demo_note = (
                f"the self-test tells nothing, for the default does not pass it: {wrong}"
            )
            return None
        return demo


def _demo_problem(demo: Place, setting: Setting) -> str | None:
    """What is wrong with the demo model's text; None where it is right."""
    case = max(selftest.load_cases(), key=lambda case: len(case.prompt))
    got, seconds = "", selftest.RUN_SECONDS
    for _ in range(TRIES):
        done = run_cli(demo, setting, selftest.case_request(case), seconds)
        problem = failure(done, seconds)
        if problem:
            return problem
        got = selftest.continuation(done.stdout, case.prompt).strip()
        if selftest.matches(got, case.text):
            return None
        if not case.text.strip().startswith(got):
            break
    return difference(got, case.text.strip(), "than expected")
