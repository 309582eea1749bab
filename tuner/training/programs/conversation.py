"""What a program prints and asks, and the answers, until it ends.

A connected program (`tuner.current_trial`) sends a line of JSON for each report. It waits for the
answer to metrics, and goes on after most rows: orders say how far, and where it stops. With several
ranks each has a connection: rank 0's reports are those of the trial, and `Decisions` has the
answers and the orders for all.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

import numpy as np

from tuner.config.study import WorkloadTable
from tuner.training import checkpoint_files
from tuner.training.programs.decisions import Answer, Decisions, Position
from tuner.training.programs.lines import ROW, STEP, PatternReports, Report, of_json
from tuner.training.trial import Trial

STOP_SECONDS = 5.0
"""How long a program may take to end after it was asked to, and again after SIGTERM."""
LOOK_SECONDS = 0.2
LATE_SECONDS = 60.0
"""How long a rank waits for rank 0's report until a log line says so."""
LOG_BYTES = 16 << 20
"""The most output of a program that is kept."""
LINE_BYTES = 1 << 20
"""The longest line of its output that is read, and the longest request."""
CHECKPOINT_BYTES = 256 << 20
"""The most bytes of all files of a checkpoint."""
LAST_LINES = 20

LACKS_METRICS = 'schedule "plateau" needs metrics: report them on every rank'

_OF_RANK = re.compile(r"\.?trial-rank-\d+-\d+\.pt(\..*)?")
"""Files of other ranks, also those half written, which come and go while rank 0 saves."""

log = logging.getLogger(__name__)


class Running(Protocol):
    """A program that runs; what this needs of a `subprocess.Popen`."""

    pid: int
    returncode: Any  # None until it has ended

    @property
    def stdout(self) -> IO[bytes] | None:
        """Its output."""

    def poll(self) -> int | None:
        """Return its exit code, or None if it still runs."""

    def wait(self) -> int:
        """Return its exit code when it has ended."""


class ProgramError(RuntimeError):
    """A program that ended with an exit code other than 0; the message has its last lines."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place  # file:line, for the reason of the trial


@dataclass(kw_only=True, eq=False)
class _Peer:
    """A rank's end of its connection."""

    connection: socket.socket
    rank: int = -1  # not known yet
    lines: deque[bytes] = field(default_factory=deque)  # requests that were received
    received: bytes = b""  # the beginning of the next one
    waiting: Mapping[str, Any] | None = None  # a report without an answer
    row: int = -1  # the step of its last row that waits for no answer
    since: float = 0.0  # when it reported last


class Conversation:
    """What a program prints and asks, and the answers, until it ends."""

    def __init__(
        self,
        trial: Trial,
        table: WorkloadTable,
        checkpoints: Path,
        output: BinaryIO,
        *,
        evaluated: int,  # the last step with metrics before the checkpoint
        metric: str,  # of the study
        ranks: int = 1,
    ) -> None:
        self._trial, self._checkpoints, self._output = trial, checkpoints, output
        self._patterns = (
            PatternReports(table.patterns, table.counts_from) if table.patterns else None
        )
        self._metric, self._ranks = metric, ranks
        self._plateau = trial.params.get("schedule") == "plateau"
        self._decisions = Decisions(ranks)
        self._orders: list[Mapping[str, Any]] = []  # that all ranks have to know
        self._is_due = False  # the program knows that it has to save
        self._peers: list[_Peer] = []
        self._was_connected = False  # then lines of the output are no reports
        self._line = b""
        self._written = 0
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._evaluated = evaluated
        self._unsaved: tuple[int, dict[str, np.ndarray]] | None = None
        self._selector = selectors.DefaultSelector()
        self.returned = 0
        """The number of ranks on which a train function has returned."""
        self.raised: Mapping[str, Any] | None = None
        """The first exception of a train function on a rank."""

    @property
    def last_lines(self) -> list[str]:
        """The last lines of the output."""
        return list(self._lines)

    def hold(self, process: Running, listener: socket.socket) -> None:
        """Answer a program until it has ended. Raise `StopTrial` when it must end."""
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read_output)
        self._selector.register(listener, selectors.EVENT_READ, self._connect)
        looked = time.monotonic()
        while True:
            ended = process.poll() is not None
            ready = self._selector.select(0.0 if ended else LOOK_SECONDS)
            if ended and not ready:
                break  # maybe a process that left the group holds the output open
            for key, _ in ready:
                key.data(key.fileobj)
            if time.monotonic() - looked >= LOOK_SECONDS:
                self._trial.yield_to_trainer()
                self._warn_of_late_reports()
                looked = time.monotonic()
        process.wait()
        self._end_of_line()
        self._save_unsaved()
        for report in self._patterns.flush() if self._patterns and process.returncode == 0 else ():
            self._report(report)

    def stop(self, process: Running) -> None:
        """Ask a connected program to end, each rank at its next report, and wait a little."""
        if not self._was_connected:
            return
        self._decisions.stopping = True
        self._order("stop", self._next_to_order)
        self._answer_waiting()
        for peer in tuple(self._peers):
            self._read_lines(peer)
        deadline = time.monotonic() + STOP_SECONDS
        while process.poll() is None and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, LOOK_SECONDS)):
                if key.fileobj is process.stdout:
                    self._drain(process.stdout)
                else:
                    key.data(key.fileobj)

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        for peer in self._peers:
            peer.connection.close()

    # --- output

    def _read_output(self, stream: Any) -> None:
        part = self._drain(stream)
        *whole, self._line = re.split(rb"[\r\n]", self._line + part)
        self._line = self._line[:LINE_BYTES]
        for line in whole:
            self._read_line(line)

    def _drain(self, stream: Any) -> bytes:
        part: bytes = os.read(stream.fileno(), 1 << 16)
        if not part:
            self._selector.unregister(stream)
        kept = part[: max(0, LOG_BYTES - self._written)]
        self._output.write(kept)
        self._output.flush()
        self._written += len(kept)
        return part

    def _end_of_line(self) -> None:
        line, self._line = self._line, b""
        if line:
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        if text.strip():
            self._lines.append(text[:1000])
        if self._was_connected:
            return
        if self._patterns is not None:
            for report in self._patterns.read(text):
                self._report(report)
        elif (found := of_json(text)) is not None:
            self._report(found)

    def _report(self, report: Report) -> None:
        """Report a line of the output, and save the checkpoint that it mentions."""
        save = report.pop("checkpoint", None)
        try:
            if len(report) > 1:
                self._pass_on(report)
        except (ValueError, TypeError) as error:
            hint = ""
            if self._patterns is not None:
                hint = "; counts_from in [workload] is the number of the program's first step"
            raise ProgramError(f"{error}{hint}", "output:0") from error
        if save:
            self._save(self._read_files())

    def _pass_on(self, report: Mapping[str, Any]) -> None:
        """Report to the trial, unless it is of a step before the checkpoint and known already."""
        step, has_metrics = report["step"], bool(report.keys() - {*ROW, STEP})
        known = self._trial.first_step
        if isinstance(step, int) and (step < known or (has_metrics and step <= self._evaluated)):
            return
        if has_metrics:
            self._evaluated = step
        self._trial.report(**report)

    # --- connections

    def _connect(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._peers.append(_Peer(connection=connection))
        self._was_connected = True
        self._selector.register(connection, selectors.EVENT_READ, self._read_requests)

    def _read_requests(self, connection: socket.socket) -> None:
        peer = next(one for one in self._peers if one.connection is connection)
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            self._part_with(peer)
            return
        *whole, peer.received = (peer.received + part).split(b"\n")
        if len(peer.received) > LINE_BYTES:
            raise ProgramError(f"a request is longer than {LINE_BYTES} bytes", "socket:0")
        peer.lines.extend(whole)
        self._read_lines(peer)

    def _read_lines(self, peer: _Peer) -> None:
        while peer.lines:  # after `StopTrial` the rest is read by `stop`
            request = json.loads(peer.lines.popleft())
            if peer.rank < 0:
                if not self._introduce(peer, request):
                    return
            elif "ahead" in request:
                self._take_row(peer, request)
            elif (answer := self._answer(peer, request)) is not None:
                self._send(peer, answer)
                self._answer_waiting()

    def _introduce(self, peer: _Peer, request: Mapping[str, Any]) -> bool:
        """Learn the rank of a connection; refuse a second one of the same rank."""
        rank = int(request["rank"])
        if rank < self._ranks and rank not in [one.rank for one in self._peers]:
            peer.rank = rank
            self._send(peer, {"order": "go on", "step": self._decisions.until})
            for order in self._orders:
                self._send(peer, order)
            return True
        what = f"rank {rank}" if rank else "another process"
        self._send(peer, {"error": f"the trial of {self._ranks} ranks is used by {what} already"})
        self._part_with(peer)
        return False

    def _part_with(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._peers.remove(peer)

    def _answer(self, peer: _Peer, request: Mapping[str, Any]) -> Answer | None:
        """Return the answer to a request; None: it waits for rank 0. Raise `StopTrial`."""
        if "raised" in request:
            self.raised = self.raised or request["raised"]
            return {}
        if "returned" in request:
            self.returned += 1
            return {}
        if "save" in request:
            self._is_due = False
            if not self._decisions.stopping:
                if (files := self._read_files()) is not None:
                    self._unsaved = (request["save"], files)
                if self._ranks == 1:
                    self._save_unsaved()
            return {}
        position = Position(request["step"], is_row=not request.keys() - {*ROW, STEP})
        if peer.waiting is None:
            peer.waiting, peer.since = request, time.monotonic()
        answer = self._decisions.arrive(peer.rank, position)
        if answer is None and peer.rank == 0:
            self._save_unsaved()
            answer = self._judge(request, position)  # after `StopTrial` it is waiting
            self._decisions.decide(position, answer)
            if position.is_row and "error" not in answer:
                self._extend(position.step)
        if answer is None:
            return None
        peer.waiting = None
        if self._plateau and self._decisions.lacks_metrics(peer.rank, position):
            return {"error": LACKS_METRICS}
        return answer

    def _take_row(self, peer: _Peer, request: Mapping[str, Any]) -> None:
        """Take a row that its rank does not wait with, unless the trial is over."""
        position = Position(request["step"], is_row=True)
        peer.row, peer.since = position.step, time.monotonic()
        if peer.rank == 0 and not self._decisions.stopping:
            self._save_unsaved()
            try:
                self._pass_on({name: request[name] for name in (STEP, *ROW)})
            except (KeyError, ValueError, TypeError) as error:
                raise ProgramError(
                    f"a row that no program of ours sends: {error}", "socket:0"
                ) from error
        self._decisions.note(peer.rank, position)
        if peer.rank == 0 and not self._decisions.stopping:
            if self._becomes_due(position):
                self._order("save", self._next_to_order)
            self._extend(position.step)
        elif self._plateau and self._decisions.lacks_metrics(peer.rank, position):
            self._send(peer, {"order": "fail", "error": LACKS_METRICS})
        if peer.rank == 0:
            self._answer_waiting()

    @property
    def _next_to_order(self) -> int:
        """The first step that an order can hold from, which no rank among several has reached."""
        return 0 if self._ranks == 1 else self._decisions.until + 1

    def _extend(self, step: int) -> None:
        """Let all ranks go on after rank 0's row of a step."""
        if self._decisions.extend(step, time.monotonic()):
            self._order("go on", self._decisions.until)

    def _becomes_due(self, position: Position) -> bool:
        """Return whether a checkpoint is due of which the program does not know yet."""
        if self._is_due or not self._decisions.is_common(position):
            return False
        self._is_due = self._trial.checkpoint.due
        return self._is_due

    def _order(self, what: str, step: int) -> None:
        """Send an order to all ranks, those that are not connected yet among them."""
        order = {"order": what, "step": step}
        if what != "go on":
            self._orders.append(order)
        for peer in self._peers:
            if peer.rank >= 0:
                self._send(peer, order)

    def _judge(self, request: Mapping[str, Any], position: Position) -> Answer:
        """Report to the trial and return the answer for all ranks."""
        try:
            self._pass_on(request)
        except (ValueError, TypeError) as error:
            return {"error": str(error)}
        due = self._becomes_due(position)
        # the schedule of each rank reacts to the same value
        return {"due": due, "value": request.get(self._metric)}

    def _answer_waiting(self) -> None:
        """Answer the ranks whose report has been decided meanwhile."""
        for peer in [one for one in self._peers if one.waiting is not None]:
            assert peer.waiting is not None
            if (answer := self._answer(peer, peer.waiting)) is not None:
                self._send(peer, answer)

    def _warn_of_late_reports(self) -> None:
        for peer in self._peers:
            late = peer.waiting is not None or peer.row > self._decisions.until
            if late and time.monotonic() - peer.since > LATE_SECONDS:
                log.warning(
                    "trial %d: rank %d waits since %d seconds for the report of step %d by rank 0; "
                    "rank 0 must make every report",
                    self._trial.number,
                    peer.rank,
                    LATE_SECONDS,
                    peer.row if peer.waiting is None else peer.waiting["step"],
                )
                peer.since = float("inf")

    def _send(self, peer: _Peer, answer: Answer) -> None:
        with suppress(OSError):  # it has ended; its exit code says why
            peer.connection.sendall(json.dumps(answer).encode() + b"\n")

    # --- checkpoints

    def _save_unsaved(self) -> None:
        """Save what rank 0 has asked for, with the files of other ranks for the same call.

        With several ranks that is at rank 0's next report. Until then the others have written their
        files, if they save at all, as ranks meet in the update between.
        """
        if self._unsaved is None:
            return
        (number, files), self._unsaved = self._unsaved, None
        others = self._checkpoints.glob(file_of_rank("*", number))
        self._save(files | checkpoint_files.read(self._checkpoints, others))

    def _read_files(self) -> dict[str, np.ndarray] | None:
        """Return the files of the program and of rank 0, or None if they have too many bytes."""
        files = [
            one
            for one in self._checkpoints.rglob("*")
            if not _OF_RANK.fullmatch(one.name) and one.is_file()
        ]
        size = sum(one.stat().st_size for one in files)
        if size > CHECKPOINT_BYTES:
            log.warning(
                "trial %d: its checkpoint has %d bytes, more than %d, and is not kept",
                self._trial.number,
                size,
                CHECKPOINT_BYTES,
            )
            return None
        return checkpoint_files.read(self._checkpoints, files)

    def _save(self, files: Mapping[str, np.ndarray] | None) -> None:
        if files is not None:
            self._trial.checkpoint.save({"files": dict(files), "evaluated": self._evaluated})


def file_of_rank(rank: int | str, number: int | str) -> str:
    """Return the name of the file with another rank's part of the n-th checkpoint."""
    return f"trial-rank-{rank}-{number}.pt"
