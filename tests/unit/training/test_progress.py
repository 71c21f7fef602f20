import io

from rich.console import Console

from cluster.training.progress import TrainingProgress


def test_one_line_of_eighty_columns_holds_all_figures():
    progress = TrainingProgress(2000)
    progress.report({"step": 1233.0, "top_k_reward": 0.9375, "loss": 2.12345, "combinations_per_second": 1274.3})
    screen = io.StringIO()
    Console(file=screen, width=80).print(progress._bar)
    (line,) = screen.getvalue().splitlines()
    assert "1234/2000 reward 0.938  loss 2.123  1274 combinations/s left" in line
    assert "…" not in line
