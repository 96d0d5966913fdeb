"""Progress of a long run: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LINE_INTERVAL_S = 5.0


def log(message: str) -> None:
    """Tell the user something; standard output is kept for results."""
    tqdm.write(message, file=sys.stderr)


class Progress:
    """Counts `unit`s done out of `total` and shows rate, errors and time left on `stream`."""

    def __init__(
        self, total: int, label: str, unit: str = "images", stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._label, self._unit = total, label, unit
        self._done = self._errors = self._shown = 0
        self._start_s = self._last_line_s = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, desc=label, unit=f" {unit}", file=self._stream, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._done > self._shown:
            self._write_line()

    def update(self, num_done: int, num_errors: int = 0) -> None:
        """Add what was done since the last call."""
        self._done += num_done
        self._errors += num_errors
        if self._bar is not None:
            if self._errors:
                self._bar.set_postfix(errors=self._errors, refresh=False)
            self._bar.update(num_done)
        elif time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._write_line()

    def _write_line(self) -> None:
        now_s = time.monotonic()
        self._last_line_s, self._shown = now_s, self._done
        rate = self._done / max(now_s - self._start_s, 1e-9)
        left_s = (self._total - self._done) / rate if rate else float("inf")
        print(
            f"{self._label}: {self._done:,}/{self._total:,} {self._unit}, {rate:,.1f}/s, "
            f"{self._errors} errors, {format_seconds(left_s)} left",
            file=self._stream,
            flush=True,
        )


def format_seconds(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3:05 min, 2:10 h."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
