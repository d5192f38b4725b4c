"""Every way of importing finds the same functions, in workers too."""

import dynchoice as dc


def test_solve_and_counterfactual_are_the_functions_whatever_was_imported():
    import inspect

    import dynchoice.counterfactuals.scenario
    import dynchoice.solvers.linear

    assert "params" in inspect.signature(dc.solve).parameters
    assert "weights" in inspect.signature(dc.counterfactual).parameters
    assert "Solve a dynamic choice model" in dc.solve.__doc__
    assert dynchoice.solve is dc.solve and dynchoice.solve.__name__ == "solve"


def test_functions_that_use_the_package_travel_to_workers():
    from joblib import Parallel, delayed

    def size(i):
        return dc.StateSpace(s=range(i + 1)).size

    assert Parallel(n_jobs=2)(delayed(size)(i) for i in range(3)) == [1, 2, 3]


def test_every_way_of_importing_works():
    import dynchoice.solvers.linear as by_name
    from dynchoice.solvers import linear

    assert by_name is linear and dynchoice_attribute() is linear


def dynchoice_attribute():
    import dynchoice.solvers.linear

    return dynchoice.solvers.linear
