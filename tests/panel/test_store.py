"""Counts brought up to date against a recount of all rows."""

import pandas as pd
import pytest
from builders import HISTORY as SPEC
from builders import member_history as history
from builders import same_counts as same

import dynchoice as dc
from dynchoice.errors import DataError, LockError, SpecificationError, StorageError
from dynchoice.panel import store as store_module

OPTIONS = [
    {},
    {"segment": "segment"},
    {"segment": "segment", "region": "region", "weights": "w", "decision": "d", "buckets": 7},
]


@pytest.mark.parametrize(
    ("ids", "options"),
    [
        ("int", OPTIONS[0]),
        *(pytest.param("int", o, marks=pytest.mark.slow) for o in OPTIONS[1:]),
        pytest.param("text", OPTIONS[2], marks=pytest.mark.slow),
        pytest.param("sparse", {}, marks=pytest.mark.slow),
    ],
)
def test_months_added_one_by_one_are_a_recount(tmp_path, ids, options):
    df = history(len(options), ids=ids)
    spec = {**SPEC, **options}
    start = dc.Panel(df[df.t < 4], **spec)
    store = dc.CountStore.create(tmp_path / "counts", start)
    same(store.counts, dc.Panel(df[df.t < 4], **spec, member_limit=0).counts)
    for begin, end in ((4, 5), (5, 8), (8, 9)):
        part = df[(df.t >= begin) & (df.t < end)].sample(frac=1, random_state=0)
        told = store.update(part)
        assert told["rows"] == len(part) and told["members"] == part.id.nunique()
        assert told["new"] == len(set(part.id) - set(df[df.t < begin].id))
        whole = dc.Panel(df[df.t < end], **spec, member_limit=0).counts
        same(store.counts, whole)
        same(dc.CountStore(tmp_path / "counts").counts, whole)
    # the path by SQL counts the same
    assert store.counts.digest == dc.Panel(df, **spec).counts.digest
    assert store.rows == len(df) and store.span == ("0", "8")
    kept = [p.name for p in (tmp_path / "counts").iterdir() if p.name.startswith("seam")]
    assert len(kept) == store_module.KEPT


def test_what_continues_is_told_from_what_has_a_gap(tmp_path):
    frame = pd.DataFrame({"id": [1, 2, 3], "t": [1, 1, 0], "x": 0, "y": "a", "c": "in"})
    store = dc.CountStore.create(tmp_path / "counts", dc.Panel(frame, **SPEC))
    told = store.update(pd.DataFrame({"id": [1, 3, 4], "t": 2, "x": 1, "y": "b", "c": "out"}))
    assert told == {"rows": 3, "members": 3, "new": 1, "continued": 1, "gaps": 1}
    cells = dict.fromkeys(map(tuple, store.counts.cells[:, 2:5]), 0.0)
    for cell, n in zip(store.counts.cells[:, 2:5], store.counts.n, strict=True):
        cells[tuple(cell)] += n
    code = SPEC["states"].codes(pd.DataFrame({"x": [0, 1], "y": ["a", "b"]}))
    assert cells[(code[0], 1, code[1])] == 1 and cells[(code[0], 1, -1)] == 2
    assert "6 rows" in repr(store)


def test_periods_counted_already_are_refused_and_nothing_changes(tmp_path):
    df = history(1)
    store = dc.CountStore.create(tmp_path / "counts", dc.Panel(df[df.t < 5], **SPEC))
    before = store.counts.digest
    with pytest.raises(DataError, match=r"rows of periods that are counted already, first: member"):
        store.update(df[df.t >= 4])
    with pytest.raises(DataError, match="unknown choice"):
        store.update(df[df.t >= 5].assign(c="oops"))
    assert dc.CountStore(tmp_path / "counts").counts.digest == before
    weighted = dc.CountStore.create(
        tmp_path / "weighted", dc.Panel(df[df.t < 5], **SPEC, weights="w")
    )
    with pytest.raises(DataError, match=r"the weight of .* another than before"):
        weighted.update(df[df.t >= 5].assign(w=9.0))
    with pytest.raises(DataError, match="convert them"):
        store.update(df[df.t >= 5].assign(id=lambda d: d.id.astype(str)))


@pytest.mark.slow
def test_an_update_that_dies_leaves_the_old_version(tmp_path, monkeypatch):
    df = history(2)
    store = dc.CountStore.create(tmp_path / "counts", dc.Panel(df[df.t < 5], **SPEC))
    before = store.counts.digest
    for name in ("save_tree", "write_atomically"):
        with monkeypatch.context() as broken:

            def die(*args, **kwargs):
                raise KeyboardInterrupt

            broken.setattr(store_module, name, die)
            with pytest.raises(KeyboardInterrupt):
                store.update(df[df.t >= 5])
        assert dc.CountStore(tmp_path / "counts").counts.digest == before
    dc.CountStore(tmp_path / "counts").update(df[df.t >= 5])
    same(dc.CountStore(tmp_path / "counts").counts, dc.Panel(df, **SPEC, member_limit=0).counts)


def test_one_update_at_a_time_and_folders_that_are_no_store(tmp_path):
    df = history(3)
    store = dc.CountStore.create(tmp_path / "counts", dc.Panel(df[df.t < 5], **SPEC))
    with store_module._locked(store.path), pytest.raises(LockError, match="try later"):
        store.update(df[df.t >= 5])
    with pytest.raises(StorageError, match="not empty"):
        dc.CountStore.create(tmp_path / "counts", dc.Panel(df, **SPEC))
    with pytest.raises(StorageError, match="holds no counts"):
        dc.CountStore(tmp_path / "nowhere")


def test_a_store_of_a_table_elsewhere_is_refused(tmp_path):
    import ibis

    table = ibis.memtable(history(4))
    with pytest.raises(SpecificationError, match="warehouse"):
        dc.CountStore.create(tmp_path / "counts", dc.Panel(table, **SPEC))
