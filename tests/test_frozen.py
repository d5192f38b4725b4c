"""Answers and files of version 0.1.0 stay what they are: see frozen.py."""

import json

import frozen
import numpy as np
import pytest

KEPT = np.load(frozen.ANSWERS)
RUN = json.loads(frozen.RUN.read_text())
SAME_MACHINE = frozen.machine() == RUN["machine"]


def compare(question, found):
    """Compare answers with those kept: to the bit where the machine is the one that made them."""
    kept = {name.split("/", 1)[1] for name in KEPT.files if name.startswith(f"{question}/")}
    assert kept == set(found)
    for name, values in found.items():
        before = KEPT[f"{question}/{name}"]
        if SAME_MACHINE or before.dtype.kind in "iu":
            np.testing.assert_array_equal(values, before, err_msg=name)
        else:
            np.testing.assert_allclose(values, before, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("question", sorted(frozen.QUESTIONS))
def test_the_answer_is_the_one_that_was_kept(question):
    compare(question, frozen.QUESTIONS[question]())


def test_a_published_run_is_the_one_that_was_kept(tmp_path):
    published = frozen.published_run(tmp_path)
    compare("run", frozen.run_tables(published))
    files = frozen.digests(published)
    assert set(files) == set(RUN["files"])
    if SAME_MACHINE:
        assert files == RUN["files"]


def test_a_changed_answer_is_seen():
    wrong = {k: v + (1e-5 if v.dtype.kind == "f" else 1) for k, v in frozen.nfxp().items()}
    with pytest.raises(AssertionError):
        compare("nfxp", wrong)
