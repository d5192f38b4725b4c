"""What every test of the solvers draws from."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(23)
