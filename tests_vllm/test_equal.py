"""vLLM's greedy tokens are stock transformers' on the prompt that `foveate.prune` made."""

import pytest

import foveate
from conftest import MODELS, QUESTIONS, opened, picture

# In the plugin, and in the library; `auto` options as they are settled where towers give no attention.
METHODS = {
    "rrqr": foveate.RRQR(),
    "spare": foveate.SPARE(relevance="llm"),
    "resprune": foveate.ResPrune(seed="norm"),
    "cdpruner": foveate.CDPruner(relevance="llm"),
    "random": foveate.Random(),
    "uniform": foveate.UniformGrid(),
    "norm": foveate.NormTopK(),
    "relevance": foveate.RelevanceTopK(),
}
CASES = [
    ((0,), 0, "rrqr", 5),
    ((1,), 1, "spare", 7),
    ((0, 1), 0, "resprune", 6),
    ((2,), 2, "cdpruner", 0.5),
    ((1, 2, 0), 1, "random", 3),
    ((0,), 2, "uniform", 4),
    ((2,), 0, "norm", 1),
    ((1,), 2, "relevance", 8),
    ((0,), 0, "rrqr", 1.0),
    ((0, 2), 1, "spare", 99),
]


@pytest.fixture(scope="module", params=MODELS)
def bench(request, folders):
    with opened(folders, request.param, {"method": "rrqr", "keep": 5}) as bench:
        yield bench


def asked(bench, case):
    pictures, question, method, keep = case
    return bench.request(
        [picture(i) for i in pictures], QUESTIONS[question], foveate={"method": method, "keep": keep}
    )


def expected(bench, case, **options):
    pictures, question, method, keep = case
    return bench.expected([picture(i) for i in pictures], QUESTIONS[question], METHODS[method], keep, **options)


def test_one_by_one_then_together(bench):
    wanted = [expected(bench, case) for case in CASES]
    alone = [bench.answers([asked(bench, case)])[0] for case in CASES]
    assert alone == wanted
    again = [bench.answers([asked(bench, case)])[0] for case in CASES]
    assert again == wanted
    assert bench.answers([asked(bench, case) for case in CASES]) == wanted


def test_other_positions_answer_otherwise(bench):
    """The control: had positions been numbered anew, the tokens would differ."""
    moved = [case for case in CASES if expected(bench, case, positions="compact") != expected(bench, case)]
    assert len(moved) >= 5


def test_methods_answer_otherwise(bench):
    """The control: had other tokens been kept, the answers would differ."""
    answers = {
        tuple(token for i in range(3) for token in bench.expected([picture(i)], QUESTIONS[0], method, 4))
        for method in METHODS.values()
    }
    assert len(answers) >= 4
