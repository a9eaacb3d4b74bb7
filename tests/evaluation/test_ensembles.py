import numpy as np
import pytest

from hf_igpt.evaluation.ensembles import majority


def test_most_votes_win():
    votes = np.array([[0, 2, 1], [0, 2, 2], [1, 0, 2]])
    assert majority(votes, 3).tolist() == [0, 2, 2]


def test_one_vote_is_kept():
    assert majority(np.array([[3, 0, 1]]), 4).tolist() == [3, 0, 1]


def test_ties_are_drawn_evenly_among_the_tied_and_by_seed():
    votes = np.tile(np.array([[4], [1], [4], [1], [0]]), 4000)
    first = majority(votes, 6, seed=0)
    assert set(first) == {1, 4}
    assert abs((first == 1).mean() - 0.5) < 0.03
    assert first.tolist() == majority(votes, 6, seed=0).tolist()
    assert first.tolist() != majority(votes, 6, seed=1).tolist()


@pytest.mark.parametrize("votes", [np.zeros(3, int), np.zeros((0, 3), int), np.array([[0, 3]]), np.array([[-1, 0]])])
def test_what_is_no_vote(votes):
    with pytest.raises(ValueError, match="`votes` must be"):
        majority(votes, 3)
