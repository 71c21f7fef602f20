"""Which rollouts are asked for when the learners are set back, and how parts of items become whole again."""

from collections import Counter

import torch

from actors.pool import RolloutPool
from actors.task import RolloutTask, SetAside, Task, TaskResult
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.order import ItemOrder
from cacovid.records import Rollout, VideoQuestion
from cluster.training.rollout_schedule import RolloutSchedule
from tests.support.made_records import make_record

ITEMS = [VideoQuestion(f"item-{n}", "v.mp4", "?", ("a", "b"), "A", "multiple choice", "made") for n in range(8)]


class Worker:
    """Rolls made records out and counts what it was asked."""

    def __init__(self, bad: str | None = None) -> None:
        self.asked: Counter[tuple[int, str, int]] = Counter()  # step, item, part
        self.explored: dict[int, float] = {}  # by step
        self.bad = bad  # an item whose second part cannot be used

    def __call__(self, task: Task) -> TaskResult:
        assert isinstance(task, RolloutTask)
        rollouts, inputs, aside = [], [], []
        self.explored[task.step] = task.explore
        for item in task.items:
            self.asked[task.step, item.id, task.part.number] += 1
            if item.id == self.bad and task.part.number == 1:
                aside.append(SetAside(item, "unusable"))
                continue
            record = make_record(int(item.id.split("-")[1]))
            rows = task.part.rows(8)
            iterations = [
                type(scored)(scored.combinations.rows(rows), scored.reward[rows], scored.likelihood[rows])
                for scored in record.iterations
            ]
            rollouts.append(Rollout(item.id, task.step, task.weights.version, tuple(iterations)))
            inputs.append(record.parts()[1])
        inputs = inputs if task.part.number == 0 else []
        sizes = tuple(seen.nbytes() for seen in inputs)
        return TaskResult(tuple(rollouts), inputs=tuple(inputs), input_bytes=sizes, set_aside=tuple(aside))


def made(worker: Worker, **overrides: object) -> RolloutSchedule:
    settings = {
        "actors.count": 0,
        "run.items_per_step": 2,
        "run.steps": 8,
        "actors.items_per_task": 1,
        "sampling.group": 8,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    config = with_overrides(TrainConfig(), settings)
    pool = RolloutPool(None, config.actors, worker, 10.0)
    schedule = RolloutSchedule(pool, ItemOrder(ITEMS, config.run.items_per_step, 0), config)
    schedule.publish(0, {})
    return schedule


def go(schedule: RolloutSchedule, steps: range) -> list[list[str]]:
    """Ids of each step's items."""
    ids = []
    for step in steps:
        ids.append([rollout.item_id for result in schedule.collect(step) for rollout in result.rollouts])
        schedule.publish(step + 1, {})
    return ids


def go_back(schedule: RolloutSchedule, step: int) -> None:
    with schedule.going_back():
        schedule.restore(step, {step: step - 1}, {step - 1: {}, step: {}})


def test_tasks_explore_as_far_as_the_run_has_come() -> None:
    worker = Worker()
    go(made(worker, sampling__explore=0.5, sampling__explore_until=0.5), range(8))
    assert [worker.explored[step] for step in range(8)] == [0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125]


def test_steps_done_again_take_the_rollouts_that_were_scored_before() -> None:
    """Steps 2 and 3 are done again, step 4 was under way: no combination is scored twice."""
    worker = Worker()
    schedule = made(worker)
    before = go(schedule, range(2))
    schedule.saved(2)
    before += go(schedule, range(2, 4))
    go_back(schedule, 2)
    assert go(schedule, range(2, 8)) == [*before[2:], *go(made(Worker()), range(8))[4:]]
    assert set(worker.asked.values()) == {1}


def test_rollouts_beyond_the_bound_are_scored_again() -> None:
    worker = Worker()
    schedule = made(worker, run__reuse_bytes=0)
    before = go(schedule, range(4))
    go_back(schedule, 2)
    assert go(schedule, range(2, 4)) == before[2:4]
    assert {count for (step, _, _), count in worker.asked.items() if step in (2, 3)} == {2}


def test_another_state_brings_its_own_rollouts() -> None:
    """As Tune does: a restore outside of going_back() forgets what was scored."""
    worker = Worker()
    schedule = made(worker)
    go(schedule, range(4))
    schedule.restore(2, {2: 1}, {1: {}, 2: {}})
    go(schedule, range(2, 4))
    assert {count for (step, _, _), count in worker.asked.items() if step in (2, 3)} == {2}


def test_parts_become_whole_items() -> None:
    worker = Worker()
    (result, _) = made(worker, actors__parts_per_item=3).collect(0)
    (rollout,) = result.rollouts
    whole = make_record(int(rollout.item_id.split("-")[1]))
    for one, other in zip(rollout.iterations, whole.iterations, strict=True):
        assert torch.equal(one.combinations.kept, other.combinations.kept)
        assert torch.equal(one.reward, other.reward)
    assert len(result.inputs) == len(result.input_bytes) == 1


def test_an_item_whose_one_part_cannot_be_used_is_set_aside_once() -> None:
    first = next(iter(ItemOrder(ITEMS, 2, 0).of_step(0))).id
    results = made(Worker(bad=first), actors__parts_per_item=3, actors__items_per_task=2).collect(0)
    assert [aside.item.id for result in results for aside in result.set_aside] == [first]
    assert len([rollout for result in results for rollout in result.rollouts]) == 1
    assert len([seen for result in results for seen in result.inputs]) == 1
