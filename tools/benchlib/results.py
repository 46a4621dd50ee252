"""What was measured, beside what was wanted: figures, their goals, and the lines of the table."""

import dataclasses
import statistics

# Which way is better. A unit that is not here is a mistake, not a matter of taste.
LOWER_IS_BETTER = {
    "s": True, "ms": True, "us": True, "MiB": True, "us CPU/request": True, "CPU s": True, "% of a core": True,
    "requests/s": False, "MiB/s": False, "calls/s": False, "events/s": False, "x": True,
}
BUSY = 0.08  # share of the machine's CPU time that others may have before a time means nothing


@dataclasses.dataclass(frozen=True)
class Goal:
    """One demand: us against a peer (`ratio_...`), or us against a number in the figure's unit."""

    kind: str
    value: float
    of: str | None = None  # the peer that a ratio is taken of; the best one when None

    @classmethod
    def ratio_at_most(cls, value, of=None):
        return cls("ratio_at_most", value, of)

    @classmethod
    def ratio_at_least(cls, value, of=None):
        return cls("ratio_at_least", value, of)

    @classmethod
    def at_most(cls, value):
        return cls("at_most", value)

    @classmethod
    def at_least(cls, value):
        return cls("at_least", value)

    @property
    def is_ratio(self):
        return self.kind.startswith("ratio")

    def is_met(self, value):
        return value <= self.value if self.kind.endswith("at_most") else value >= self.value

    def __str__(self):
        sign = "<=" if self.kind.endswith("at_most") else ">="
        return f"{sign} {self.value:g}" + (" x" if self.is_ratio else "") + (f" {self.of}" if self.of else "")


@dataclasses.dataclass
class Figure:
    """One line of the table: one quantity of one case, ours and the peers', one value a round."""

    row: str
    case: str
    unit: str
    ours: list[float]
    peers: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    goals: tuple[Goal, ...] = ()  # without any the figure is for the record
    notes: list[str] = dataclasses.field(default_factory=list)
    # Per round, the share of the machine's CPU time that went to others; empty for what time does not change.
    noise: list[float] = dataclasses.field(default_factory=list)
    # Why our own value is a lower bound at best, such as a load generator that has no more to give.
    limit: str | None = None
    broke_off: bool = False  # the row could not be measured: the notes say what failed

    def __post_init__(self):
        if self.unit not in LOWER_IS_BETTER:
            raise ValueError(f"{self.row}: is less of {self.unit!r} better, or more? Say it in results.py")
        if isinstance(self.goals, Goal):
            self.goals = (self.goals,)

    @property
    def median(self):
        return statistics.median(self.ours) if self.ours else None

    @property
    def best_peer(self):
        """The name of the peer whose median is best; None without peers."""
        medians = {name: statistics.median(values) for name, values in self.peers.items() if values}
        if not medians:
            return None
        return (min if LOWER_IS_BETTER[self.unit] else max)(medians, key=medians.get)

    @property
    def reference(self):
        """The peer that the table shows: the one that the first goal names, else the best."""
        named = self.goals[0].of if self.goals else None
        return named if named else self.best_peer

    def ratio(self, of=None):
        """Our median divided by a peer's (the reference's when unnamed); None when one is missing or zero."""
        values = self.peers.get(of or self.reference)
        if not self.ours or not values or not statistics.median(values):
            return None
        return self.median / statistics.median(values)

    @property
    def is_noisy(self):
        return bool(self.noise) and statistics.median(self.noise) > BUSY

    @property
    def met(self):
        """Whether all goals are met; None when that cannot be said: nothing measured, a busy machine, no peer."""
        if not self.goals or not self.ours or self.is_noisy:
            return None
        answers = []
        for goal in self.goals:
            value = self.ratio(goal.of or self.best_peer) if goal.is_ratio else self.median
            answers.append(None if value is None else goal.is_met(value))
        if False in answers:
            return None if self.limit else False
        return None if None in answers else True

    def all_notes(self):
        notes = list(self.notes)
        if self.limit:
            notes.append(self.limit)
        if self.is_noisy:
            notes.append(f"counts for nothing: {statistics.median(self.noise):.0%} of the CPU time went to others")
        if spread := self.spread():
            notes.append(spread)
        return notes

    def spread(self):
        """Least and greatest of our rounds, and of the reference's."""
        if len(self.ours) < 2:
            return ""
        text = f"rounds {number(min(self.ours))}-{number(max(self.ours))}"
        values = self.peers.get(self.reference, [])
        return text + (f", peer {number(min(values))}-{number(max(values))}" if len(values) > 1 else "")

    def to_json(self):
        return {
            "row": self.row, "case": self.case, "unit": self.unit, "ours": rounded(self.median),
            "ours_all": [rounded(value) for value in self.ours], "best_peer": self.best_peer,
            "reference": self.reference, "ratio": rounded(self.ratio()),
            "peers": {name: rounded(statistics.median(values)) for name, values in self.peers.items() if values},
            "peers_all": {name: [rounded(value) for value in values] for name, values in self.peers.items()},
            "goals": [str(goal) for goal in self.goals], "met": self.met, "limit": self.limit,
            "broke_off": self.broke_off,
            "noise": [round(share, 3) for share in self.noise], "notes": self.all_notes(),
        }

    def cells(self):
        """What stands in the table, column by column."""
        peer, ratio = self.reference, self.ratio()
        values = self.peers.get(peer)
        return [
            self.row, self.case, "-" if self.median is None else f"{number(self.median)} {self.unit}",
            f"{number(statistics.median(values))} {peer}" if values else "-",
            "-" if ratio is None else f"{ratio:.2f}",
            " and ".join(str(goal) for goal in self.goals) or "-",
            "NO" if self.broke_off else {True: "yes", False: "NO", None: "?" if self.goals else "-"}[self.met],
        ]


COLUMNS = ("row", "case", "us", "best peer", "ratio", "goal", "met", "notes")
WIDTHS = (19, 72, 21, 38, 6, 16, 4)


def text_line(cells, notes=()):
    """A line of the table for people, and one with the notes below it."""
    line = " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()
    return line + ("\n    " + "; ".join(notes) if notes else "")


def markdown_line(cells, notes=()):
    return "| " + " | ".join([*(cell.replace("|", "\\|") for cell in cells), "; ".join(notes)]) + " |"


def rounded(value):
    return None if value is None else float(f"{value:.4g}")


def number(value):
    """Three digits that count, for people."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
