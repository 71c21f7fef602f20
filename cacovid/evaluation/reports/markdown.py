"""An evaluation as Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from cacovid.evaluation.result import EvaluationResult, Row, Slice, Undefined
from cacovid.evaluation.rows import FULL
from cacovid.evaluation.timing import MEMORY

UNDEFINED = "n. d."  # in the place of a figure that a method's definition does not cover
Show = Callable[[Row], str]


def as_markdown(result: EvaluationResult) -> str:
    """All figures by method and retention, in percent."""
    parts = [
        [
            f"# {result.model}: {result.questions} questions on {result.clips} clips",
            "",
            f"All video tokens: {percent(result.full_accuracy, result.full_stderr)} % right. Seed {result.seed}. "
            f"Skipped items: {result.skipped}. Standard errors are clustered by video.",
        ],
        _accuracy(result),
        _recall(result),
        _relative(result),
        _versus(result),
        _tokens(result),
        _times(result),
        _swapped(result),
        *_slices(result),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def undefined_line(cell: Undefined) -> str:
    """Why a row is not there, as a list's line."""
    return f"- {cell.method} at {100 * cell.retention:g} %: {cell.reason} ({cell.questions} questions)"


def percent(share: float, stderr: float) -> str:
    """``41.2 ± 1.3``."""
    return f"{100 * share:.1f} ± {100 * stderr:.1f}"


def p_value(p: float) -> str:
    """In three digits at most."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _accuracy(result: EvaluationResult) -> list[str]:
    lines = [
        f"## Accuracy in % (± one standard error, n = {result.questions}) by share of video tokens kept",
        "",
        *_matrix(result, lambda row: percent(row.accuracy, row.stderr), awareness=True),
    ]
    if result.undefined:
        lines += ["", f"{UNDEFINED}: not defined.", "", *map(undefined_line, result.undefined)]
    if result.question_awareness:
        lines += ["", "AUC: the asked object's token scores against the other objects' (0.5: blind to the question)."]
    return lines


def _recall(result: EvaluationResult) -> list[str]:
    if all(row.evidence_recall is None for row in result.rows):
        return []
    lines = ["## Evidence recall in %: kept share of the tokens that show the asked object", ""]
    return lines + _matrix(
        result, lambda row: "-" if row.evidence_recall is None else f"{100 * row.evidence_recall:.1f}"
    )


def _relative(result: EvaluationResult) -> list[str]:
    def show(row: Row) -> str:
        share = "-" if row.share_of_full is None else f"{100 * row.share_of_full:.1f}"
        return f"{share} / {100 * row.agreement:.1f}"

    lines = ["## Accuracy relative to all tokens / answers that are those from all tokens, in %", ""]
    return lines + _matrix(result, show)


def _versus(result: EvaluationResult) -> list[str]:
    rows = [(row, row.versus) for row in result.rows if row.versus is not None]
    if not rows:
        return []
    return [
        "## Against the best other training-free method of the same budget, on the same questions",
        "",
        "Points of accuracy ± one standard error clustered by video; p of McNemar's test (exact, by question) and of "
        "the bootstrap (by video), two-sided. The rival is the best one on these very questions.",
        "",
        *_table(
            ["kept", "method", "rival", "difference", "p, McNemar", "p, bootstrap"],
            [
                [
                    f"{100 * row.retention:g} %",
                    row.method,
                    versus.rival,
                    f"{100 * versus.difference:+.1f} ± {100 * versus.stderr:.1f}",
                    p_value(versus.mcnemar_p),
                    p_value(versus.bootstrap_p),
                ]
                for row, versus in sorted(rows, key=lambda each: -each[0].retention)
            ],
            words=3,
        ),
    ]


def _tokens(result: EvaluationResult) -> list[str]:
    lines = ["## Tokens in % of all video tokens: at the LLM's input / as average over its layers", ""]
    return lines + _matrix(result, lambda row: f"{100 * row.input_share:.1f} / {100 * row.mean_share:.1f}")


def _times(result: EvaluationResult) -> list[str]:
    """One row each: too many figures for a matrix."""
    timed = [each for each in result.times if each.first_token_ms is not None]
    if not timed:
        return []

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return [
        "## Times in ms and memory in MiB, of one question alone",
        "",
        "Medians. First token: compressing and prefill; with the tower: processor, vision tower and projector before "
        f"them. Decoding the file is in none. On: {timed[0].device}. Memory: {MEMORY['CPU']}; on a GPU the "
        f"{MEMORY['GPU']}.",
        "",
        *_table(
            ["kept", "method", "compress", "prefill", "first token", "with the tower", "memory"],
            [
                [
                    f"{100 * each.retention:g} %",
                    each.method,
                    ms(each.compress_ms),
                    ms(each.prefill_ms),
                    ms(each.first_token_ms),
                    ms(each.first_token_with_tower_ms),
                    "-" if each.memory_bytes is None else f"{each.memory_bytes / 2**20:.0f}",
                ]
                for each in sorted(timed, key=lambda each: -each.retention)
            ],
            words=2,
        ),
    ]


def _swapped(result: EvaluationResult) -> list[str]:
    if not result.swapped:
        return []
    found = {(each.method, each.retention): each for each in result.swapped}

    def show(row: Row) -> str:
        each = found.get((row.method, row.retention))
        if each is None:
            return "-"
        return f"{percent(each.accuracy, each.stderr)} ({100 * each.change:+.1f} ± {100 * each.change_stderr:.1f})"

    count = max(each.n for each in result.swapped)
    return [
        "## Control: accuracy in % from tokens kept for another question about the same clip",
        "",
        f"In brackets the change against the method's own tokens, on the same {count} questions. A method that does "
        "not read the question before the LLM does not change.",
        "",
        *_matrix(result, show),
    ]


def _slices(result: EvaluationResult) -> Iterator[list[str]]:
    for by, value in dict.fromkeys((each.by, each.value) for each in result.slices):
        found = {(each.method, each.retention): each for each in result.slices if (each.by, each.value) == (by, value)}
        yield _slice(result, found, f"{by.replace('_', ' ')}: {value}")


def _slice(result: EvaluationResult, found: Mapping[tuple[str, float], Slice], name: str) -> list[str]:
    full = found.get((FULL, 1.0))
    if full is None:
        head = (
            f"## Where random tokens of the same budget lead to a {name.split()[-1]} answer: accuracy in % (questions)"
        )
    else:
        head = f"## {name} ({full.n} questions, all tokens {percent(full.accuracy, full.stderr)}): accuracy in %"

    def show(row: Row) -> str:
        each = found.get((row.method, row.retention))
        if each is None:
            return "-"
        return percent(each.accuracy, each.stderr) + (f" ({each.n})" if full is None else "")

    return [head, "", *_matrix(result, show)]


def _matrix(result: EvaluationResult, show: Show, *, awareness: bool = False) -> list[str]:
    """Rows are methods, columns ratios; with ``awareness`` the AUC as last column."""
    with_auc = awareness and bool(result.question_awareness)
    heads = ["method", *(f"{100 * retention:g} %" for retention in result.retentions)] + ["AUC"] * with_auc
    lines = []
    for method in result.methods:
        found = [result.cell(method, retention) for retention in result.retentions]
        cells = [show(cell) if isinstance(cell, Row) else UNDEFINED for cell in found]
        if with_auc:
            area = result.question_awareness.get(method)
            cells.append("-" if area is None else f"{area:.3f}")
        lines.append([method, *cells])
    return _table(heads, lines, words=1)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """The first ``words`` columns are words, the others figures."""
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines)]
