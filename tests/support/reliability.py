"""The table of ``docs/reliability.md``: a row for each schedule of faults, kept from run to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = (
    "| schedule | faults | recovery, s | items lost | items counted twice | largest difference | useful time |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Row:
    """What one schedule came to; ``docs/reliability.md`` says what the figures mean."""

    schedule: str
    faults: int
    recovery_s: float | None
    lost: int
    twice: int
    difference: float
    useful: float | None = None  # share of the time, where it was asked

    def line(self) -> str:
        """As a line of Markdown."""
        useful = "" if self.useful is None else f"{100 * self.useful:.0f} %"
        recovery = "" if self.recovery_s is None else f"{self.recovery_s:.1f}"
        figures = (recovery, self.lost, self.twice, f"{self.difference:.1g}", useful)
        return f"| {' | '.join(map(str, (self.schedule, self.faults, *figures)))} |"


def lines(rows: Iterable[Row]) -> list[str]:
    """The table of these rows alone."""
    return [*HEAD, *(row.line() for row in rows)]


def write(rows: Sequence[Row], path: Path) -> None:
    """Put ``rows`` into the file's table, in place of those of the same schedule; the others stay as they are."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = {_schedule(line): line for line in old.strip().splitlines()[len(HEAD) :]}
    kept |= {row.schedule: row.line() for row in rows}
    path.write_text("\n".join([before + BEGIN, *HEAD, *kept.values(), END]) + after)


def _schedule(line: str) -> str:
    return line.split("|")[1].strip()
