"""The checks of arguments: what passes, what is refused, and in which words."""

import numpy as np
import pandas as pd
import pytest

import dynchoice as dc
from dynchoice import checks

PASS = [
    (lambda: checks.whole(np.int32(3), "draws", 1, 9), 3),
    (lambda: checks.whole(0, "draws"), 0),
    (lambda: checks.number(np.float32(0.5), "level"), 0.5),
    (lambda: checks.number(np.array(2), "level"), 2.0),
    (lambda: checks.number(np.inf, "bound", infinite=True), np.inf),
    (lambda: checks.positive(1, "weight"), 1.0),
    (lambda: checks.share(1, "attention"), 1.0),
    (lambda: checks.share(0.9, "level", open_interval=True), 0.9),
    (lambda: checks.one_of(None, "by", (None, "type")), None),
    (lambda: checks.one_of(np.str_("type"), "by", (None, "type")), "type"),
    (lambda: checks.one_of(True, "grandfathered", (False, True, "contract")), True),
    (lambda: checks.names("video", "names"), ("video",)),
    (lambda: checks.names(["a", 1], "names"), ("a", "1")),
    (lambda: checks.mapping({1: 2}, "weights"), {"1": 2}),
    (lambda: checks.items((1, 2), "grid"), [1, 2]),
    (lambda: checks.seed(None), None),
    (lambda: checks.seed(7), 7),
    (lambda: checks.instance(3, "x", int), 3),
    (lambda: checks.known(["a"], "abc", "letter"), None),
    (lambda: checks.columns(pd.DataFrame({"a": [1]}), ["a"], "the log"), None),
    (lambda: checks.shape(np.zeros((2, 3)), "u", (2, 3)), None),
]


@pytest.mark.parametrize(("check", "value"), PASS)
def test_what_is_right_is_returned(check, value):
    assert check() == value


REFUSED = [
    (lambda: checks.whole(0, "draws", 1), "draws=0 must be a whole number of at least 1"),
    (lambda: checks.whole(2.0, "draws"), r"draws=2\.0 must be a whole number"),
    (lambda: checks.whole(True, "draws"), "draws=True must be a whole number"),
    (lambda: checks.whole(np.arange(2), "draws"), "must be a whole number"),
    (lambda: checks.whole(5000, "periods", 1, 1200), "periods=5,000 .* from 1 to 1,200"),
    (lambda: checks.number("1", "level"), "level='1' is no number"),
    (lambda: checks.number(None, "level"), "level=None is no number"),
    (lambda: checks.number(np.nan, "level"), "level=nan is no number"),
    (lambda: checks.number(np.inf, "price"), "price=inf must be a finite number"),
    (lambda: checks.number(np.True_, "price"), "is no number"),
    (lambda: checks.number(-1, "price", 0), "price=-1 must be at least 0"),
    (lambda: checks.number(2, "price", 0, 1), "price=2 must lie between 0 and 1"),
    (lambda: checks.positive(0, "weight"), "weight=0 must be a positive number"),
    (lambda: checks.share(90, "level"), r"must lie between 0 and 1 \(for 90% write 0.9\)"),
    (lambda: checks.share(1, "level", open_interval=True), "must lie between 0 and 1"),
    (lambda: checks.one_of("typo", "by", ("type", "region")), "by='typo' is unknown. Did you mean"),
    (lambda: checks.one_of(1, "kept", (True, "contract")), "kept=1 is unknown"),
    (lambda: checks.one_of(["type"], "by", ("type",)), "is unknown"),
    (lambda: checks.known(["prise"], ["price"], "parameter"), "Did you mean 'price'"),
    (lambda: checks.names(3, "names"), "names must be a list of names, got 3"),
    (lambda: checks.mapping([1], "weights"), "weights must map names to values"),
    (lambda: checks.items("abc", "grid"), r"give a list, e.g. grid=\['abc'\]"),
    (lambda: checks.items([], "grid"), "grid is empty"),
    (lambda: checks.instance(3, "model", dc.DDC, "club.model()"), "must be a DDC, got int 3: club"),
    (lambda: checks.shape(np.zeros(2), "u", (3,), "(S,)"), r"shape \(2,\), expected \(S,\) = \(3"),
    (lambda: checks.function(3, "progress", "print"), "pass a function, e.g. print"),
    (lambda: checks.seed(-1), "seed=-1 must be a whole number of at least 0"),
    (lambda: checks.columns(3, ["a"], "the log"), "the log must be a table, got a int"),
]


@pytest.mark.parametrize(("check", "message"), REFUSED)
def test_what_is_wrong_is_said(check, message):
    with pytest.raises(dc.SpecificationError, match=message):
        check()


def test_a_missing_column_and_another_kind_of_error():
    with pytest.raises(dc.ColumnError, match=r"the log: column 'itme' is missing\. Did you mean"):
        checks.columns(pd.DataFrame({"item": [1]}), ["itme"], "the log")
    with pytest.raises(dc.DataError, match="segment 'x' is unknown"):
        checks.known(["x"], ["a"], "segment", error=dc.DataError)
