"""Pauses that grow, and the circuit breaker."""

from itertools import islice

from likewise.backoff import Backoff, Breaker


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_the_longest_and_stay_there() -> None:
    assert list(islice(Backoff(0.5, 3.0).pauses(), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert Backoff(1.0, 60.0).pause(100_000) == 60.0


def test_a_factor_of_its_own() -> None:
    assert list(islice(Backoff(1.0, 10.0, factor=3).pauses(), 4)) == [1.0, 3.0, 9.0, 10.0]


def test_a_random_pause_lies_between_the_first_and_the_full_one() -> None:
    drawn = [Backoff(1.0, 60.0).jittered(4) for _ in range(100)]
    assert all(1.0 <= pause <= 8.0 for pause in drawn)
    assert len(set(drawn)) > 1


def test_a_breaker_opens_for_pauses_that_grow_and_one_success_closes_it() -> None:
    clock = Clock()
    breaker = Breaker[str](Backoff(1.0, 4.0), clock=clock)
    assert breaker.allows()
    assert breaker.failed("away")
    assert breaker.fault == "away"
    assert not breaker.allows()

    clock.now = 1.0
    assert breaker.allows()
    assert breaker.failed("still away")
    assert (breaker.fault, breaker.left, breaker.pause) == ("still away", 2.0, 2.0)

    assert breaker.succeeded()
    assert breaker.allows()
    assert breaker.fault is None
    assert not breaker.succeeded()
    breaker.failed("away again")
    assert breaker.left == 1.0


def test_a_breaker_of_several_failures_counts_those_in_a_row() -> None:
    breaker = Breaker[str](Backoff(1.0, 4.0), failures=3, clock=Clock())
    assert [breaker.failed("late") for _ in range(2)] == [False, False]
    breaker.succeeded()
    assert [breaker.failed("late") for _ in range(3)] == [False, False, True]


def test_one_failure_may_be_enough() -> None:
    breaker = Breaker[str](Backoff(1.0, 4.0), failures=3, clock=Clock())
    assert breaker.failed("refused", at_once=True)
    assert breaker.fault == "refused"


def test_tries_that_were_under_way_at_the_first_failure_do_not_open_it() -> None:
    clock = Clock()
    clock.now = 10.0
    breaker = Breaker[str](Backoff(1.0, 4.0), failures=2, clock=clock)
    assert [breaker.failed("away", began=9.0) for _ in range(5)] == [False] * 5
    assert breaker.failed("away", began=10.5)
