"""Quotas: a bucket for each tenant that fills steadily."""

import pytest

from likewise.auth.quotas import Quotas
from likewise.errors import TooLarge, TooManyRequests


class Clock:
    """A time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_holds_a_minutes_worth_and_fills_steadily(clock: Clock) -> None:
    # Given
    quota = Quotas(60, clock)
    quota.spend(1, ["x" * 160, "x" * 77])
    # When it is used up
    with pytest.raises(TooManyRequests) as refused:
        quota.spend(1, ["x" * 12])
    assert (refused.value.code, refused.value.retry_after) == ("quota_exceeded", 3)
    # Then as many seconds later it holds as many tokens again
    clock.now += 2.9
    with pytest.raises(TooManyRequests):
        quota.spend(1, ["x" * 12])
    clock.now += 0.2
    quota.spend(1, ["x" * 12])
    clock.now += 600
    quota.spend(1, ["x" * 240])
    with pytest.raises(TooManyRequests) as refused:
        quota.spend(1, ["x" * 240])
    assert refused.value.retry_after == 60


def test_what_is_refused_costs_nothing_and_another_tenant_nothing_either(clock: Clock) -> None:
    quota = Quotas(10, clock)
    quota.spend(1, ["x" * 36])
    for _ in range(3):
        with pytest.raises(TooManyRequests):
            quota.spend(1, ["x" * 8])
    quota.spend(1, ["x"])
    quota.spend(2, ["x" * 40])


def test_more_than_a_whole_bucket_can_never_be_done(clock: Clock) -> None:
    quota = Quotas(10, clock)
    with pytest.raises(TooLarge, match="never") as refused:
        quota.spend(1, ["x" * 20, "x" * 21])
    assert (refused.value.code, refused.value.retryable) == ("larger_than_quota", False)
    quota.spend(1, ["x" * 40])


def test_no_quota_is_no_limit(clock: Clock) -> None:
    Quotas(0, clock).spend(1, ["x" * 10_000_000])


def test_nothing_costs_nothing(clock: Clock) -> None:
    quota = Quotas(1, clock)
    quota.spend(1, ["x"])
    quota.spend(1, ["", ""])
    quota.spend(1, [])


def test_full_buckets_are_forgotten(clock: Clock) -> None:
    quota = Quotas(10, clock)
    for tenant in range(3):
        quota.spend(tenant, ["x" * 40])
    clock.now += 60
    for tenant in range(3, 5):
        quota.spend(tenant, ["x" * 40])
    assert set(quota._buckets) == {3, 4}
    for tenant in range(3, 5):
        with pytest.raises(TooManyRequests):
            quota.spend(tenant, ["x"])
