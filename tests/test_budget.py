import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import Budget, InvalidBudget


@given(st.one_of(st.integers(1, 10_000), st.floats(1e-6, 1.0)), st.integers(1, 5000))
def test_the_count_is_between_one_and_all(keep, n):
    k = Budget(keep).count(n)
    assert 1 <= k <= n
    assert k == min(keep, n) if isinstance(keep, int) else abs(k - keep * n) <= 0.5 or k == 1


@pytest.mark.parametrize(
    ("keep", "n", "k"), [(64, 576, 64), (0.11, 576, 63), (1.0, 576, 576), (1, 576, 1), (999, 576, 576)]
)
def test_counts_and_fractions(keep, n, k):
    assert Budget(keep).count(n) == k
    assert Budget.of(Budget.of(keep)) == Budget(keep)


@pytest.mark.parametrize(("text", "keep"), [("64", 64), ("0.11", 0.11), ("11%", 0.11), ("1.0", 1.0), ("1", 1)])
def test_text(text, keep):
    assert Budget.parse(text).keep == pytest.approx(keep)
    assert type(Budget.parse(text).keep) is type(keep)


@pytest.mark.parametrize("keep", [0, -3, 0.0, 1.5, 64.0, -0.1, float("nan"), float("inf"), "64", None, True])
def test_bad_values_raise_with_the_value_and_what_is_allowed(keep):
    with pytest.raises(InvalidBudget, match="allowed are") as error:
        Budget(keep)
    assert repr(keep) in str(error.value)


@pytest.mark.parametrize("text", ["abc", "", "0", "-1", "1.5", "64.0", "nan", "0%", "101%", "6 4"])
def test_bad_text_raises(text):
    with pytest.raises(InvalidBudget, match="allowed are"):
        Budget.parse(text)
