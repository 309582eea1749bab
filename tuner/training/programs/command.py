"""Commands as workloads: each trial is a program that somebody else may have written.

It reports through a socket (`tuner.current_trial`), by JSON lines or by patterns.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tuner.config import StudySpec
from tuner.config.study import PLACEHOLDER
from tuner.core.commands import clean_environment
from tuner.core.errors import WorkloadError
from tuner.training.programs import permission
from tuner.training.programs.conversation import Conversation, ProgramError, Running
from tuner.training.programs.limits import Limits
from tuner.training.programs.other_user import OtherUser
from tuner.training.programs.program import Program, failure, running, variables
from tuner.training.train_functions import TrainFunction

KEPT = "TUNER_COMMAND_ENVIRONMENT"
"""The worker's variable with names of further variables for programs, separated by spaces."""


def load(spec: StudySpec, allowed: Sequence[str]) -> TrainFunction:
    """Return the train function that runs the command of a study. Nothing is run here.

    Raise `WorkloadError` if the command is not allowed, or the worker's limits cannot be read.
    """
    command = spec.workload.command
    assert command is not None
    permission.refuse_unless_allowed(command, allowed)
    name = spec.workload.function
    return TrainFunction(
        name=name,
        call=CommandProgram(spec, command),
        arguments={},
        data_name=f"data of {name}",
        data_digest="",
    )


class CommandProgram(Program):
    """The train function of a study's command."""

    def __init__(self, spec: StudySpec, command: Sequence[str]) -> None:
        super().__init__(spec, Limits.of(), OtherUser.of())
        self._command = command

    def start(self, values: Mapping[str, Any]) -> AbstractContextManager[Running]:
        """Run the command within the context."""
        folder = Path(values["folder"]) if self.table.folder == "trial" else Path.cwd()
        words = self.launched(self._words(values))
        return running(words, folder, self._environment(values), self.user)

    def described(self) -> Mapping[str, Any]:
        """Return nothing more."""
        return {}

    def failure(self, code: int, lines: Sequence[str], _conversation: Conversation) -> ProgramError:
        """Return the failure of a program by its exit code and its output."""
        name = Path(self._command[-1 if len(self._command) == 1 else 1]).name
        return failure(code, lines, name)

    def _words(self, values: Mapping[str, Any]) -> list[str]:
        words = [render(word, values) for word in self._command]
        if words[0] in ("python", "python3"):
            words[0] = sys.executable
        # relative to this folder; the program has another one
        return [
            str(Path(word).resolve()) if word == given and word and Path(word).exists() else word
            for word, given in zip(words, self._command, strict=True)
        ]

    def _environment(self, values: Mapping[str, Any]) -> dict[str, str]:
        found = clean_environment(keep=os.environ.get(KEPT, "").split())
        threads = self.spec.training.threads
        if threads != "auto":
            found["OMP_NUM_THREADS"] = str(threads)
        who = {} if self.user is None else self.user.variables
        return found | who | variables(values)


def render(word: str, values: Mapping[str, Any]) -> str:
    """Return a word of a command with its placeholders replaced; `{{` and `}}` are braces."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            raise WorkloadError(
                f"[workload] command: expected {{{match[1]}}} to be a parameter of the trial, or "
                f"one of {', '.join(values)}"
            )
        return str(values[match[1]])

    return PLACEHOLDER.sub(value_of, word)
