"""The confidence of points: a probability that rises with each piece of evidence."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corrflow.runtime.tracking.keypoints.confidence import Evidence, point_confidence

EVIDENCE = st.tuples(st.floats(0, 1), st.floats(-1, 1), st.booleans(), st.floats(0, 5))


def confidence(peak: float, correlation: float, from_label: float, displacement: float) -> float:
    terms = (np.array([term]) for term in (peak, correlation, from_label, displacement))
    return float(point_confidence(Evidence(*terms))[0])


@given(EVIDENCE, EVIDENCE)
def test_more_evidence_is_never_less_confidence(one, other) -> None:
    """The last term counts the other way: what has left its place on the body is less sure."""
    found = confidence(*one)
    assert 0 < found < 1
    for term, combine in enumerate((max, max, max, min)):
        better = list(one)
        better[term] = combine(one[term], other[term])
        assert confidence(*better) >= found


def test_every_term_counts() -> None:
    worst, best = (0, -1, False, 1), (1, 1, True, 0)
    for term in range(4):
        better = [*worst[:term], best[term], *worst[term + 1 :]]
        assert confidence(*worst) < confidence(*better) < confidence(*best)


def test_terms_are_those_of_the_weights() -> None:
    evidence = Evidence(np.array([0.2, 0.9]), np.array([-0.5, 1]), np.array([False, True]), np.array([0.1, 3]))
    np.testing.assert_array_equal(evidence.terms, [[0.2, -0.5, 0, 0.1, 1], [0.9, 1, 1, 1, 1]])
    nothing = np.zeros(0)
    assert point_confidence(Evidence(nothing, nothing, nothing.astype(bool), nothing)).shape == (0,)
